"""npz files: checked before anything is allocated, by their CRC when they are read."""

import functools
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np
from etils import epath

from vit_jax.errors import UserError
from vit_jax.weights.formats.lazy_tensor import (
  BFLOAT16,
  CHUNK,
  FACTS,
  Tensor,
  TensorFile,
  aligned,
  check_names,
  checked,
  fill,
  is_shape,
  raw_load,
  read_into,
)
from vit_jax.weights.formats.state_dict import read_state_dict

# Trained weights hardly compress; more than this is a zip bomb.
_MAX_COMPRESSION, _FREE_BYTES = 50, 2**26
MAX_FACTS = 2**16 - 100  # bytes; the comment of a zip holds little more


def write_npz_file(path: epath.PathLike, arrays: Mapping[str, np.ndarray], facts: str = '') -> None:
  """Writes arrays as `numpy.savez` does, with facts where other readers do not look.

  Args:
    path: of the file.
    arrays: {name: array}.
    facts: JSON for the comment of the zip, ASCII, of at most MAX_FACTS bytes.
  """
  with epath.Path(path).open('wb') as file, zipfile.ZipFile(file, 'w') as archive:
    for name, array in arrays.items():
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as entry:
        np.lib.format.write_array(entry, array, allow_pickle=False)
    if facts:
      data = facts.encode()
      archive.comment = f'{FACTS} {zlib.crc32(data):08x} '.encode() + data


def _facts(path: epath.Path, comment: bytes) -> dict[str, str]:
  """What `write_npz_file` wrote besides arrays."""
  match = re.fullmatch(FACTS.encode() + rb' ([0-9a-f]{8}) (.*)', comment, re.DOTALL)
  if match is None:
    return {}
  if zlib.crc32(match[2]) != int(match[1], 16):
    raise UserError(f'{path} is damaged: the CRC of its comment is another one than written.')
  return {FACTS: match[2].decode()}


def read_npz(path: epath.Path, file: BinaryIO, size: int) -> TensorFile:
  with zipfile.ZipFile(file) as archive:
    entries = archive.infolist()
    names = [entry.filename.removesuffix('.npy') for entry in entries]
    check_names(path, names)
    if len(set(names)) != len(names):
      raise UserError(f'{path} has two entries of the same name.')
    starts = _check_entries(path, file, entries, size, archive.start_dir)
    if any(name.endswith('/data.pkl') for name in names):
      return read_state_dict(path)
    tensors = {
      name: _npy_entry(path, archive, entry, start)
      for name, entry, start in zip(names, entries, starts, strict=True)
    }
    metadata = _facts(path, archive.comment)
  return TensorFile(path, 'npz', tensors, metadata)


def _check_entries(
  path: epath.Path, file: BinaryIO, entries: list[zipfile.ZipInfo], size: int, end: int
) -> list[int]:
  """Where the data of each entry start; raises unless they fill the file up to its directory.

  A gap may hold no more than the 24 bytes of a data descriptor, so that no entry can be lost.
  """
  declared = sum(entry.file_size for entry in entries)
  if declared > _MAX_COMPRESSION * size + _FREE_BYTES:
    raise UserError(f'{path} declares {declared:,} bytes in a file of {size:,}: a zip bomb.')
  starts, position, slack = {}, 0, 0
  for entry in sorted(entries, key=lambda entry: entry.header_offset):
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise UserError(f'{path}: {entry.filename} is encrypted, or compressed in an unknown way.')
    if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
      raise UserError(f'{path}: the two sizes of {entry.filename} contradict each other.')
    if not position <= entry.header_offset <= position + slack:
      raise UserError(f'{path}: {entry.filename} overlaps another entry, or leaves a hole.')
    file.seek(entry.header_offset + 26)
    lengths = struct.unpack('<HH', file.read(4))  # of the name and the extra field
    starts[entry.filename] = entry.header_offset + 30 + sum(lengths)
    position = starts[entry.filename] + entry.compress_size
    slack = 24 if entry.flag_bits & 8 else 0
  if not position <= end <= position + slack:
    raise UserError(f'{path}: its entries do not end where its directory starts.')
  return [starts[entry.filename] for entry in entries]


def _npy_entry(
  path: epath.Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, start: int
) -> Tensor:
  """One array of an npz archive: its header is read and checked now, its data later."""
  with archive.open(entry) as data:
    version = np.lib.format.read_magic(data)
    read_header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
      raise ValueError(f'{entry.filename} is of the unknown version {version}')
    shape, fortran, dtype = read_header(data)
    header_size = data.tell()
  if dtype.hasobject:
    raise UserError(
      f'{path} is not a plain npz file of arrays: {entry.filename} holds pickled Python '
      'objects, which are never loaded because that can run code.'
    )
  size = is_shape(shape) and header_size + math.prod(shape) * dtype.itemsize
  if size != entry.file_size:
    raise UserError(f'{path}: the shape of {entry.filename} is not that of its data.')
  stored = entry.compress_type == zipfile.ZIP_STORED
  if stored and not fortran:
    check = _crc_check(path, start, header_size, entry)
    load = raw_load(path, start + header_size, shape, dtype, check)
  else:
    order = 'F' if fortran else 'C'
    whole = functools.partial(_inflate, path, entry, header_size, shape, dtype, order)
    kept = functools.cache(whole)  # so that a stack is not inflated for each of its blocks
    load = checked(path, lambda part: whole() if part is None else kept()[part])
  if dtype == np.dtype('V2'):  # how numpy writes bfloat16
    return Tensor(shape, BFLOAT16, lambda part: load(part).view(BFLOAT16))
  return Tensor(shape, dtype, load)


def _inflate(
  path: epath.Path,
  entry: zipfile.ZipInfo,
  header_size: int,
  shape: tuple[int, ...],
  dtype: np.dtype,
  order: str,
) -> np.ndarray:
  """Reads a compressed or column-ordered array as a whole; `zipfile` checks its CRC.

  The header is not parsed again: Python 3.11 cannot always do that in several threads.
  """
  buffer = aligned(entry.file_size - header_size)
  with path.open('rb') as file, zipfile.ZipFile(file) as archive, archive.open(entry) as data:
    data.read(header_size)
    read_into(data, buffer)
    data.read(1)  # nothing, but only there it checks
  return buffer.view(dtype).reshape(shape, order=order)


def _crc_check(
  path: epath.Path, start: int, header_size: int, entry: zipfile.ZipInfo
) -> Callable[[np.ndarray | None], None]:
  """Compares the CRC of a stored entry; where only a part of it was read, by a pass of its own."""

  def compare(crc: int) -> None:
    if crc != entry.CRC:
      raise ValueError(f'the data of {entry.filename} have another CRC than written')

  @functools.cache
  def check_file() -> None:
    crc, rest = 0, np.empty(CHUNK, np.uint8)
    for offset in range(start, start + entry.file_size, CHUNK):
      chunk = rest[: min(CHUNK, start + entry.file_size - offset)]
      fill(path, offset, chunk)
      crc = zlib.crc32(chunk, crc)
    compare(crc)

  def check(data: np.ndarray | None) -> None:
    if data is None:
      return check_file()
    header = np.empty(header_size, np.uint8)
    fill(path, start, header)
    compare(zlib.crc32(data, zlib.crc32(header)))

  return check
