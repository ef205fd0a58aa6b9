r"""folder:/path: image files, in one sub-folder per class.

  folder:/path                     class/*, or {train,val,test}/class/*, also below a lone folder
  folder:/path?pattern=(\w+)\.\d+  the class is what the parentheses of a regular expression match
                                   in the name of a file; if it has a '/', in the path
  folder:/path?group=(p\d+)_       images with the same match are on one side of the hold-out
  folder:/path?fold=2/5            the second of five parts is held out

Split folders may have any usual name (split_aliases.py). Without one for testing, a fifth of the
images is held out (holdout.py). A test folder of images without classes is not used.
"""

import collections
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.data.sources.folders import folder_advice, folder_classes, folder_layout
from vit_jax.data.sources.folders.folder_files import all_files, is_image, parse_path
from vit_jax.data.sources.folders.folder_layout import Layout, below
from vit_jax.data.sources.source import Example, Source, fingerprint
from vit_jax.data.sources.splitting import holdout
from vit_jax.data.sources.splitting.split_aliases import choose_split, split_of
from vit_jax.errors import BadExampleError, UserError
from vit_jax.files import read_bytes
from vit_jax.text import plural, printable


@dataclasses.dataclass(frozen=True)
class LabeledFiles:
  """The N images of a split.

  Attributes:
    folder: the names are relative to it.
    names: N paths of images.
    labels: (N,) int32, indices of `class_names`.
    class_names: of all splits: labels do not depend on the one that is opened.
    notes: what the user should know, a sentence each.
  """

  folder: epath.Path
  names: list[str]
  labels: np.ndarray
  class_names: tuple[str, ...]
  notes: tuple[str, ...]


def _match_class(regex: re.Pattern[str], file: str) -> str:
  """What the parentheses of a pattern match in a file, or ''."""
  path = file.replace(os.sep, '/')
  is_for_paths = '/' in regex.pattern.replace('[^/]', '')
  match = regex.search(path if is_for_paths else path.rpartition('/')[2])
  return match[1] or '' if match else ''


