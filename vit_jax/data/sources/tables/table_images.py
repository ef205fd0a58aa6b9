"""Finds the image files that the rows of a table name; lists folders, and opens no file."""

import functools
import itertools
import os
import posixpath
from collections.abc import Sequence

from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.data.sources.splitting.split_aliases import is_beside_images
from vit_jax.data.sources.tables.table_columns import split_in_name
from vit_jax.errors import UserError

_MAX_FOLDERS = 64  # in which images are looked for, beside those that the names tell
_MAX_SEARCHED = 1000  # folders, for advice
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
  def _by_stem(self) -> dict[str, str]:
    """Name without the ending of an image -> its file, or '' for several."""
    files: dict[str, str] = {}
    for file in self._files:
      stem, dot, suffix = file.rpartition('.')
      if dot + suffix.lower() in SUFFIXES:
        files[stem] = '' if stem in files else file
    return files

  @functools.cached_property
  def _by_folded_name(self) -> dict[str, str]:
    """Name in lower case, with the ending of an image or without -> its file, or '' for several."""
    files: dict[str, str] = {}
    for name in (*self._files, *self._by_stem):
      file = name if name in self._files else self._by_stem[name]
      files[name.casefold()] = '' if name.casefold() in files else file
    return files

  def find(self, name: str, any_case: bool = False) -> str | None:
    """The file called `name`, with the ending of an image or without."""
    if name in self._files:
      return name
    file = self._by_stem.get(name)
    if any_case and file is None:
      file = self._by_folded_name.get(name.casefold())
    if file == '':
      raise UserError(f'{self._path} has {self._similar(name)}')
    return file

  def _similar(self, name: str) -> str:
    """What to do about several files that a name fits."""
    names = (name.casefold(), name.rpartition('.')[0].casefold())
    files = sorted(
      f for f in self._files if f.casefold() in names or f.rpartition('.')[0].casefold() in names
    )
    return (
      f'both {" and ".join(files[:2])} for the name {name!r}; put the ending, in upper or lower '
      'case, into the table.'
    )


def folder_stamp(path: str) -> int:
  """The time of the last change to the list of files in a folder (ns); 0 if it cannot be read."""
  try:
    return os.stat(path).st_mtime_ns
  except (OSError, ValueError):
    return 0


class _Folders:
  """Finds names below several folders; `stamps` has those that it listed."""

  def __init__(self, root: str):
    self._root, self._listed, self._cases = root, {}, {}
    self.stamps: dict[str, int] = {}

  def _in_any_case(self, parent: str) -> str:
    """The folders of a path as they are written on disk, if one fits; else as in the path."""
    if parent not in self._cases:
      path = ''
      for part in parent.split('/'):
        folders = _sub_folders(os.path.join(self._root, path))
        matches = [f for f in folders if f.casefold() == part.casefold()]
        path = posixpath.join(path, part if part in folders or len(matches) != 1 else matches[0])
      self._cases[parent] = path
    return self._cases[parent]

  def find(self, folder: str, name: str, any_case: bool = False) -> str | None:
    """The file of a name in a folder below the root, as a path relative to the root."""
    parent, _, base = f'{folder}{name}'.rpartition('/')
    if any_case and parent:
      parent = self._in_any_case(parent)
    if parent not in self._listed:
      path = os.path.join(self._root, parent)
      self.stamps[path] = folder_stamp(path)
      self._listed[parent] = _Folder(path)
    file = self._listed[parent].find(base, any_case)
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


def _sample(paths: Sequence[str]) -> Sequence[str]:
  return paths[:: max(1, len(paths) // _SAMPLE)]


def _without_folders(paths: Sequence[str], folders: _Folders) -> list[str]:
  """The paths without the fewest leading folders that they share and that this machine lacks.

  'C:/Users/me/data/train/1.jpg' -> 'train/1.jpg', if the root has most of the sample then.
  Unchanged if it never has.
  """
  sample = _sample(paths)
  shared = posixpath.commonprefix([path.split('/')[:-1] for path in sample])
  for count in range(1, len(shared) + 1):
    prefix = '/'.join(shared[:count]) + '/'
    if 2 * sum(bool(folders.find('', path[len(prefix) :])) for path in sample) > len(sample):
      return [path.removeprefix(prefix) for path in paths]
  return list(paths)


def _search(
  folders: _Folders, paths: Sequence[str], root: str, table: str, any_case: bool
) -> list[str | None]:
  """The files of paths in the root and in the folders of it that have some."""
  sample = _sample(paths)
  candidates = [
    folder
    for folder in ('', *_candidates(root, table))
    if any(folders.find(folder, path, any_case) for path in sample)
  ]
  files: list[str | None] = [None] * len(paths)
  for folder in candidates:
    for i, path in enumerate(paths):
      file = folders.find(folder, path, any_case)
      if file and (other := files[i]):
        raise UserError(
          f'{path!r} in {table} fits both {other} and {file} in {root}; name the folder as '
          f'?root={os.path.dirname(other)}.'
        )
      files[i] = file or files[i]
  return files


def search_folder(root: str, name: str) -> str:
  """Looks for an image at any depth, also beside `root`; returns the folder to name as root, or ''.

  It is relative to `root`.
  """
  parent, _, base = posixpath.normpath(name.replace('\\', '/')).rpartition('/')
  for top in (root, os.path.dirname(os.path.abspath(root))):
    for path, folders, _ in itertools.islice(os.walk(top), _MAX_SEARCHED):
      folders[:] = [f for f in folders if not f.startswith('.') and not is_beside_images(f)]
      try:
        has_image = bool(_Folder(path).find(base, any_case=True))
      except UserError:  # two files
        continue
      above = path.removesuffix(f'/{parent}') if parent else path
      if has_image and (above != path or not parent):
        return os.path.relpath(above, root)
  return ''


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
  folders, notes = _Folders(root), []
  paths = [_relative(name, root, table) for name in names]
  files = [folders.find('', path) for path in paths]
  if not any(files):
    shorter = _without_folders(paths, folders)
    if shorter[0] != paths[0]:
      begin = paths[0].removesuffix(shorter[0])
      notes.append(f'names in {table} begin with {begin}, which is taken to be {root}')
      files = [folders.find('', path) for path in shorter]
      paths = shorter
  for any_case in (False, True):
    if missing := [i for i, file in enumerate(files) if file is None]:
      found = _search(folders, [paths[i] for i in missing], root, table, any_case)
      for i, file in zip(missing, found, strict=True):
        files[i] = file
  return files, folders.stamps, notes
