"""Tensors that stay in their file until they are read, and checks that all formats share."""

import contextlib
import dataclasses
import math
import mmap
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np
from etils import epath

from vit_jax.errors import UserError, first_line

MAX_TENSORS = 100_000
MAX_HEADER = 100_000_000  # bytes of a safetensors header, as in the safetensors library
METADATA_KEY = 'vit_jax'  # of `ModelMetadata` in a header, a comment or a config.json
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
Load = Callable[[slice | None], np.ndarray]  # reads rows of the first axis; None: all
CHUNK = 2**22  # bytes
CONTENT_ERRORS = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError)
_FORMAT_ERRORS = (struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error)
# What the standard library and NumPy raise for a damaged file.
READ_ERRORS = (*CONTENT_ERRORS, *_FORMAT_ERRORS, OSError, EOFError, SyntaxError, MemoryError)


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """An array that is read only when it is needed."""

  shape: tuple[int, ...]
  dtype: np.dtype
  load: Load

  @classmethod
  def from_array(cls, array: np.ndarray) -> 'Tensor':
    """Wraps an array that is in memory already."""
    return cls(array.shape, array.dtype, lambda rows: array[rows or ...])

  def read(self) -> np.ndarray:
    """Reads the whole array."""
    return self.load(None)

  def rows(self, start: int, stop: int) -> 'Tensor':
    """Rows of the first axis; of an uncompressed file only these are read."""
    shape = (stop - start, *self.shape[1:])
    return Tensor(shape, self.dtype, lambda rows: self.load(slice(start, stop))[rows or ...])

  def map(self, shape: tuple[int, ...], function: Callable[[np.ndarray], np.ndarray]) -> 'Tensor':
    """The result of `function`, an array of that shape, computed when it is read."""
    return Tensor(shape, self.dtype, lambda rows: function(self.read())[rows or ...])


@dataclasses.dataclass(frozen=True)
class TensorFile:
  """The content of a file."""

  path: epath.Path
  container: str  # 'npz', 'safetensors', 'PyTorch' or 'Orbax'
  tensors: dict[str, Tensor]  # by the name in the file
  # {key: text} in the header of a safetensors file or the comment of an npz file.
  metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


def check_names(path: epath.Path, names: Collection[str]) -> None:
  """Raises `UserError` for too many names, or one that is not fit for an error message."""
  if len(names) > MAX_TENSORS:
    raise UserError(f'{path} has {len(names):,} tensors; at most {MAX_TENSORS:,} are supported.')
  for name in names:
    if len(name) > 500 or not name.isprintable():
      raise UserError(f'{path} has a tensor with an invalid name: {name[:40]!r}.')


def check_declared_size(path: epath.Path, declared: int, size: int) -> None:
  """Raises `UserError` for more bytes of tensors than a file of `size` bytes can hold."""
  if declared > 50 * size + 2**26:  # trained weights hardly compress
    raise UserError(f'{path} declares {declared:,} bytes in a file of {size:,} bytes: a zip bomb.')


def is_shape(value: Any) -> bool:
  """Whether a sequence in a header is the shape of an array."""
  return len(value) <= 32 and all(type(x) is int and 0 <= x < 2**48 for x in value)


@contextlib.contextmanager
def damage_reported(path: epath.Path) -> Iterator[None]:
  """Turns the `READ_ERRORS` of a damaged file into a `UserError`; also a decorator."""
  try:
    yield
  except READ_ERRORS as error:
    raise UserError(f'{path} is damaged or truncated ({first_line(error)}).') from None


def read_at(path: epath.Path, offset: int, buffer: np.ndarray) -> None:
  """Fills `buffer` with the bytes at `offset`."""
  with path.open('rb') as file:
    file.seek(offset)
    read_into(file, buffer)


def read_into(file: IO[bytes], buffer: np.ndarray) -> None:
  """Fills `buffer` with the next bytes of `file`."""
  remaining = memoryview(buffer)
  while len(remaining):
    count = file.readinto(remaining[:CHUNK])  # pyright: ignore[reportAttributeAccessIssue]
    if not count:
      raise EOFError('it ends before its data does')
    remaining = remaining[count:]


def allocate_aligned(size: int) -> np.ndarray:
  """Allocates bytes at a multiple of 64, which JAX uses on a CPU without a copy.

  From 1 MiB they are mapped, because memory that threads allocate with malloc is not given back
  to the system. Private huge pages are ten times faster to fill.
  """
  if size < 2**20 or not hasattr(mmap, 'MAP_PRIVATE'):
    data = np.empty(size + 63, np.uint8)
    start = -data.ctypes.data % 64
    return data[start : start + size]
  memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
  with contextlib.suppress(AttributeError, OSError):  # systems without huge pages
    memory.madvise(mmap.MADV_HUGEPAGE)
  return np.frombuffer(memory, np.uint8)


def raw_load(
  path: epath.Path,
  offset: int,
  shape: tuple[int, ...],
  dtype: np.dtype,
  check: Callable[[np.ndarray | None], None] = lambda data: None,
) -> Load:
  """The `Tensor.load` of a C-ordered array at `offset`.

  `check` raises for damaged bytes; it is called with all of them, or with None after some rows.
  """
  row_bytes = math.prod(shape[1:]) * dtype.itemsize

  @damage_reported(path)
  def load(rows: slice | None) -> np.ndarray:
    start, stop, _ = (rows or slice(None)).indices(shape[0] if shape else 1)
    data = allocate_aligned((stop - start) * row_bytes)
    read_at(path, offset + start * row_bytes, data)
    check(data if rows is None else None)
    return data.view(dtype).reshape((stop - start, *shape[1:]) if shape else ())

  return load