class ImageFolder:
  """A folder, listed once: its splits, and the images of each."""

  def __init__(self, path: str):
    """Lists the folder of 'path?options'; raises `UserError`."""
    self.root, self._options = parse_path(path)
    self.spec = f'folder:{path}'
    query = '&'.join(f'{option}={value}' for option, value in self._options.items())
    self.query = query and f'?{query}'
    self._class_of: Callable[[str], str] = folder_layout.first_folder
    self._has_pattern = 'pattern' in self._options
    if self._has_pattern:
      regex = holdout.compile_pattern('pattern', self._options['pattern'])
      if not regex.groups:
        raise UserError(
          f'pattern={regex.pattern} has no parentheses; put some around the class, as in '
          r'pattern=(\w+)\.\d+.'
        )
      self._class_of = functools.partial(_match_class, regex)
    self._fold = holdout.parse_fold(self._options['fold']) if 'fold' in self._options else None
    self._files = all_files(self.root)
    self._images = list(filter(is_image, self._files))
    has_class = (lambda file: bool(self._class_of(file))) if self._has_pattern else None
    self.layout: Layout = folder_layout.find_layout(
      str(self.root), self._images, has_class, self._tables
    )
    if set(self.layout.splits) - {'train'} and set(self._options) - {'pattern'}:
      option = next(option for option in self._options if option != 'pattern')
      raise UserError(
        f'{self.spec} has a folder for {" and ".join(set(self.layout.splits) - {"train"})}, so '
        f'nothing is held out; leave out {option}=, or name the folder of the train images.'
      )

  @property
  def split_names(self) -> tuple[str, ...]:
    """Those with a folder, else train and a held-out test split."""
    names = tuple(self.layout.splits)
    return names if names not in ((), ('train',)) else ('train', 'test')

  def _locate(self, split: str) -> tuple[str, bool | None]:
    """Returns the prefix of the classes of a split, and whether held-out images belong to it.

    None stands for all images. Raises `UserError` when the folder lacks the split.
    """
    splits = self.layout.splits
    if split != 'all' and split_of(split) is None:
      raise UserError(f'{self.spec} has the splits train, val, test and all, not {split!r}.')
    if not splits or list(splits) == ['train']:
      prefix = splits.get('train', self.layout.prefix)
      return prefix, None if split == 'all' else split_of(split) != 'train'
    chosen = choose_split(splits, split)
    if chosen is None:
      advice = ''
      if len(splits) == 1:
        advice = f'; to hold out a part of it, use folder:{self._path(*splits.values())}'
      raise UserError(f'{self.spec} has the splits {", ".join(splits)}, not {split!r}{advice}.')
    return splits[chosen], None

  def _path(self, prefix: str) -> epath.Path:
    return self.root / prefix if prefix else self.root

  def _notes(self, prefix: str, unlabeled: Sequence[str]) -> tuple[str, ...]:
    folder, notes = self._path(prefix), []
    if others := [file for file in below(self._files, prefix) if not is_image(file)]:
      suffixes = collections.Counter(os.path.splitext(f)[1].lower() or 'none' for f in others)
      counts = ', '.join(f'{suffix} {count:,}' for suffix, count in suffixes.most_common(5))
      are = 'is not a supported image' if len(others) == 1 else 'are not supported images'
      notes.append(f'{plural(len(others), "file")} {are} ({counts}), in {folder}')
    if unlabeled:
      are = 'is' if len(unlabeled) == 1 else 'are'
      where = f'outside the class folders of {folder}'
      if self._has_pattern:
        where = f'such as {printable(unlabeled[0])} without a match of the pattern'
      notes.append(f'{plural(len(unlabeled), "image")} {where} {are} ignored')
    if not self._has_pattern:
      notes += folder_classes.merged_folders(below(self._images, prefix), self.spec)
    return (*notes, *self.layout.notes)

  def _check_classes(self, class_names: list[str], prefix: str, images: Sequence[str]) -> None:
    folder = self._path(prefix)
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
        f'({", ".join(class_names) or "all outside sub-folders"}); classification needs at least '
        f'2, each in its own sub-folder: {self._advise(folder, images)}.'
      )
    if not self._has_pattern:
      folder_classes.check_class_folders(str(folder), images, self.spec, self._tables)

  @property
  def _tables(self) -> list[str]:
    """Files that may have the labels of images."""
    suffixes = folder_advice.TABLES + folder_advice.LISTS
    return [str(self.root / file) for file in self._files if file.lower().endswith(suffixes)]

  def _advise(self, folder: epath.Path, images: Sequence[str]) -> str:
    if self._has_pattern:
      return f'does the pattern match the class in names such as {printable(images[0])}'
    return folder_advice.suggest_classes(self.spec, str(folder), self._tables, images)

  @functools.cached_property
  def class_names(self) -> list[str]:
    """Those of train, also those without an image in another split; sorted."""
    splits = self.layout.splits
    prefix = splits.get('train', next(iter(splits.values()), self.layout.prefix))
    images = below(self._images, prefix)
    names = sorted(set(map(self._class_of, images)) - {''})
    self._check_classes(names, prefix, images)
    return names

  def split(self, split: str, class_names: Sequence[str] = ()) -> LabeledFiles:
    """Returns the images of a split, which may be none; raises `UserError`.

    Args:
      split: 'train', 'val', 'test', another name of these, or 'all'.
      class_names: in label order; empty: `self.class_names`.
    """
    prefix, side = self._locate(split)
    class_names, folder = class_names or self.class_names, self._path(prefix)
    indices = {name: i for i, name in enumerate(class_names)}
    images = below(self._images, prefix)
    classes = list(map(self._class_of, images))
    names = [file for file, name in zip(images, classes, strict=True) if name]
    unlabeled = [file for file, name in zip(images, classes, strict=True) if not name]
    classes = list(filter(None, classes))
    if not names:
      raise UserError(
        f'{folder} has no images ({", ".join(SUFFIXES)}) in its sub-folders; '
        f'{self._advise(folder, images) if images else "choose another split"}.'
      )
    if unknown := set(classes) - set(class_names):
      file = names[classes.index(min(unknown))]
      train = self._path(self.layout.splits.get('train', self.layout.prefix))
      change = 'add that class there, or remove the image'
      alike = {name.casefold(): name for name in class_names}
      if name := alike.get(min(unknown).casefold()):
        change = f'rename it to {name} as there'
      raise UserError(
        f'{folder / printable(file)} belongs to a class that {train} does not have; {change}.'
      )
    labels = np.array([indices[name] for name in classes], np.int32)
    if side is not None:
      keys = [name.replace(os.sep, '/') for name in names]
      groups = None
      if 'group' in self._options:
        groups = holdout.find_groups(self._options['group'], keys)
      keep = holdout.held_out(keys, labels, groups, self._fold) == side
      names, labels = [names[i] for i in np.flatnonzero(keep)], labels[keep]
    notes = self._notes(prefix, unlabeled)
    return LabeledFiles(folder, names, labels, tuple(class_names), notes)


def split_names(path: str) -> tuple[str, ...]:
  """Lists the splits: those with a sub-folder, else train and a held-out test split."""
  return ImageFolder(path).split_names


def open_split(path: str, split: str) -> Source:
  """Opens a split of a folder of images; see the top of this file for its path."""
  folder = ImageFolder(path)
  files = folder.split(split)
  if not files.names:
    raise UserError(
      f'{folder.spec} has too few images: none is in its split {split!r}; add some, or name '
      'others to test on as --config.data.test.source=….'
    )

  def location(i: int) -> str:
    return os.path.join(files.folder, files.names[i])

  def read(i: int) -> Example:
    try:
      return read_bytes(location(i)), files.labels[i]
    except OSError as error:
      raise BadExampleError(f'{location(i)} cannot be read: {error.strerror or error}.') from None

  return Source(
    name=f'folder:{folder.root}{folder.query} ({split})',
    size=len(files.names),
    read=read,
    class_names=files.class_names,
    location=location,
    fingerprint=fingerprint('\0'.join(files.names)),
    labels=lambda: files.labels,
    files=lambda: [os.path.join(files.folder, name) for name in files.names],
    notes=files.notes,
  )
