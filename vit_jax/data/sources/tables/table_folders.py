"""Folders of image files, each listed once; finds a name with or without ending, in any case."""

import functools
import os
import posixpath

from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.errors import UserError


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


class Folders:
  """Finds names below several folders; `stamps` has those that it listed."""

  def __init__(self, root: str):
    self._root, self._listed, self._cases = root, {}, {}
    self.stamps: dict[str, int] = {}

  def _in_any_case(self, parent: str) -> str:
    """The folders of a path as they are written on disk, if one fits; else as in the path."""
    if parent not in self._cases:
      path = ''
      for part in parent.split('/'):
        folders = sub_folders(os.path.join(self._root, path))
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


def sub_folders(path: str) -> list[str]:
  """The visible folders in a folder, sorted; [] if it cannot be read."""
  try:
    with os.scandir(path) as entries:
      return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith('.'))
  except OSError:
    return []
