"""Bounded reads, atomic writes, the cache folder, local and remote paths, JSON objects.

Text is UTF-8, whatever the locale; reading and writing it is tried again after temporary errors.
"""

import errno
import json
import os
import pathlib
import secrets
import stat
from collections.abc import Callable
from typing import Any

from etils import epath

from vit_jax.errors import UserError
from vit_jax.retries import with_retries

MAX_TEXT = 100_000_000  # bytes of a text file
MAX_IMAGE = 2**30  # bytes of an image file: more than an uncompressed one of the most pixels
# Absent on Windows. A pipe is opened without waiting for a writer.
_NO_WAIT, _NO_LINK = getattr(os, 'O_NONBLOCK', 0), getattr(os, 'O_NOFOLLOW', 0)
_BINARY = getattr(os, 'O_BINARY', 0)


def cache_folder() -> epath.Path:
  """The local folder of downloads and indices: `$VIT_JAX_CACHE`, or ~/.cache/vit_jax."""
  folder = os.environ.get('VIT_JAX_CACHE') or '~/.cache/vit_jax'
  if is_remote(folder):
    raise UserError(f'VIT_JAX_CACHE is {folder}; it takes a local folder.')
  return epath.Path(folder).expanduser()


def is_remote(path: epath.PathLike) -> bool:
  """Returns True for a path in a bucket, such as gs://…, where files cannot be appended to."""
  return '://' in os.fspath(path)


def user_path(path: epath.PathLike) -> epath.Path:
  """The path that a user names, with ~ expanded; raises `UserError` for one that cannot exist."""
  if '\0' in os.fspath(path):
    raise UserError(f'{path} has a null character, which no path has.')
  try:
    os.fsencode(path)
    return epath.Path(path).expanduser()
  except UnicodeEncodeError:
    raise UserError(f'{path} is not text that can name a file.') from None
  except KeyError:  # xyz://…
    raise UserError(f'{path} is neither a local path nor one in a bucket (gs://…).') from None


def real_path(path: epath.Path) -> epath.Path:
  """The absolute path with links resolved; a remote path is returned unchanged."""
  return path if is_remote(path) else epath.Path(os.path.realpath(path))


def scratch_path(path: epath.Path) -> epath.Path:
  """A new temporary path in the folder of `path`, for a file or folder that will replace it."""
  return path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')


def is_special(path: epath.Path) -> bool:
  """Whether it is a pipe or a device: reading may never end, renaming over it destroys it."""
  if is_remote(path) or not os.path.exists(path):
    return False
  mode = os.stat(path).st_mode
  return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def read_bytes(path: epath.PathLike, limit: int = MAX_IMAGE) -> bytes:
  """Reads a file; raises `OSError` also for a pipe, a device, or more than `limit` bytes."""
  if is_remote(path):
    if epath.Path(path).stat().length > limit:
      raise _too_large(path, limit)
    return epath.Path(path).read_bytes()
  with open(open_to_read(path), 'rb', buffering=0) as file:
    if os.fstat(file.fileno()).st_size > limit:
      raise _too_large(path, limit)
    return file.read()


def _too_large(path: epath.PathLike, limit: int) -> OSError:
  return OSError(errno.EINVAL, f'it has more than {limit:,} bytes', os.fspath(path))


def _open_regular(path: epath.PathLike, flags: int) -> int:
  """Opens a local file, and never waits; raises `OSError` for a folder, a pipe or a device."""
  descriptor = os.open(path, flags | _NO_WAIT | _BINARY, 0o666)
  mode = os.fstat(descriptor).st_mode
  if stat.S_ISREG(mode):
    return descriptor
  os.close(descriptor)
  if stat.S_ISDIR(mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
  raise OSError(errno.EINVAL, 'it is a pipe or a device', os.fspath(path))


def open_to_read(path: epath.PathLike) -> int:
  """Opens a local file; raises `OSError` also for a folder, a pipe or a device."""
  return _open_regular(path, os.O_RDONLY)


def read_text(path: epath.PathLike) -> str:
  """Reads a text file; raises `OSError` as `read_bytes` does, or `ValueError` if it is not UTF-8.

  A byte order mark, as some editors write it, is dropped.
  """
  text = with_retries(read_bytes, path, MAX_TEXT).decode('utf-8-sig')
  return text.replace('\r\n', '\n').replace('\r', '\n')


def parse_json(text: str | bytes) -> Any:
  """Parses JSON; raises `ValueError` also for lists in lists beyond what Python can parse."""
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError('its JSON is nested too deeply') from None


def open_new(path: epath.PathLike) -> int:
  """Creates a local file; raises `OSError` if there is anything at `path`, even a broken link."""
  return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY, 0o666)


def open_to_resume(path: epath.PathLike) -> int:
  """Opens or creates a local file to read and append; raises `OSError` for a link or a pipe."""
  try:
    return _open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _NO_LINK)
  except OSError as error:
    if error.errno == errno.ELOOP:
      raise OSError(errno.ELOOP, 'it is a link', os.fspath(path)) from None
    raise


def write_atomically(
  path: epath.PathLike, write: Callable[[epath.Path], Any], *, sync: bool = False
) -> None:
  """Writes a file that appears complete or not at all.

  Args:
    path: the file to create or replace; links are followed.
    write: called with the path of a new, empty file in the same folder, which it overwrites.
    sync: return only when file and folder are on the disk (local paths only).

  Raises:
    OSError: when it cannot be written, or is a pipe or a device; `path` is then unchanged.
  """
  path = real_path(epath.Path(path))
  if is_special(path):
    raise OSError(errno.EINVAL, 'it is a pipe or a device', os.fspath(path))
  scratch = scratch_path(path)
  if not is_remote(scratch):
    os.close(open_new(scratch))
  try:
    write(scratch)
    if sync:
      _sync_to_disk(scratch)
    scratch.replace(path)
    if sync:
      _sync_to_disk(path.parent)
  finally:
    if scratch.exists():
      scratch.unlink()


def _sync_to_disk(path: epath.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes a text file atomically; an object in a bucket appears whole by itself."""
  content = text.encode()
  if is_remote(path):
    with_retries(epath.Path(path).write_bytes, content)
  else:
    with_retries(write_atomically, path, lambda scratch: scratch.write_bytes(content))


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Writes a local file atomically; returns when it is on the disk."""
  write_atomically(path, lambda scratch: scratch.write_bytes(content), sync=True)


def read_json_object(path: epath.Path) -> dict[str, Any]:
  """Reads a JSON object; raises `OSError` or, when the file holds anything else, `ValueError`."""
  content = parse_json(read_text(path))
  if not isinstance(content, dict):
    raise ValueError(f'{path.name} is not a JSON object')
  return content
