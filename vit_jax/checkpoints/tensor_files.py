"""Tensors in files: npz, safetensors, PyTorch state dicts.

Names, sizes and offsets are checked before anything is allocated; a tensor is read when it is
needed, and checked again then. Nothing in a file is ever executed.
"""

import dataclasses
import functools
import json
import math
import mmap
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from etils import epath

from vit_jax.errors import UserError, first_line

MAX_TENSORS = 100_000
_MAX_NAME, _MAX_DIMS, _MAX_DIM = 500, 32, 2**48
_MAX_HEADER = 100_000_000  # bytes of a safetensors header, as in the safetensors library
# Trained weights hardly compress; more than this is a zip bomb.
_MAX_COMPRESSION, _FREE_BYTES = 50, 2**26
_CHUNK = 2**22
_MAPPED_SIZE = 2**20
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_SAFETENSORS_DTYPES = {
    'F64': np.dtype('<f8'), 'F32': np.dtype('<f4'), 'F16': np.dtype('<f2'), 'BF16': _BFLOAT16,
    'I64': np.dtype('<i8'), 'I32': np.dtype('<i4'), 'I16': np.dtype('<i2'), 'I8': np.dtype('i1'),
    'U64': np.dtype('<u8'), 'U32': np.dtype('<u4'), 'U16': np.dtype('<u2'), 'U8': np.dtype('u1'),
    'BOOL': np.dtype('?'),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """An array that is read when it is needed.

  Attributes:
    shape, dtype: of what `read` returns.
    load: load(None) reads the whole, load(slice) a part of its first axis.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  load: Callable[[slice | None], np.ndarray]

  @classmethod
  def of(cls, array: np.ndarray) -> 'Tensor':
    """A tensor that is in memory already."""
    return cls(array.shape, array.dtype, lambda part: array if part is None else array[part])

  def read(self) -> np.ndarray:
    """The whole array."""
    return self.load(None)

  def rows(self, start: int, stop: int) -> 'Tensor':
    """A part of the first axis; from an uncompressed file no more than that is read."""

    def load(part: slice | None) -> np.ndarray:
      array = self.load(slice(start, stop))
      return array if part is None else array[part]

    return Tensor((stop - start, *self.shape[1:]), self.dtype, load)

  def map(self, shape: tuple[int, ...], function: Callable[[np.ndarray], np.ndarray]) -> 'Tensor':
    """`function` of the array, which gives it another shape."""

    def load(part: slice | None) -> np.ndarray:
      array = function(self.read())
      return array if part is None else array[part]

    return Tensor(shape, self.dtype, load)


@dataclasses.dataclass(frozen=True)
class TensorFile:
  """What a file holds.

  Attributes:
    path: where it is.
    container: 'npz', 'safetensors' or 'PyTorch'.
    tensors: {name in the file: tensor}.
    metadata: the strings in the header of a safetensors file.
  """

  path: epath.Path
  container: str
  tensors: dict[str, Tensor]
  metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_tensors(path: epath.PathLike) -> TensorFile:
  """Opens a file, whatever its name is; what it is shows in its first bytes.

  Raises:
    UserError: for a file that is missing, damaged, none of the three containers, or one whose
      sizes, names or offsets contradict each other.
  """
  path = epath.Path(path)
  try:
    size = path.stat().length
    with path.open('rb') as file:
      head = file.read(9)
      if not head:
        raise UserError(f'{path} is empty.')
      if head[:4] in (b'PK\x03\x04', b'PK\x05\x06'):
        return _read_zip(path, file, size)
      if head[8:9] == b'{':
        return _read_safetensors(path, file, size)
    if head[:6] == b'\x93NUMPY':
      raise UserError(f'{path} is a single array, not an npz archive of parameters.')
    if head[:2] in (b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05'):
      return _read_state_dict(path)
  except FileNotFoundError:
    raise UserError(f'There is no model at {path}.') from None
  except (IsADirectoryError, PermissionError) as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from None
  except _DAMAGE as error:
    raise UserError(f'{path} is damaged or truncated ({first_line(error)}).') from None
  raise UserError(f'{path} is no npz, no safetensors and no PyTorch file, or a damaged one.')


_DAMAGE = (
    OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, RuntimeError,
    ArithmeticError, SyntaxError, MemoryError, struct.error, tokenize.TokenError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def _check_names(path: epath.Path, names: Iterable[str]) -> None:
  """Raises unless the names are few, and such that a sentence can hold them."""
  names = list(names)
  if len(names) > MAX_TENSORS:
    raise UserError(f'{path} has {len(names):,} tensors; at most {MAX_TENSORS:,} are read.')
  for name in names:
    if len(name) > _MAX_NAME or not name.isprintable():
      raise UserError(f'{path} has a tensor with an odd name: {name[:40]!r}.')


def _is_shape(value: Any) -> bool:
  """Whether a value of a header is one that an array can have."""
  return len(value) <= _MAX_DIMS and all(type(x) is int and 0 <= x < _MAX_DIM for x in value)


def _checked(path: epath.Path, load: Callable[[slice | None], np.ndarray]):
  """`load`, whose failures are a `UserError` that names the file."""

  def checked(part: slice | None) -> np.ndarray:
    try:
      return load(part)
    except _DAMAGE as error:
      raise UserError(f'{path} is damaged or truncated ({first_line(error)}).') from None

  return checked


def _fill(path: epath.Path, offset: int, buffer: np.ndarray) -> None:
  """Reads the bytes at `offset` into `buffer`."""
  with path.open('rb') as file:
    file.seek(offset)
    rest = memoryview(buffer)
    while len(rest):
      count = file.readinto(rest[:2**30])
      if not count:
        raise EOFError('it ends before its data does')
      rest = rest[count:]


def _aligned(size: int) -> np.ndarray:
  """Fresh bytes at a multiple of 64, which JAX takes over on a CPU without a copy.

  Large ones are mapped: memory that threads allocate with malloc is not given back.
  """
  if size >= _MAPPED_SIZE:
    return np.frombuffer(mmap.mmap(-1, size), np.uint8)
  data = np.empty(size + 63, np.uint8)
  start = -data.ctypes.data % 64
  return data[start : start + size]


def _raw_load(
    path: epath.Path,
    offset: int,
    shape: tuple[int, ...],
    dtype: np.dtype,
    check: Callable[[np.ndarray | None], None] = lambda data: None,
) -> Callable[[slice | None], np.ndarray]:
  """How a C-ordered array at `offset` is read; `check` gets the bytes, None when only a part."""
  row_bytes = math.prod(shape[1:]) * dtype.itemsize

  def load(part: slice | None) -> np.ndarray:
    start, stop, _ = (part or slice(None)).indices(shape[0] if shape else 1)
    data = _aligned((stop - start) * row_bytes)
    _fill(path, offset + start * row_bytes, data)
    check(data if part is None else None)
    return data.view(dtype).reshape((stop - start, *shape[1:]) if shape else ())

  return _checked(path, load)


# --- npz ------------------------------------------------------------------------------------


def _read_zip(path: epath.Path, file: BinaryIO, size: int) -> TensorFile:
  with zipfile.ZipFile(file) as archive:
    entries = archive.infolist()
    names = [entry.filename.removesuffix('.npy') for entry in entries]
    _check_names(path, names)
    if len(set(names)) != len(names):
      raise UserError(f'{path} has two entries of the same name.')
    starts = _check_entries(path, file, entries, size, archive.start_dir)
    if any(name.endswith('/data.pkl') for name in names):
      return _read_state_dict(path)
    tensors = {
        name: _npy_entry(path, archive, entry, start)
        for name, entry, start in zip(names, entries, starts, strict=True)
    }
  return TensorFile(path, 'npz', tensors)


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
    }[version]
    shape, fortran, dtype = read_header(data)
    header_size = data.tell()
  if dtype.hasobject:
    raise UserError(
        f'{path} is not a plain npz file of arrays: {entry.filename} holds pickled Python '
        'objects, which are never loaded because that can run code.'
    )
  size = _is_shape(shape) and header_size + math.prod(shape) * dtype.itemsize
  if size != entry.file_size:
    raise UserError(f'{path}: the shape of {entry.filename} is not that of its data.')
  stored = entry.compress_type == zipfile.ZIP_STORED
  if stored and not fortran:
    check = _crc_check(path, start, header_size, entry)
    load = _raw_load(path, start + header_size, shape, dtype, check)
  else:
    load = _checked(path, functools.partial(_inflate, path, entry))
  if dtype == np.dtype('V2'):  # how numpy writes bfloat16
    return Tensor(shape, _BFLOAT16, lambda part: load(part).view(_BFLOAT16))
  return Tensor(shape, dtype, load)


def _inflate(path: epath.Path, entry: zipfile.ZipInfo, part: slice | None) -> np.ndarray:
  """Reads a compressed or column-ordered array as a whole; `zipfile` checks its CRC."""
  with path.open('rb') as file, zipfile.ZipFile(file) as archive, archive.open(entry) as data:
    array = np.lib.format.read_array(data, allow_pickle=False)
    if data.read(1):
      raise ValueError(f'{entry.filename} goes on behind its array')
  return array if part is None else array[part]


def _crc_check(
    path: epath.Path, start: int, header_size: int, entry: zipfile.ZipInfo
) -> Callable[[np.ndarray | None], None]:
  """Compares the CRC of a stored entry; where only a part of it was read, by a pass of its own."""

  def compare(crc: int) -> None:
    if crc != entry.CRC:
      raise ValueError(f'the data of {entry.filename} have another CRC than written')

  @functools.cache
  def check_file() -> None:
    crc, rest = 0, np.empty(_CHUNK, np.uint8)
    for offset in range(start, start + entry.file_size, _CHUNK):
      chunk = rest[: min(_CHUNK, start + entry.file_size - offset)]
      _fill(path, offset, chunk)
      crc = zlib.crc32(chunk, crc)
    compare(crc)

  def check(data: np.ndarray | None) -> None:
    if data is None:
      return check_file()
    header = np.empty(header_size, np.uint8)
    _fill(path, start, header)
    compare(zlib.crc32(data, zlib.crc32(header)))

  return check


# --- safetensors ----------------------------------------------------------------------------


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    raise ValueError('a name stands twice in the header')
  return found


def _read_safetensors(path: epath.Path, file: BinaryIO, size: int) -> TensorFile:
  file.seek(0)
  length = int.from_bytes(file.read(8), 'little')
  if length > min(_MAX_HEADER, size - 8):
    raise UserError(f'{path} declares a header of {length:,} bytes; it is damaged or truncated.')
  header = json.loads(file.read(length).decode('utf-8'), object_pairs_hook=_no_duplicates)
  metadata = header.pop('__metadata__', {})
  if not isinstance(metadata, dict) or not all(type(x) is str for x in metadata.values()):
    raise UserError(f'{path}: __metadata__ in its header is no table of strings.')
  _check_names(path, header)
  tensors, parts = {}, []
  for name, entry in header.items():
    shape, dtype, begin, end = _safetensors_entry(path, name, entry)
    tensors[name] = Tensor(shape, dtype, _raw_load(path, 8 + length + begin, shape, dtype))
    parts.append((begin, end))
  position = 0
  for begin, end in sorted(parts):
    if begin != position:
      raise UserError(f'{path}: its header leaves holes or overlaps between tensors.')
    position = end
  if 8 + length + position != size:
    raise UserError(
        f'{path} is truncated or has too much: its header tells of {8 + length + position:,} '
        f'bytes, the file has {size:,}.'
    )
  return TensorFile(path, 'safetensors', tensors, metadata)


def _safetensors_entry(
    path: epath.Path, name: str, entry: Any
) -> tuple[tuple[int, ...], np.dtype, int, int]:
  """(shape, dtype, begin, end) of one entry of the header."""
  if isinstance(entry, dict) and entry.keys() == {'dtype', 'shape', 'data_offsets'}:
    dtype = _SAFETENSORS_DTYPES.get(entry['dtype']) if type(entry['dtype']) is str else None
    shape, offsets = entry['shape'], entry['data_offsets']
    if dtype is None:
      raise UserError(f'{path}: {name} is of the unknown type {str(entry["dtype"])[:20]!r}.')
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if lists and _is_shape(shape) and _is_shape(offsets):
      begin, end = offsets
      if end - begin == math.prod(shape) * dtype.itemsize:
        return tuple(shape), dtype, begin, end
  raise UserError(f'{path}: the header contradicts itself about {name}.')


# --- PyTorch --------------------------------------------------------------------------------


def _read_state_dict(path: epath.Path) -> TensorFile:
  """A state dict, by PyTorch's own reader of weights, which runs nothing."""
  try:
    import torch
  except ImportError:
    raise UserError(
        f'{path} is a pickled file, a PyTorch state dict perhaps; only PyTorch reads it '
        "(pip install 'vit_jax[torch]'), or save it as .safetensors."
    ) from None
  try:
    with path.open('rb') as file:
      loaded = torch.load(file, map_location='cpu', weights_only=True)
  except Exception as error:  # noqa: BLE001 - torch raises a dozen kinds
    raise UserError(
        f'{path} is no state dict that PyTorch reads with weights_only=True '
        f'({first_line(error)}).'
    ) from None
  for key in ('state_dict', 'model_state_dict', 'model'):
    if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
      loaded = loaded[key]
  if not isinstance(loaded, Mapping) or not any(map(torch.is_tensor, loaded.values())):
    raise UserError(f'{path} is a PyTorch file, but no state dict of tensors.')

  def to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
      return tensor.view(torch.int16).numpy().view(_BFLOAT16)
    return tensor.numpy()

  try:
    tensors = {
        str(name): Tensor.of(to_numpy(tensor))
        for name, tensor in loaded.items()
        if torch.is_tensor(tensor)
    }
  except (TypeError, RuntimeError) as error:
    raise UserError(f'{path} has tensors of an unknown type ({first_line(error)}).') from None
  _check_names(path, tensors)
  return TensorFile(path, 'PyTorch', tensors)
