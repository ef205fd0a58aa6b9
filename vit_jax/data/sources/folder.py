"""folder:/path: image files, one sub-folder a class."""

import collections
import os
from collections.abc import Callable

import numpy as np
from etils import epath

from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.data.sources.source import QUICKSTART, Source, fingerprint, is_held_out
from vit_jax.errors import BadExampleError, UserError

# What the folders of splits are called.
_SPLITS = {
  'train': ('train', 'training'),
  'val': ('val', 'valid', 'validation'),
  'test': ('test', 'testing'),
}


def all_files(folder: epath.PathLike) -> list[str]:
  """Sorted paths, relative to `folder`, of all files below it; hidden ones are left out."""

  def refuse(error: OSError) -> None:
    raise UserError(f'{error.filename} cannot be read: {error.strerror}.')

  found, seen = [], set()
  for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
    if os.path.realpath(parent) in seen:  # a link that leads back
      folders.clear()
      continue
    seen.add(os.path.realpath(parent))
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    below = os.path.relpath(parent, folder)
    found += [
      name if below == '.' else os.path.join(below, name)
      for name in names
      if not name.startswith('.')
    ]
  return sorted(found)


def image_files(folder: epath.PathLike) -> list[str]:
  """Sorted paths, relative to `folder`, of all images below it; hidden files are left out."""
  return [file for file in all_files(folder) if file.lower().endswith(SUFFIXES)]


def left_out(folder: epath.Path, files: list[str] | None = None) -> tuple[str, ...]:
  """What is said of those of its files (all, if not given) that are no examples."""
  files, said = all_files(folder) if files is None else files, []
  others = [file for file in files if not file.lower().endswith(SUFFIXES)]
  if others:
    kinds = collections.Counter(os.path.splitext(file)[1].lower() or 'none' for file in others)
    listed = ', '.join(f'{kind} {count:,}' for kind, count in kinds.most_common(5))
    are = 'file is no image' if len(others) == 1 else 'files are no images'
    said.append(f'{len(others):,} {are} that this reads ({listed}), in {folder}')
  if stray := sum(os.sep not in file for file in files) - sum(os.sep not in f for f in others):
    are = 'image is' if stray == 1 else 'images are'
    said.append(f'{stray:,} {are} left out: outside of the class folders of {folder}')
  return tuple(said)


def _class_of(file: str) -> str:
  return file.split(os.sep, 1)[0]


def _read_bytes(file: str) -> bytes:
  try:
    with open(file, 'rb') as opened:
      return opened.read()
  except OSError as error:
    raise BadExampleError(f'{file} cannot be read: {error.strerror or error}.') from None


def _is_held_out(file: str) -> bool:
  return is_held_out(file.replace(os.sep, '/'))


def split_folders(root: epath.Path) -> dict[str, epath.Path]:
  """{'train': …, 'val': …, 'test': …}, those that a folder is divided in; {} for class/*."""
  folders = {c.name for c in root.iterdir() if c.is_dir() and not c.name.startswith('.')}
  found = {}
  for split, names in _SPLITS.items():
    there = [name for name in names if name in folders]
    if len(there) > 1:
      raise UserError(f'{root} has both {" and ".join(there)}; keep one of them.')
    if there:
      found[split] = root / there[0]
  # Without train, val or test may be names of classes.
  return found if 'train' in found or len(found) == len(folders) else {}


def split_names(path: str) -> tuple[str, ...]:
  """The splits of a folder: its sub-folders of these names, else train and a held-out test."""
  found = tuple(split_folders(epath.Path(path).expanduser()))
  return found if found not in ((), ('train',)) else ('train', 'test')


def split_folder(root: epath.Path, split: str) -> tuple[epath.Path, Callable[[str], bool]]:
  """The folder of classes to read for `split`, and which of its files belong to the split."""
  split = 'val' if split == 'validation' else split
  if split not in ('train', 'val', 'test', 'all'):
    raise UserError(f'folder:{root} has the splits train, val, test and all, not {split!r}.')
  splits = split_folders(root)
  if not splits:
    if split == 'all':
      return root, lambda file: True
    return root, lambda file: _is_held_out(file) == (split != 'train')
  if split == 'train' and list(splits) == ['train']:
    return splits['train'], lambda file: not _is_held_out(file)
  for name in {'test': ('test', 'val'), 'val': ('val', 'test')}.get(split, (split,)):
    if name in splits:
      return splits[name], lambda file: True
  if split == 'all' or 'train' not in splits:
    raise UserError(f'folder:{root} is split into {", ".join(splits)}; name one of them.')
  return splits['train'], _is_held_out


def open_folder(path: str, split: str) -> Source:
  """A folder of images, one sub-folder a class.

  With `train/` and `val/` or `test/` in it (`_SPLITS` has what else they may be called) these are
  the splits. Otherwise one file in five, chosen by a hash of its path, is held out: the same files
  on every machine.
  """
  root = epath.Path(path).expanduser()
  if not root.is_dir():
    raise UserError(
      f'There is no folder {root}; folder: takes a folder with one sub-folder of images a '
      f'class, or with train/ and test/ of that kind; {QUICKSTART}.'
    )
  folder, belongs = split_folder(root, split)
  # All classes count, also those without an image in this split: labels must not depend on it.
  classes_in = split_folders(root).get('train', folder)
  everything = all_files(folder)
  files = [file for file in everything if file.lower().endswith(SUFFIXES)]
  others = files if classes_in == folder else image_files(classes_in)
  names = sorted({_class_of(file) for file in others if os.sep in file})
  labels = {name: i for i, name in enumerate(names)}
  for name in names:
    if not name.isprintable():
      raise UserError(f'The name of the class folder {folder}/{ascii(name)} is no plain text.')
  if not files:
    raise UserError(f'{folder} holds no image ({", ".join(SUFFIXES)}) in any sub-folder.')
  if len(names) < 2:
    raise UserError(
      f'{folder} holds images of {len(names)} class{"" if names else "es"} '
      f'({", ".join(names) or "all outside of sub-folders"}); classification takes at least 2, '
      'one sub-folder each.'
    )
  files = [file for file in files if os.sep in file and belongs(file)]
  for file in files:
    if _class_of(file) not in labels:
      raise UserError(f'{folder / file} is of a class that {classes_in} does not have.')
  if not files:
    raise UserError(f'folder:{root} has no image in its split {split!r}; it has too few images.')

  def read(i: int) -> tuple[bytes, np.ndarray]:
    return _read_bytes(os.path.join(folder, files[i])), np.int32(labels[_class_of(files[i])])

  return Source(
    f'folder:{root} ({split})',
    len(files),
    read,
    tuple(names),
    where=lambda i: os.path.join(folder, files[i]),
    fingerprint=fingerprint('\0'.join(files)),
    notes=left_out(folder, everything),
  )
