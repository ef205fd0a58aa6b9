"""safetensors files, within the limits of the safetensors library."""

import json
import math
import os
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import safetensors.numpy
from etils import epath

from vit_jax.errors import UserError
from vit_jax.files import is_remote
from vit_jax.weights.formats.lazy_tensor import (
  BFLOAT16,
  MAX_HEADER,
  Tensor,
  TensorFile,
  check_names,
  is_shape,
  raw_load,
)

_DTYPES = {
  'F64': np.dtype('<f8'),
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': BFLOAT16,
  'I64': np.dtype('<i8'),
  'I32': np.dtype('<i4'),
  'I16': np.dtype('<i2'),
  'I8': np.dtype('i1'),
  'U64': np.dtype('<u8'),
  'U32': np.dtype('<u4'),
  'U16': np.dtype('<u2'),
  'U8': np.dtype('u1'),
  'BOOL': np.dtype('?'),
}


def write_safetensors(
  path: epath.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
  """Writes {name: array} and {key: text} for the header.

  Raises:
    OSError: when the file cannot be written.
  """
  try:
    if is_remote(path):
      path.write_bytes(safetensors.numpy.save(dict(arrays), metadata=dict(metadata)))
    else:  # array by array
      path.touch()
      mode = os.stat(path).st_mode  # the library sets 0600, whatever the umask
      safetensors.numpy.save_file(dict(arrays), path, metadata=dict(metadata))
      os.chmod(path, mode)
  except safetensors.SafetensorError as error:
    raise OSError(str(error)) from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  unique = dict(pairs)
  if len(unique) != len(pairs):
    raise ValueError('its header has a name twice')
  return unique


def read_safetensors(path: epath.Path, file: IO[bytes], size: int) -> TensorFile:
  """Opens a safetensors file; the arguments are those of `read_npz`.

  Raises:
    UserError, `READ_ERRORS`: for a damaged file.
  """
  file.seek(0)
  length = int.from_bytes(file.read(8), 'little')
  if length > min(MAX_HEADER, size - 8):
    raise UserError(f'{path} declares a header of {length:,} bytes; it is damaged or truncated.')
  header = json.loads(file.read(length).decode('utf-8'), object_pairs_hook=_no_duplicates)
  metadata = header.pop('__metadata__', {})
  if not isinstance(metadata, dict) or not all(type(x) is str for x in metadata.values()):
    raise UserError(f'{path}: __metadata__ in its header does not map strings to strings.')
  check_names(path, header)
  tensors, ranges = {}, []
  for name, entry in header.items():
    shape, dtype, begin, end = _safetensors_entry(path, name, entry)
    tensors[name] = Tensor(shape, dtype, raw_load(path, 8 + length + begin, shape, dtype))
    ranges.append((begin, end))
  position = 0
  for begin, end in sorted(ranges):
    if begin != position:
      raise UserError(f'{path}: its header leaves gaps or overlaps between tensors.')
    position = end
  if 8 + length + position != size:
    raise UserError(
      f'{path} is truncated or too long: its header declares {8 + length + position:,} bytes, the '
      f'file has {size:,}.'
    )
  return TensorFile(path, 'safetensors', tensors, metadata)


def _safetensors_entry(
  path: epath.Path, name: str, entry: Any
) -> tuple[tuple[int, ...], np.dtype, int, int]:
  """(shape, dtype, begin, end) of one entry of the header."""
  if isinstance(entry, dict) and entry.keys() == {'dtype', 'shape', 'data_offsets'}:
    dtype = _DTYPES.get(entry['dtype']) if type(entry['dtype']) is str else None
    shape, offsets = entry['shape'], entry['data_offsets']
    if dtype is None:
      raise UserError(f'{path}: {name} has the unknown dtype {str(entry["dtype"])[:20]!r}.')
    are_lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if are_lists and is_shape(shape) and is_shape(offsets):
      begin, end = offsets
      if end - begin == math.prod(shape) * dtype.itemsize:
        return tuple(shape), dtype, begin, end
  raise UserError(f'{path}: the header contradicts itself about {name}.')
