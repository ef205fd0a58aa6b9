"""Tensors that stay in their file until they are read, and what all kinds of files share."""

import contextlib
import dataclasses
import math
import mmap
import os
import stat
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
MAX_HEADER = 100_000_000  # bytes of a safetensors header, as in the safetensors library
FACTS = 'vit_jax'  # where our own facts stand in a file of tensors
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
CHUNK = 2**22
_MAX_NAME, _MAX_DIMS, _MAX_DIM = 500, 32, 2**48
_MAPPED_SIZE = 2**20
# What reading a damaged file raises, in Python's own modules and in numpy's.
DAMAGE = (
  OSError,
  EOFError,
  LookupError,
  ValueError,
  TypeError,
  AttributeError,
  RuntimeError,
  ArithmeticError,
  SyntaxError,
  MemoryError,
  struct.error,
  tokenize.TokenError,
  zipfile.BadZipFile,
  zlib.error,
)


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


def is_special(path: epath.Path) -> bool:
  """Whether it is a pipe or a device: reading may never end, renaming over it destroys it."""
  if '://' in os.fspath(path) or not os.path.exists(path):
    return False
  mode = os.stat(path).st_mode
  return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def read_text(path: epath.Path) -> str:
  """A file beside the tensors.

  Raises:
    OSError, ValueError: for one that is not there, too large or no text.
  """
  if is_special(path):
    raise ValueError(f'{path.name} is a pipe or a device')
  if path.stat().length > MAX_HEADER:
    raise ValueError(f'{path.name} has more than {MAX_HEADER:,} bytes')
  return path.read_text()


def check_names(path: epath.Path, names: Iterable[str]) -> None:
  """Raises unless the names are few, and such that a sentence can hold them."""
  names = list(names)
  if len(names) > MAX_TENSORS:
    raise UserError(f'{path} has {len(names):,} tensors; at most {MAX_TENSORS:,} are read.')
  for name in names:
    if len(name) > _MAX_NAME or not name.isprintable():
      raise UserError(f'{path} has a tensor with an odd name: {name[:40]!r}.')


def is_shape(value: Any) -> bool:
  """Whether a value of a header is one that an array can have."""
  return len(value) <= _MAX_DIMS and all(type(x) is int and 0 <= x < _MAX_DIM for x in value)


def checked(path: epath.Path, load: Callable[[slice | None], np.ndarray]):
  """`load`, whose failures are a `UserError` that names the file."""

  def checked(part: slice | None) -> np.ndarray:
    try:
      return load(part)
    except DAMAGE as error:
      raise UserError(f'{path} is damaged or truncated ({first_line(error)}).') from None

  return checked


def fill(path: epath.Path, offset: int, buffer: np.ndarray) -> None:
  """Reads the bytes at `offset` into `buffer`."""
  with path.open('rb') as file:
    file.seek(offset)
    read_into(file, buffer)


def read_into(file: BinaryIO, buffer: np.ndarray) -> None:
  rest = memoryview(buffer)
  while len(rest):
    count = file.readinto(rest[:CHUNK])
    if not count:
      raise EOFError('it ends before its data does')
    rest = rest[count:]


def aligned(size: int) -> np.ndarray:
  """Fresh bytes at a multiple of 64, which JAX takes over on a CPU without a copy.

  Large ones are mapped: memory that threads allocate with malloc is not given back. Private and
  in huge pages it is ten times faster to fill.
  """
  if size < _MAPPED_SIZE or not hasattr(mmap, 'MAP_PRIVATE'):
    data = np.empty(size + 63, np.uint8)
    start = -data.ctypes.data % 64
    return data[start : start + size]
  memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
  with contextlib.suppress(AttributeError, OSError):  # where there are no huge pages
    memory.madvise(mmap.MADV_HUGEPAGE)
  return np.frombuffer(memory, np.uint8)


def raw_load(
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
    data = aligned((stop - start) * row_bytes)
    fill(path, offset + start * row_bytes, data)
    check(data if part is None else None)
    return data.view(dtype).reshape((stop - start, *shape[1:]) if shape else ())

  return checked(path, load)
