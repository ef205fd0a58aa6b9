"""npz files: headers are checked before anything is allocated, CRCs when data is read."""

import functools
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import IO

import numpy as np
from etils import epath

from vit_jax.errors import UserError
from vit_jax.weights.formats import lazy_tensor
from vit_jax.weights.formats.lazy_tensor import BFLOAT16, METADATA_KEY, Load, Tensor, TensorFile
from vit_jax.weights.formats.state_dict import read_state_dict

_MAX_COMMENT = 2**16 - 100  # bytes; a comment in a zip holds little more


def write_npz_file(
  path: epath.PathLike, arrays: Mapping[str, np.ndarray], metadata: str = ''
) -> None:
  """Writes arrays as `numpy.savez` does.

  The metadata, JSON, goes into the zip's comment and, beyond 64 KiB, into the comments of its
  entries, which other readers ignore.

  Raises:
    UserError: for metadata beyond 64 KiB times the number of entries.
  """
  data = metadata.encode()
  first, *others = (data[i : i + _MAX_COMMENT] for i in range(0, len(data) or 1, _MAX_COMMENT))
  if len(others) > len(arrays):
    raise UserError(
      f'The labels have {len(data):,} bytes, which an .npz of {len(arrays)} tensors cannot hold; '
      'write a folder or a .safetensors.'
    )
  with epath.Path(path).open('wb') as file, zipfile.ZipFile(file, 'w') as archive:
    for name, array in arrays.items():
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as entry:
        np.lib.format.write_array(entry, array, allow_pickle=False)
    for entry, comment in zip(archive.infolist(), others, strict=False):
      entry.comment = comment
    if metadata:
      archive.comment = f'{METADATA_KEY} {zlib.crc32(data):08x} '.encode() + first


def _read_metadata(path: epath.Path, archive: zipfile.ZipFile) -> dict[str, str]:
  pattern = METADATA_KEY.encode() + rb' ([0-9a-f]{8}) (.*)'
  match = re.fullmatch(pattern, archive.comment, re.DOTALL)
  if match is None:
    return {}
  data = match[2] + b''.join(entry.comment for entry in archive.infolist())
  if zlib.crc32(data) != int(match[1], 16):
    raise UserError(f'{path} is damaged: the CRC of its comment does not match.')
  return {METADATA_KEY: data.decode()}


def read_npz(path: epath.Path, file: IO[bytes], size: int) -> TensorFile:
  """Opens an npz file, or a PyTorch state dict, which is a zip too.

  Args:
    path, file, size: of the file: its path, the open file, its bytes.

  Raises:
    UserError, `READ_ERRORS`: for a damaged file.
  """
  with zipfile.ZipFile(file) as archive:
    entries = archive.infolist()
    names = [entry.filename.removesuffix('.npy') for entry in entries]
    lazy_tensor.check_names(path, names)
    if len(set(names)) != len(names):
      raise UserError(f'{path} has two entries of the same name.')
    starts = _check_entries(path, file, entries, size, archive.start_dir)
    if any(name.endswith('/data.pkl') for name in names):
      is_torchscript = any(name.endswith('/constants.pkl') for name in names)
      return read_state_dict(path, is_torchscript)
    tensors = {
      name: _npy_entry(path, archive, entry, starts[entry.filename])
      for name, entry in zip(names, entries, strict=True)
    }
    return TensorFile(path, 'npz', tensors, _read_metadata(path, archive))


def _check_entries(
  path: epath.Path, file: IO[bytes], entries: list[zipfile.ZipInfo], size: int, end: int
) -> dict[str, int]:
  """The offset of the data of each entry.

  Raises `UserError` unless the entries fill the file up to the zip's directory at `end`; a gap may
  hold only the 24 bytes of a data descriptor, so that no entry can be lost.
  """
  lazy_tensor.check_declared_size(path, sum(entry.file_size for entry in entries), size)
  starts, position, slack = {}, 0, 0
  for entry in sorted(entries, key=lambda entry: entry.header_offset):
    name, is_stored = entry.filename, entry.compress_type == zipfile.ZIP_STORED
    if entry.flag_bits & 1 or not (is_stored or entry.compress_type == zipfile.ZIP_DEFLATED):
      raise UserError(f'{path}: {name} is encrypted, or its compression is not supported.')
    if is_stored and entry.compress_size != entry.file_size:
      raise UserError(f'{path}: the compressed and the uncompressed size of {name} differ.')
    if not position <= entry.header_offset <= position + slack:
      raise UserError(f'{path}: {name} overlaps another entry, or leaves a gap.')
    file.seek(entry.header_offset + 26)
    lengths = struct.unpack('<HH', file.read(4))  # of the name and the extra field
    starts[name] = entry.header_offset + 30 + sum(lengths)
    position = starts[name] + entry.compress_size
    slack = 24 if entry.flag_bits & 8 else 0
  if not position <= end <= position + slack:
    raise UserError(f'{path}: its entries do not end where its directory starts.')
  return starts


