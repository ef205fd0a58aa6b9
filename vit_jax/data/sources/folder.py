"""folder:/path: image files, in one sub-folder per class."""

import collections
import os
import pathlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from etils import epath

from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.data.sources.source import Example, Source, fingerprint, hash_file_sizes, is_held_out
from vit_jax.data.sources.splits import SPLIT_ALIASES, SPLIT_FALLBACKS
from vit_jax.errors import BadExampleError, MissingDataError, UserError
from vit_jax.files import read_bytes, user_path
from vit_jax.text import plural

_Path = TypeVar('_Path', epath.Path, pathlib.Path)


def all_files(folder: epath.PathLike) -> list[str]:
  """Lists all files below a folder, except hidden ones, as sorted paths relative to it."""

  def raise_user_error(error: OSError) -> None:
    raise UserError(f'{error.filename} cannot be read: {error.strerror}.')

  folder, files, visited = os.fspath(folder), [], set()
  for parent, folders, names in os.walk(folder, followlinks=True, onerror=raise_user_error):
    if os.path.realpath(parent) in visited:  # a cycle of links
      folders.clear()
      continue
    visited.add(os.path.realpath(parent))
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    prefix = '' if parent == folder else os.path.relpath(parent, folder)
    files += [os.path.join(prefix, name) for name in names if not name.startswith('.')]
  return sorted(files)


def _is_image(file: str) -> bool:
  return file.lower().endswith(SUFFIXES)


def image_files(folder: epath.PathLike) -> list[str]:
  """Lists the images as `all_files` does; raises `UserError` for a folder that it cannot list."""
  return list(filter(_is_image, all_files(folder)))


def ignored_files(folder: epath.PathLike, files: list[str] | None = None) -> tuple[str, ...]:
  """Describes the files of a folder of classes that are not examples, for `Source.notes`.

  Args:
    folder: the folder of classes.
    files: `all_files(folder)`; None lists them here.
  """
  files = all_files(folder) if files is None else files
  notes = []
  if others := [file for file in files if not _is_image(file)]:
    suffixes = collections.Counter(os.path.splitext(file)[1].lower() or 'none' for file in others)
    counts = ', '.join(f'{suffix} {count:,}' for suffix, count in suffixes.most_common(5))
    are = 'is not a supported image' if len(others) == 1 else 'are not supported images'
    notes.append(f'{plural(len(others), "file")} {are} ({counts}), in {folder}')
  if stray := sum(_is_image(file) and os.sep not in file for file in files):
    are = 'is' if stray == 1 else 'are'
    notes.append(f'{plural(stray, "image")} outside the class folders of {folder} {are} ignored')
  return tuple(notes)


def _class_name(file: str) -> str:
  return file.split(os.sep)[0]


def _is_held_out(file: str) -> bool:
  return is_held_out(file.replace(os.sep, '/'))


def split_folders(root: _Path) -> dict[str, _Path]:
  """Returns the sub-folder of each split (train, val, test) that a folder has; {} for class/*."""
  folders = {c.name for c in root.iterdir() if c.is_dir() and not c.name.startswith('.')}
  splits = {}
  for split, aliases in SPLIT_ALIASES.items():
    names = [alias for alias in aliases if alias in folders]
    if len(names) > 1:
      raise UserError(f'{root} has both {" and ".join(names)}; keep one of them.')
    if names:
      splits[split] = root / names[0]
  # Without train, val and test may be classes.
  return splits if 'train' in splits or len(splits) == len(folders) else {}


def _find_root(path: str) -> epath.Path:
  root = user_path(path)
  if not root.is_dir():
    raise MissingDataError(
      f'There is no folder {root}; folder: takes a folder with one sub-folder of images per '
      f'class, or with train/ and test/ folders of that kind.'
    )
  return root


def split_names(path: str) -> tuple[str, ...]:
  """Lists the splits: those with a sub-folder, else train and a held-out test split."""
  names = tuple(split_folders(_find_root(path)))
  return names if names not in ((), ('train',)) else ('train', 'test')


def locate_split(root: _Path, split: str) -> tuple[_Path, Callable[[str], bool]]:
  """Returns the folder of classes to read for a split, and the predicate that selects its files.

  Raises:
    UserError: when the folder lacks the split.
  """
  split = 'val' if split == 'validation' else split
  if split not in ('train', 'val', 'test', 'all'):
    raise UserError(f'folder:{root} has the splits train, val, test and all, not {split!r}.')
  folders = split_folders(root)
  if not folders:
    if split == 'all':
      return root, lambda file: True
    return root, lambda file: _is_held_out(file) == (split != 'train')
  if split == 'train' and list(folders) == ['train']:
    return folders['train'], lambda file: not _is_held_out(file)
  for name in SPLIT_FALLBACKS.get(split, ()):
    if name in folders:
      return folders[name], lambda file: True
  if split == 'all' or 'train' not in folders:
    raise UserError(f'folder:{root} has the splits {", ".join(folders)}, not {split!r}.')
  return folders['train'], _is_held_out


def _check_classes(folder: epath.Path, class_names: list[str], images: list[str]) -> None:
  for name in class_names:
    if not name.isprintable():
      raise UserError(
        f'The class folder {folder}/{ascii(name)} has unprintable characters in its name; '
        'rename it.'
      )
  if not images:
    raise UserError(f'{folder} has no images ({", ".join(SUFFIXES)}) in its sub-folders.')
  if len(class_names) < 2:
    raise UserError(
      f'{folder} has images of {plural(len(class_names), "class")} '
      f'({", ".join(class_names) or "all outside sub-folders"}); classification needs at least 2, '
      'each in its own sub-folder.'
    )


def open_split(path: str, split: str) -> Source:
  """Opens a folder of images with one sub-folder per class.

  Sub-folders `train/` and `val/` or `test/` (`SPLIT_ALIASES` lists other names) are the splits.
  Without them, one file in five is held out, by a hash of its path: the same files on every
  machine.
  """
  root = _find_root(path)
  folder, belongs_to_split = locate_split(root, split)
  # All classes count, also those without an image in this split: labels must not depend on it.
  class_folder = split_folders(root).get('train', folder)
  files = all_files(folder)
  images = list(filter(_is_image, files))
  labeled = images if class_folder == folder else image_files(class_folder)
  class_names = sorted({_class_name(file) for file in labeled if os.sep in file})
  _check_classes(folder, class_names, images)
  images = [file for file in images if os.sep in file and belongs_to_split(file)]
  labels = {name: np.int32(i) for i, name in enumerate(class_names)}
  for file in images:
    if _class_name(file) not in labels:
      raise UserError(f'{folder / file} is of a class that {class_folder} does not have.')
  if not images:
    raise UserError(f'folder:{root} has too few images: none is in its split {split!r}.')

  def location(i: int) -> str:
    return os.path.join(folder, images[i])

  def read(i: int) -> Example:
    try:
      return read_bytes(location(i)), labels[_class_name(images[i])]
    except OSError as error:
      raise BadExampleError(f'{location(i)} cannot be read: {error.strerror or error}.') from None

  return Source(
    name=f'folder:{root} ({split})',
    size=len(images),
    read=read,
    class_names=tuple(class_names),
    location=location,
    fingerprint=fingerprint('\0'.join(images)),
    file_sizes=lambda: hash_file_sizes([os.path.join(folder, image) for image in images]),
    notes=ignored_files(folder, files),
  )
