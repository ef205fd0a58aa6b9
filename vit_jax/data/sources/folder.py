"""folder:/path: image files, one sub-folder a class."""

import hashlib
import os
from collections.abc import Callable

import numpy as np
from etils import epath

from vit_jax.data.images import SUFFIXES
from vit_jax.data.sources.base import QUICKSTART, Source
from vit_jax.errors import BadExampleError, UserError


def image_files(folder: epath.Path) -> list[str]:
  """Sorted paths, relative to `folder`, of all images below it; hidden files are left out."""
  def refuse(error: OSError) -> None:
    raise UserError(f'{error.filename} cannot be read: {error.strerror}.')

  found, seen = [], set()
  for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
    if os.path.realpath(parent) in seen:  # a link that leads back
      folders.clear()
      continue
    seen.add(os.path.realpath(parent))
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    found += [
        os.path.relpath(os.path.join(parent, name), folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith('.')
    ]
  return sorted(found)


def _read_bytes(file: epath.Path) -> bytes:
  try:
    return file.read_bytes()
  except OSError as error:
    raise BadExampleError(f'{file} cannot be read: {error.strerror or error}.') from None


def _is_held_out(file: str) -> bool:
  """Whether a file of an unsplit folder belongs to its test split: one in five, by its name."""
  digest = hashlib.sha256(file.replace(os.sep, '/').encode('utf-8', 'surrogateescape')).digest()
  return digest[0] % 5 == 0


def _split_folder(root: epath.Path, split: str) -> tuple[epath.Path, Callable[[str], bool]]:
  """The folder of classes to read for `split`, and which of its files belong to the split."""
  folders = {c.name for c in root.iterdir() if c.is_dir() and not c.name.startswith('.')}
  if unclear := folders & {'training', 'validation', 'valid', 'testing'}:
    raise UserError(
        f'{root} has a folder {min(unclear)}; splits are called train, val and test: rename it.'
    )
  splits = folders & {'train', 'val', 'test'}
  if split not in ('train', 'val', 'test', 'all'):
    raise UserError(f'folder:{root} has the splits train, val, test and all, not {split!r}.')
  if not splits or ('train' not in splits and splits != folders):  # one level: class/*
    if split == 'all':
      return root, lambda file: True
    return root, lambda file: _is_held_out(file) == (split != 'train')
  if split == 'train' and splits == {'train'}:
    return root / 'train', lambda file: not _is_held_out(file)
  for name in {'train': ('train',), 'test': ('test', 'val'), 'val': ('val', 'test')}.get(split, ()):
    if name in splits:
      return root / name, lambda file: True
  if split == 'all' or 'train' not in splits:
    raise UserError(f'folder:{root} is split into {", ".join(sorted(splits))}; name one of them.')
  return root / 'train', _is_held_out


def open_folder(path: str, split: str) -> Source:
  """A folder of images, one sub-folder a class.

  With `train/` and `val/` or `test/` in it these are the splits. Otherwise one file in five,
  chosen by a hash of its path, is held out: the same files on every machine.
  """
  root = epath.Path(path).expanduser()
  if not root.is_dir():
    raise UserError(
        f'There is no folder {root}; folder: takes a folder with one sub-folder of images a '
        f'class, or with train/ and test/ of that kind; {QUICKSTART}.'
    )
  folder, belongs = _split_folder(root, split)
  # All classes count, also those without an image in this split: labels must not depend on it.
  classes_in = root / 'train' if folder.parent == root and (root / 'train').is_dir() else folder
  files = image_files(folder)
  names = sorted({file.split(os.sep)[0] for file in image_files(classes_in) if os.sep in file})
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
    if file.split(os.sep)[0] not in labels:
      raise UserError(f'{folder / file} is of a class that {classes_in} does not have.')
  if not files:
    raise UserError(f'folder:{root} has no image in its split {split!r}; it has too few images.')

  def read(i: int) -> tuple[bytes, np.ndarray]:
    return _read_bytes(folder / files[i]), np.int32(labels[files[i].split(os.sep)[0]])

  return Source(
      f'folder:{root} ({split})',
      len(files),
      read,
      tuple(names),
      where=lambda i: str(folder / files[i]),
      fingerprint=hashlib.sha256('\0'.join(files).encode('utf-8', 'surrogateescape')).hexdigest(),
  )
