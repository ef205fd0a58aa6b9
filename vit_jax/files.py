"""Files that appear whole or not at all, the cache folder, and JSON that others wrote."""

import json
import os
import pathlib
import secrets
from collections.abc import Callable
from typing import Any

from etils import epath

from vit_jax.errors import UserError


def cache_folder() -> epath.Path:
  """Where downloads and indices are kept: `$VIT_JAX_CACHE`, or ~/.cache/vit_jax.

  Raises:
    UserError: when it is not a local folder.
  """
  folder = os.environ.get('VIT_JAX_CACHE') or '~/.cache/vit_jax'
  if '://' in folder:
    raise UserError(f'VIT_JAX_CACHE is {folder}; it takes a local folder.')
  return epath.Path(folder).expanduser()


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path is in a bucket, such as gs://…, where files cannot grow."""
  return '://' in os.fspath(path)


def real_path(path: epath.Path) -> epath.Path:
  """Where links lead; a local path becomes absolute."""
  return path if is_remote(path) else epath.Path(os.path.realpath(path))


def scratch_path(path: epath.Path) -> epath.Path:
  """An unused name beside `path`, for what will replace it."""
  return path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')


def write_atomically(
  path: epath.PathLike, write: Callable[[epath.Path], Any], *, sync: bool = False
) -> None:
  """Lets `write` create a file that replaces `path` once it is complete.

  Args:
    path: the file; links are followed.
    write: called with the path of a temporary file beside it.
    sync: return only when file and folder are on the disk (local paths).

  Raises:
    OSError: when it cannot be written; `path` is then as it was.
  """
  path = real_path(epath.Path(path))
  part = scratch_path(path)
  try:
    write(part)
    if sync:
      sync_to_disk(part)
    part.replace(path)
    if sync:
      sync_to_disk(path.parent)
  finally:
    if part.exists():
      part.unlink()


def sync_to_disk(path: epath.PathLike) -> None:
  """Waits until a local file, or the entries of a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes a text file atomically."""
  write_atomically(path, lambda part: part.write_text(text))


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Writes a local file atomically, and waits until it is on the disk."""
  write_atomically(path, lambda part: part.write_bytes(content), sync=True)


def read_json_object(path: epath.Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    OSError: when it cannot be read.
    ValueError: when it is not a JSON object.
  """
  content = json.loads(path.read_text())
  if not isinstance(content, dict):
    raise ValueError(f'{path.name} is not a JSON object')
  return content
