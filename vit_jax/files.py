"""Atomic writes, the cache folder, local and remote paths, JSON objects."""

import json
import os
import pathlib
import secrets
from collections.abc import Callable
from typing import Any

from etils import epath

from vit_jax.errors import UserError


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
  try:
    return epath.Path(path).expanduser()
  except KeyError:  # xyz://…
    raise UserError(f'{path} is neither a local path nor one in a bucket (gs://…).') from None


def real_path(path: epath.Path) -> epath.Path:
  """The absolute path with links resolved; a remote path is returned unchanged."""
  return path if is_remote(path) else epath.Path(os.path.realpath(path))


def scratch_path(path: epath.Path) -> epath.Path:
  """A new temporary path in the folder of `path`, for a file or folder that will replace it."""
  return path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')


def write_atomically(
  path: epath.PathLike, write: Callable[[epath.Path], Any], *, sync: bool = False
) -> None:
  """Writes a file that appears complete or not at all.

  Args:
    path: the file to create or replace; links are followed.
    write: called with a temporary path in the same folder, to which it writes the file.
    sync: return only when file and folder are on the disk (local paths only).

  Raises:
    OSError: when it cannot be written; `path` is then unchanged.
  """
  path = real_path(epath.Path(path))
  scratch = scratch_path(path)
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
  """Writes a text file atomically."""
  write_atomically(path, lambda scratch: scratch.write_text(text))


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Writes a local file atomically; returns when it is on the disk."""
  write_atomically(path, lambda scratch: scratch.write_bytes(content), sync=True)


def read_json_object(path: epath.Path) -> dict[str, Any]:
  """Reads a JSON object; raises `OSError` or, when the file holds anything else, `ValueError`."""
  content = json.loads(path.read_text())
  if not isinstance(content, dict):
    raise ValueError(f'{path.name} is not a JSON object')
  return content
