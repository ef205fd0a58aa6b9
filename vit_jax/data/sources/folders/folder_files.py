"""The options after the path of a folder, and the files below it."""

import os
import pathlib

from etils import epath

from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.data.sources.folders.folder_advice import TABLES
from vit_jax.errors import MissingDataError, UserError
from vit_jax.files import user_path

_OPTIONS = ('pattern', 'group', 'fold')

# What operating systems leave in folders, beside hidden files.
_SYSTEM_FOLDERS = ('__MACOSX', '$RECYCLE.BIN', 'System Volume Information')
_SYSTEM_FILES = ('Thumbs.db', 'desktop.ini')


def parse_path(path: str) -> tuple[epath.Path, dict[str, str]]:
  """Splits '/path?key=value&…' into the folder and the options; raises `UserError`."""
  root, options = path, dict[str, str]()
  if not pathlib.Path(path).expanduser().exists():
    root, _, query = path.partition('?')
    for option in filter(None, query.split('&')):
      key, _, value = option.partition('=')
      options[key] = value
  for option in options:
    if option not in _OPTIONS or not options[option]:
      raise UserError(
        f'folder:{path} has the unknown option {option!r}; those of folder: are '
        f'{", ".join(_OPTIONS)}, as in folder:/path?fold=2/5.'
      )
  root = user_path(root)
  if not root.is_dir():
    is_table = root.suffix in TABLES and root.exists()
    advice = f'; use table:{root}' if is_table else ''
    raise MissingDataError(
      f'There is no folder {root}; folder: takes a folder with one sub-folder of images per '
      f'class, or with train/ and test/ folders of that kind{advice}.'
    )
  return root, options


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
