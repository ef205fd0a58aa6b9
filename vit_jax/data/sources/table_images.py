"""Finds the image files that the rows of a table name; lists folders, and opens no file."""

import functools
import os
import posixpath
from collections.abc import Sequence

from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.data.sources.table_columns import split_in_name
from vit_jax.errors import UserError

_MAX_FOLDERS = 64  # in which images are looked for, beside those that the names tell
_SAMPLE = 1000  # names that tell which of these folders hold the images


class _Folder:
  """The visible files of a folder, listed once."""

  def __init__(self, path: str):
    try:
      with os.scandir(path) as entries:
        self._files = {e.name for e in entries if not e.name.startswith('.') and not e.is_dir()}
    except (OSError, ValueError):  # ValueError: a NUL in the path
      self._files = set()
    self._path, self._ambiguous = path, {}

  @functools.cached_property
  def _by_stem(self) -> dict[str, str]:
    files: dict[str, str] = {}
    for file in self._files:
      stem, dot, suffix = file.rpartition('.')
      if dot + suffix.lower() in SUFFIXES and (other := files.setdefault(stem, file)) != file:
        self._ambiguous[stem] = ' and '.join(sorted((other, file)))
    return files

  def find(self, name: str) -> str | None:
    """The file called `name`, with the ending of an image or without."""
    if name in self._files:
      return name
    file = self._by_stem.get(name)
    if name in self._ambiguous:
      raise UserError(
        f'{self._path} has both {self._ambiguous[name]} for the name {name!r}; put the ending into '
        'the table.'
      )
    return file


def folder_stamp(path: str) -> int:
  """The time of the last change to the list of files in a folder (ns); 0 if it cannot be read."""
  try:
    return os.stat(path).st_mtime_ns
  except (OSError, ValueError):
    return 0


class _Folders:
  """Finds names below several folders; `stamps` has those that it listed."""

  def __init__(self, root: str):
    self._root, self._listed = root, {}
    self.stamps: dict[str, int] = {}

  def find(self, folder: str, name: str) -> str | None:
    """The file of a name in a folder below the root, as a path relative to the root."""
    parent, _, base = f'{folder}{name}'.rpartition('/')
    if parent not in self._listed:
      path = os.path.join(self._root, parent)
      self.stamps[path] = folder_stamp(path)
      self._listed[parent] = _Folder(path)
    file = self._listed[parent].find(base)
    return f'{parent}/{file}' if file and parent else file


def _sub_folders(path: str) -> list[str]:
  try:
    with os.scandir(path) as entries:
      return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith('.'))
  except OSError:
    return []


def _candidates(root: str, table: str) -> list[str]:
  """Folders 'images/' and 'images/train/' below the root; few, or none are looked into.

  Beside train.csv, a folder test/ does not count.
  """
  split = split_in_name(os.path.splitext(os.path.basename(table))[0])

  def is_other_split(name: str) -> bool:
    return bool(split) and split_in_name(name) not in ('', split)

  folders = [name for name in _sub_folders(root) if not is_other_split(name)]
  if len(folders) > _MAX_FOLDERS:
    return []
  for name in tuple(folders):
    inner = _sub_folders(os.path.join(root, name))
    folders += [f'{name}/{each}' for each in inner if not is_other_split(each)]
  return [f'{name}/' for name in folders] if len(folders) <= _MAX_FOLDERS else []


def _relative(name: str, root: str, table: str) -> str:
  """A name with '/' between folders, relative to the root; `UserError` if it leaves that."""
  path = name.replace('\\', '/')
  if '/' not in path:
    return path
  if os.path.isabs(path):
    path = os.path.normpath(path)
    for folder in (os.path.abspath(root), os.path.realpath(root)):
      if path.startswith(os.path.join(folder, '')):
        return os.path.relpath(path, folder).replace(os.sep, '/')
    raise UserError(
      f'{table} names {name}, outside {os.path.abspath(root)}; name the folder of the images, as '
      f'in ?root={os.path.dirname(path)}.'
    )
  path = posixpath.normpath(path)
  if path == '..' or path.startswith('../'):
    raise UserError(
      f'{table} names {name}, outside {root}; names are relative to this folder, or to another one '
      'that you name as ?root=….'
    )
  return path


def find_images(
  root: str, names: Sequence[str], table: str
) -> tuple[list[str | None], dict[str, int]]:
  """Finds the file of each name: as written, or with an ending, in `root` or in a folder of it.

  Each folder is listed once; no file is opened.

  Args:
    root: the folder that names are relative to.
    names: as the rows of a table have them: '1', '1.jpg', 'train/1.jpg', 'train\\1.jpg', or a path
      that starts with `root`.
    table: the path of the table.

  Returns:
    For each name its file relative to the root, with '/' between folders; None if it is missing.
    And the folders that were listed, with their `folder_stamp`.

  Raises:
    UserError: for a name that leaves the root, or fits two files.
  """
  folders = _Folders(root)
  paths = [_relative(name, root, table) for name in names]
  files = [folders.find('', path) for path in paths]
  missing = [i for i, file in enumerate(files) if file is None]
  if not missing:
    return files, folders.stamps
  sample = [paths[i] for i in missing[:: max(1, len(missing) // _SAMPLE)]]
  candidates = [
    folder
    for folder in _candidates(root, table)
    if any(folders.find(folder, path) for path in sample)
  ]
  for i in missing:
    matches = [file for folder in candidates if (file := folders.find(folder, paths[i]))]
    if len(matches) > 1:
      raise UserError(
        f'{names[i]!r} in {table} fits both {matches[0]} and {matches[1]} in {root}; name the '
        f'folder as ?root={os.path.dirname(matches[0])}.'
      )
    files[i] = matches[0] if matches else None
  return files, folders.stamps
