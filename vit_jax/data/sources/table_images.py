"""Finds the image files that the rows of a table name; lists folders, and opens no file."""

import functools
import os
import posixpath
from collections.abc import Sequence

from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.data.sources.split_aliases import is_beside_images
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
    self._path = path

  @functools.cached_property
  def _by_stem(self) -> dict[str, list[str]]:
    """Name without the ending of an image -> its files."""
    files: dict[str, list[str]] = {}
    for file in self._files:
      stem, dot, suffix = file.rpartition('.')
      if dot + suffix.lower() in SUFFIXES:
        files.setdefault(stem, []).append(file)
    return files

  @functools.cached_property
  def _ignoring_case(self) -> dict[str, list[str]]:
    """Name in lower case, with the ending of an image or without -> its files."""
    files: dict[str, list[str]] = {}
    for file in self._files:
      files.setdefault(file.casefold(), []).append(file)
    for stem, endings in self._by_stem.items():
      files.setdefault(stem.casefold(), []).extend(endings)
    return files

  def find(self, name: str) -> str | None:
    """The file called `name`, with the ending of an image or without; at last in any case."""
    if name in self._files:
      return name
    matches = self._by_stem.get(name) or self._ignoring_case.get(name.casefold(), [])
    if len(matches) > 1:
      raise UserError(
        f'{self._path} has both {" and ".join(sorted(matches)[:2])} for the name {name!r}; put '
        'the ending, in upper or lower case, into the table.'
      )
    return matches[0] if matches else None


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

  Beside train.csv, a folder test/ does not count, nor does masks/ anywhere.
  """
  split = split_in_name(os.path.splitext(os.path.basename(table))[0])

  def may_have_images(name: str) -> bool:
    is_other_split = bool(split) and split_in_name(name) not in ('', split)
    return not is_other_split and not is_beside_images(name)

  folders = list(filter(may_have_images, _sub_folders(root)))
  if len(folders) > _MAX_FOLDERS:
    return []
  for name in tuple(folders):
    inner = _sub_folders(os.path.join(root, name))
    folders += [f'{name}/{each}' for each in inner if may_have_images(each)]
  return [f'{name}/' for name in folders] if len(folders) <= _MAX_FOLDERS else []


def _relative(name: str, root: str, table: str) -> str:
  """A name with '/' between folders, relative to the root; `UserError` if it leaves that.

  An absolute path whose folder is not on this machine stays as it is.
  """
  path = name.replace('\\', '/')
  if '/' not in path:
    return path
  if os.path.isabs(path):
    path = os.path.normpath(path)
    for folder in (os.path.abspath(root), os.path.realpath(root)):
      if path.startswith(os.path.join(folder, '')):
        return os.path.relpath(path, folder).replace(os.sep, '/')
    if not os.path.isdir(os.path.dirname(path)):
      return path
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


def _without_folders(paths: Sequence[str], sample: Sequence[str], folders: _Folders) -> list[str]:
  """The paths without the fewest leading folders that they share and that this machine lacks.

  'C:/Users/me/data/train/1.jpg' -> 'train/1.jpg', if the root has most of the sample then.
  Unchanged if it never has.
  """
  shared = posixpath.commonprefix([path.split('/')[:-1] for path in sample])
  for count in range(1, len(shared) + 1):
    prefix = '/'.join(shared[:count]) + '/'
    if 2 * sum(bool(folders.find('', path[len(prefix) :])) for path in sample) > len(sample):
      return [path.removeprefix(prefix) for path in paths]
  return list(paths)


def find_images(
  root: str, names: Sequence[str], table: str
) -> tuple[list[str | None], dict[str, int], list[str]]:
  """Finds the file of each name: as written, or with an ending, in `root` or in a folder of it.

  Each folder is listed once; no file is opened.

  Args:
    root: the folder that names are relative to.
    names: as the rows of a table have them: '1', '1.jpg', 'train/1.jpg', 'train\\1.jpg', or a path
      that starts with `root`.
    table: the path of the table.

  Returns:
    For each name its file relative to the root, with '/' between folders; None if it is missing.
    The folders that were listed, with their `folder_stamp`. And notes, a sentence each.

  Raises:
    UserError: for a name that leaves the root, or fits two files.
  """
  folders = _Folders(root)
  paths = [_relative(name, root, table) for name in names]
  files = [folders.find('', path) for path in paths]
  missing, notes = [i for i, file in enumerate(files) if file is None], []
  sample = [paths[i] for i in missing[:: max(1, len(missing) // _SAMPLE)]]
  if len(missing) == len(files):
    shorter = _without_folders(paths, sample, folders)
    if shorter != paths:
      files = [folders.find('', path) for path in shorter]
      begin = paths[0][: len(paths[0]) - len(shorter[0])]
      notes.append(f'names in {table} begin with {begin}, which is taken to be {root}')
      missing = [i for i, file in enumerate(files) if file is None]
  if not missing:
    return files, folders.stamps, notes
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
  return files, folders.stamps, notes
