"""Tar files read in place: what lies where, and any range of bytes from any process."""

import io
import os
import tarfile
from collections.abc import Iterator

from vit_jax.errors import UserError, first_line


class _Window(io.RawIOBase):
  """A range of bytes of a file, as a file; tars inside of a tar are read through it."""

  def __init__(self, descriptor: int, start: int, size: int):
    self._descriptor, self._start, self._size, self._at = descriptor, start, size, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
    return self._at

  def tell(self) -> int:
    return self._at

  def readinto(self, buffer: memoryview) -> int:
    count = max(0, min(len(buffer), self._size - self._at))
    data = os.pread(self._descriptor, count, self._start + self._at)
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)


def read_range(path: str, offset: int, size: int) -> bytes:
  """The bytes [offset, offset + size) of a file; fewer where it ends."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    return os.pread(descriptor, size, offset)
  finally:
    os.close(descriptor)


def members(path: str, start: int = 0, size: int | None = None) -> Iterator[tuple[str, int, int]]:
  """(name, offset in the file, bytes) of the files in a tar, or in one that lies in a tar.

  Args:
    path: the file.
    start, size: where the tar lies in it.

  Raises:
    UserError: when it is no tar or cut short.
  """
  try:
    descriptor = os.open(path, os.O_RDONLY)
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from None
  try:
    window = _Window(descriptor, start, os.fstat(descriptor).st_size if size is None else size)
    with tarfile.open(fileobj=window, mode='r:') as tar:
      while member := tar.next():
        tar.members = []  # it keeps them all
        if member.isreg():
          yield member.name, start + member.offset_data, member.size
      window.seek(tar.offset)  # to tarfile a damaged header is an end like any other
      if window.read(512) != bytes(512):
        raise tarfile.ReadError(f'neither a header nor an end at byte {start + tar.offset:,}')
  except (tarfile.TarError, OSError) as error:
    raise UserError(f'{path} is no whole tar file ({first_line(error)}); copy it again.') from None
  finally:
    os.close(descriptor)