def _npy_entry(
  path: epath.Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, start: int
) -> Tensor:
  """One array of an npz file: its header is read and checked now, its data later."""
  with archive.open(entry) as data:
    version = np.lib.format.read_magic(data)
    if version == (1, 0):
      shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(data)
    elif version == (2, 0):
      shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(data)
    else:
      raise ValueError(f'{entry.filename} has the unknown version {version}')
    header_size = data.tell()
  if dtype.hasobject:
    raise UserError(
      f'{path} is not a plain npz file: {entry.filename} holds pickled Python objects, which are '
      'never loaded because that can run code.'
    )
  size = lazy_tensor.is_shape(shape) and header_size + math.prod(shape) * dtype.itemsize
  if size != entry.file_size:
    raise UserError(f'{path}: the shape of {entry.filename} does not match its data.')
  if entry.compress_type == zipfile.ZIP_STORED and not is_fortran:
    check = _crc_check(path, start, header_size, entry)
    load = lazy_tensor.raw_load(path, start + header_size, shape, dtype, check)
  else:
    load = _whole_load(path, entry, header_size, shape, dtype, is_fortran)
  if dtype == np.dtype('V2'):  # how NumPy writes bfloat16
    return Tensor(shape, BFLOAT16, lambda rows: load(rows).view(BFLOAT16))
  return Tensor(shape, dtype, load)


def _whole_load(
  path: epath.Path,
  entry: zipfile.ZipInfo,
  header_size: int,
  shape: tuple[int, ...],
  dtype: np.dtype,
  is_fortran: bool,
) -> Load:
  """The `Tensor.load` of a compressed or Fortran-ordered array; `zipfile` checks its CRC.

  The header is not parsed again: Python 3.11 cannot always do that in several threads.
  """

  def read() -> np.ndarray:
    buffer = lazy_tensor.allocate_aligned(entry.file_size - header_size)
    with path.open('rb') as file, zipfile.ZipFile(file) as archive, archive.open(entry) as data:
      data.read(header_size)
      lazy_tensor.read_into(data, buffer)
      data.read(1)  # the end, where the CRC is checked
    return buffer.view(dtype).reshape(shape, order='F' if is_fortran else 'C')

  read_once = functools.cache(read)  # so that a stack is not inflated for each of its blocks
  reported = lazy_tensor.damage_reported(path)
  return reported(lambda rows: read() if rows is None else read_once()[rows])


def _crc_check(
  path: epath.Path, start: int, header_size: int, entry: zipfile.ZipInfo
) -> Callable[[np.ndarray | None], None]:
  """A `check` for `raw_load` that compares the CRC of a stored entry.

  When only some rows were read, the whole entry is read once to check it.
  """

  def crc_of(offset: int, size: int, crc: int = 0) -> int:
    data = np.empty(size, np.uint8)
    lazy_tensor.read_at(path, offset, data)
    return zlib.crc32(data, crc)

  def compare(crc: int) -> None:
    if crc != entry.CRC:
      raise ValueError(f'the CRC of {entry.filename} does not match its data')

  @functools.cache
  def check_file() -> None:
    crc, end = 0, start + entry.file_size
    for offset in range(start, end, lazy_tensor.CHUNK):
      crc = crc_of(offset, min(lazy_tensor.CHUNK, end - offset), crc)
    compare(crc)

  def check(data: np.ndarray | None) -> None:
    if data is None:
      check_file()
    else:
      compare(zlib.crc32(data, crc_of(start, header_size)))

  return check
