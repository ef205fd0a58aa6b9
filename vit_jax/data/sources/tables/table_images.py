"""Finds the image files that the rows of a table name; lists folders, and opens no file."""

import itertools
import os
import posixpath
import re
from collections.abc import Iterator, Sequence

from vit_jax.data.sources.splitting.split_aliases import is_beside_images
from vit_jax.data.sources.tables.table_columns import split_in_name
from vit_jax.data.sources.tables.table_folders import Folders, sub_folders
from vit_jax.errors import UserError
from vit_jax.text import plural

_MAX_FOLDERS = 64  # in which images are looked for, beside those that the names tell
_MAX_SEARCHED = 1000  # folders, for advice
_SAMPLE = 1000  # names that tell which of these folders hold the images
_MAX_TRIED = 20  # names that tell which folder to advise
_MAX_DIGITS = 12  # of a number with leading zeros
_NUMBER = re.compile(r'(.*/)?(\d+)(\.[A-Za-z]\w*)?')  # 7, train/7.png
_PADDED = re.compile(r'(?:.*/)?0\d+(?:\.[A-Za-z]\w*)?')  # 007, train/007.png


def _candidates(root: str, table: str) -> list[str]:
  """Folders 'images/' and 'images/train/' below the root; few, or none are looked into.

  Beside train.csv, a folder test/ does not count, nor does masks/ anywhere.
  """
  split = split_in_name(os.path.splitext(os.path.basename(table))[0])

  def may_have_images(name: str) -> bool:
    is_other_split = bool(split) and split_in_name(name) not in ('', split)
    return not is_other_split and not is_beside_images(name)

  folders = list(filter(may_have_images, sub_folders(root)))
  if len(folders) > _MAX_FOLDERS:
    return []
  for name in tuple(folders):
    inner = sub_folders(os.path.join(root, name))
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


def _without_folders(paths: Sequence[str], folders: Folders) -> list[str]:
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
  folders: Folders, paths: Sequence[str], root: str, table: str, any_case: bool
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


def _with_zeros(folders: Folders, paths: Sequence[str], root: str, table: str) -> list[str | None]:
  """The files of numbers that lost their leading zeros, if they fit files of one width only."""

  def pad(path: str, width: int) -> str:
    match = _NUMBER.fullmatch(path)
    return f'{match[1] or ""}{match[2].zfill(width)}{match[3] or ""}' if match else path

  def search(paths: Sequence[str], width: int) -> list[str | None]:
    return _search(folders, [pad(path, width) for path in paths], root, table, any_case=True)

  sample = _sample(paths)
  widths = [width for width in range(2, _MAX_DIGITS + 1) if any(search(sample, width))]
  return search(paths, widths[0]) if len(widths) == 1 else [None] * len(paths)


def _folders_to_advise(root: str) -> Iterator[str]:
  """The folders below `root`, and those beside it."""
  for path, folders, _ in itertools.islice(os.walk(root), _MAX_SEARCHED):
    folders[:] = sorted(f for f in folders if not f.startswith('.') and not is_beside_images(f))
    if path != root:
      yield path
  parent, name = os.path.split(os.path.abspath(root))
  for folder in sub_folders(parent)[:_MAX_SEARCHED]:
    if folder != name and not is_beside_images(folder):
      yield os.path.join(parent, folder)


def search_folder(root: str, names: Sequence[str]) -> str:
  """Looks for most of the images at any depth, and in the folders beside `root`.

  Returns the folder to name as root, relative to `root`; or ''.
  """
  step = max(1, len(names) // _MAX_TRIED)
  paths = [posixpath.normpath(name.replace('\\', '/')) for name in names[::step]]
  for path in _folders_to_advise(root):
    folders = Folders(path)
    try:
      count = sum(bool(folders.find('', name, any_case=True)) for name in paths)
    except UserError:  # two files
      continue
    if 2 * count > len(paths):
      return os.path.relpath(path, root)
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
  folders, notes = Folders(root), []
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
  missing = [i for i, file in enumerate(files) if file is None]
  if missing and not any(map(_PADDED.fullmatch, paths)):
    found = _with_zeros(folders, [paths[i] for i in missing], root, table)
    for i, file in zip(missing, found, strict=True):
      files[i] = file
    if padded := [i for i in missing if files[i]]:
      count, example = plural(len(padded), 'name'), names[padded[0]]
      notes.append(
        f'{count} of {table} without leading zeros, such as {example}, are taken to be of files '
        f'with them, such as {files[padded[0]]}'
      )
  return files, folders.stamps, notes
