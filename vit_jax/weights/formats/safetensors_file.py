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
from vit_jax.weights.formats import lazy_tensor
from vit_jax.weights.formats.lazy_tensor import BFLOAT16, Tensor, TensorFile

_DTYPES = dict(F64='<f8', F32='<f4', F16='<f2', BF16=BFLOAT16, BOOL='?') | {
  f'{kind}{8 * size}': f'<{kind.lower()}{size}' for kind in 'IU' for size in (1, 2, 4, 8)
}


def write_safetensors(
  path: epath.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
  """Writes {name: array} and {key: text} for the header; raises `OSError` on failure."""
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
  """Opens a safetensors file; arguments and errors are those of `read_npz`."""
  file.seek(0)
  length = int.from_bytes(file.read(8), 'little')
  if length > min(lazy_tensor.MAX_HEADER, size - 8):
    raise UserError(f'{path} declares a header of {length:,} bytes; it is damaged or truncated.')
  header = json.loads(file.read(length).decode('utf-8'), object_pairs_hook=_no_duplicates)
  metadata = header.pop('__metadata__', {})
  if not isinstance(metadata, dict) or not all(type(x) is str for x in metadata.values()):
    raise UserError(f'{path}: __metadata__ in its header does not map strings to strings.')
  lazy_tensor.check_names(path, header)
  tensors, ranges = {}, []
  for name, entry in header.items():
    shape, dtype, begin, end = _parse_entry(path, name, entry)
    load = lazy_tensor.raw_load(path, 8 + length + begin, shape, dtype)
    tensors[name] = Tensor(shape, dtype, load)
    ranges.append((begin, end))
  position = 0
  for begin, end in sorted(ranges):
    if begin != position:
      raise UserError(f'{path}: its header leaves gaps or overlaps between tensors.')
    position = end
  if (declared := 8 + length + position) != size:
    raise UserError(
      f'{path} is truncated or too long: its header declares {declared:,} bytes, the file has '
      f'{size:,}.'
    )
  return TensorFile(path, 'safetensors', tensors, metadata)


def _parse_entry(
  path: epath.Path, name: str, entry: Any
) -> tuple[tuple[int, ...], np.dtype, int, int]:
  """(shape, dtype, begin, end) of one entry of the header."""
  if isinstance(entry, dict) and entry.keys() == {'dtype', 'shape', 'data_offsets'}:
    if not isinstance(entry['dtype'], str) or entry['dtype'] not in _DTYPES:
      raise UserError(f'{path}: {name} has the unknown dtype {str(entry["dtype"])[:20]!r}.')
    dtype, shape, offsets = np.dtype(_DTYPES[entry['dtype']]), entry['shape'], entry['data_offsets']
    are_lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if are_lists and lazy_tensor.is_shape(shape) and lazy_tensor.is_shape(offsets):
      begin, end = offsets
      if end - begin == math.prod(shape) * dtype.itemsize:
        return tuple(shape), dtype, begin, end
  raise UserError(f'{path}: the header contradicts itself about {name}.')
