"""The files below a folder."""

import os

from etils import epath

from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.errors import UserError

# What operating systems leave in folders, beside hidden files.
_SYSTEM_FOLDERS = ('__MACOSX', '$RECYCLE.BIN', 'System Volume Information')
_SYSTEM_FILES = ('Thumbs.db', 'desktop.ini')


def all_files(folder: epath.PathLike) -> list[str]:
  """Lists all files below a folder, as sorted paths relative to it.

  Hidden files, and those that operating systems leave, are left out.

  Raises:
    UserError: for a folder that cannot be listed.
  """

  def raise_user_error(error: OSError) -> None:
    raise UserError(f'{error.filename} cannot be read: {error.strerror}.')

  folder, files, visited = os.fspath(folder), [], set()
  for parent, folders, names in os.walk(folder, followlinks=True, onerror=raise_user_error):
    if os.path.realpath(parent) in visited:  # a cycle of links
      folders.clear()
      continue
    visited.add(os.path.realpath(parent))
    folders[:] = sorted(f for f in folders if not f.startswith('.') and f not in _SYSTEM_FOLDERS)
    prefix = '' if parent == folder else os.path.relpath(parent, folder)
    files += [
      os.path.join(prefix, name)
      for name in names
      if not name.startswith('.') and name not in _SYSTEM_FILES
    ]
  return sorted(files)


def is_image(file: str) -> bool:
  """Whether the suffix of a file is that of an image."""
  return file.lower().endswith(SUFFIXES)


def image_files(folder: epath.PathLike) -> list[str]:
  """Lists the images as `all_files` does; raises `UserError` for a folder that it cannot list."""
  return list(filter(is_image, all_files(folder)))
