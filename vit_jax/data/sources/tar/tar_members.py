"""Reads tar files in place: the offset of each file in it, and any range of bytes."""

import io
import os
import tarfile
from collections.abc import Iterator

from vit_jax.errors import UserError, first_line
from vit_jax.files import open_to_read

_MAX_HEADER = 2**24  # bytes of an extended header, which has a name of 256 or so


class _Window(io.RawIOBase):
  """A range of bytes of a file, with the methods that tarfile needs to read a tar in it."""

  def __init__(self, descriptor: int, start: int, size: int):
    self._descriptor, self._start, self._size, self._position = descriptor, start, size, 0

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    self._position = (0, self._position, self._size)[whence] + offset
    return self._position

  def readable(self) -> bool:
    return True

  def read(self, size: int = -1) -> bytes:
    remaining = max(0, self._size - self._position)
    count = remaining if size < 0 else min(size, remaining)
    if count > _MAX_HEADER:  # tarfile reads nothing else
      raise tarfile.ReadError(f'a header of {count:,} bytes')
    data = os.pread(self._descriptor, count, self._start + self._position) if count else b''
    self._position += len(data)
    return data


def read_range(path: str, offset: int, size: int) -> bytes:
  """Reads the bytes [offset, offset + size) of a file; fewer at its end."""
  with open(path, 'rb', buffering=0) as file:
    return os.pread(file.fileno(), size, offset)


def members(path: str, start: int = 0, size: int | None = None) -> Iterator[tuple[str, int, int]]:
  """Yields (name, offset in `path`, size in bytes) of the regular files in a tar.

  Args:
    path: the tar file, or one that contains the tar as a member.
    start: offset of the tar in `path`.
    size: of the tar in bytes; None for the rest of the file.

  Raises:
    UserError: for a file that is not a tar, is damaged or truncated, or cannot be read.
  """
  try:
    descriptor = open_to_read(path)
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from None
  try:
    window = _Window(descriptor, start, os.fstat(descriptor).st_size if size is None else size)
    with tarfile.open(fileobj=window, mode='r:') as tar:
      while member := tar.next():
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue] - it would keep them all
        if member.isreg():
          yield member.name, start + member.offset_data, member.size
      window.seek(tar.offset)  # tarfile takes a damaged header for the end
      if window.read(512) != bytes(512):
        position = start + tar.offset
        raise tarfile.ReadError(f'neither a header nor an end marker at byte {position:,}')
  except Exception as error:  # noqa: BLE001 - tarfile raises a dozen types for damaged headers
    reason = first_line(error)
    raise UserError(f'{path} is not a complete tar file ({reason}); copy it again.') from None
  finally:
    os.close(descriptor)
