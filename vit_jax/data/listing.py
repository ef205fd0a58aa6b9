"""What a data set to be prepared holds: its splits, its classes, and how to read each example.

Nothing is read here but names, labels and places, so an unreadable image is no error yet. The
examples of a split can be cut in parts and sent to another process.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from vit_jax.data import imagenet, tars
from vit_jax.data.sources import Source, image_files, open_source, split_names
from vit_jax.data.sources.base import Stored
from vit_jax.data.sources.folder import _split_folder as split_folder
from vit_jax.errors import BadExampleError, UserError

_KIND = re.compile(r'[a-z_]+:|digits$|.*[*+].*:')


class Examples(Protocol):
  """Examples of one split; `read` raises `BadExampleError`."""

  def __len__(self) -> int: ...

  def read(self, i: int) -> Stored: ...

  def name(self, i: int) -> str:
    """What the example is called within its data set."""

  def part(self, start: int, stop: int) -> 'Examples': ...


@dataclasses.dataclass(frozen=True)
class Files:
  """Image files below a folder."""

  root: str
  names: Sequence[str]
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.names)

  def read(self, i: int) -> Stored:
    try:
      with open(os.path.join(self.root, self.names[i]), 'rb') as file:
        return file.read(), self.labels[i]
    except OSError as error:
      raise BadExampleError(f'{self.names[i]} cannot be read: {error.strerror}.') from None

  def name(self, i: int) -> str:
    return self.names[i]

  def part(self, start: int, stop: int) -> 'Files':
    return Files(self.root, self.names[start:stop], self.labels[start:stop])


@dataclasses.dataclass(frozen=True)
class Members:
  """Files in tar files: which tar, where in it, how long."""

  tars: tuple[str, ...]
  tar: np.ndarray
  offsets: np.ndarray
  sizes: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.offsets)

  def _range(self, i: int, before: int, size: int) -> bytes:
    file = self.tars[self.tar[i]]
    try:
      return tars.read_range(file, int(self.offsets[i]) - before, size)
    except OSError as error:
      raise BadExampleError(f'{file} cannot be read: {error.strerror}.') from None

  def read(self, i: int) -> Stored:
    return self._range(i, 0, int(self.sizes[i])), self.labels[i]

  def name(self, i: int) -> str:
    header = self._range(i, 512, 100)  # which begins with the name
    return header.split(b'\0')[0].decode('utf-8', 'surrogateescape')

  def part(self, start: int, stop: int) -> 'Members':
    cut = (a[start:stop] for a in (self.tar, self.offsets, self.sizes, self.labels))
    return Members(self.tars, *cut)


@functools.lru_cache(maxsize=8)
def _opened(spec: str, split: str) -> Source:
  return open_source(spec, split)


@dataclasses.dataclass(frozen=True)
class Opened:
  """Examples of a data source; each process opens it once."""

  spec: str
  split: str
  start: int
  stop: int

  def __len__(self) -> int:
    return self.stop - self.start

  def read(self, i: int) -> Stored:
    return _opened(self.spec, self.split).read(self.start + i)

  def name(self, i: int) -> str:
    return _opened(self.spec, self.split).describe(self.start + i)

  def part(self, start: int, stop: int) -> 'Opened':
    return Opened(self.spec, self.split, self.start + start, self.start + stop)


@dataclasses.dataclass(frozen=True)
class OfSource:
  """Examples of a source that is open; they stay in this process."""

  source: Source
  start: int
  stop: int

  def __len__(self) -> int:
    return self.stop - self.start

  def read(self, i: int) -> Stored:
    return self.source.read(self.start + i)

  def name(self, i: int) -> str:
    return self.source.describe(self.start + i)

  def part(self, start: int, stop: int) -> 'OfSource':
    return OfSource(self.source, self.start + start, self.start + stop)


@dataclasses.dataclass(frozen=True)
class Listing:
  """A data set.

  Attributes:
    source: what the user called it.
    splits: their examples.
    class_names: in label order, each different.
    class_ids: the synsets of the classes, or nothing.
    multi_label: whether labels are vectors of zeros and ones.
    fingerprint: changes when the names of its files or their places do.
  """

  source: str
  splits: Mapping[str, Examples]
  class_names: tuple[str, ...]
  class_ids: tuple[str, ...] = ()
  multi_label: bool = False
  fingerprint: str = ''


@dataclasses.dataclass(frozen=True)
class Options:
  """How to understand a source.

  Attributes:
    splits: the ones to take; all without any.
    classes: 'found', 'imagenet' or 'imagenet21k': what labels count in; by the source if empty.
    ground_truth: the file with the classes of ImageNet's validation images; else beside them.
    partial: whether ImageNet may be incomplete.
  """

  splits: tuple[str, ...] = ()
  classes: str = ''
  ground_truth: str = ''
  partial: bool = False


def _digest(*texts: Sequence[str] | bytes) -> str:
  digest = hashlib.sha256()
  for text in texts:
    data = text if isinstance(text, bytes) else '\0'.join(text).encode('utf-8', 'surrogateescape')
    digest.update(len(data).to_bytes(8) + data)
  return digest.hexdigest()


def _classes(found: Sequence[str], options: Options) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """(ids of the classes in label order, their names) for the names of class folders."""
  lists = {'imagenet': '1k', 'imagenet21k': '21k'}
  known = set(imagenet.synsets()) | set(imagenet.synsets('21k'))
  if options.classes in lists:
    ids = imagenet.synsets(lists[options.classes])
    if extra := sorted(set(found) - set(ids)):
      raise UserError(f'{extra[0]!r} is no class of {options.classes}.')
  elif set(found) == set(imagenet.synsets()) or not set(found) <= known:
    ids = tuple(sorted(found))
  elif len(found) > 1000 and set(found) <= set(imagenet.synsets('21k')):
    ids = imagenet.synsets('21k')
  else:
    ids = tuple(sorted(found))
  return ids, (imagenet.class_names(ids) if set(ids) <= known else ids)


def _list_folder(root: pathlib.Path, options: Options) -> Listing:
  """{train,val,test}/class/* or class/*, as `folder:` reads it."""
  inside = {c.name for c in root.iterdir() if c.is_dir()} & {'train', 'val', 'test'}
  wanted = options.splits or (sorted(inside, key='train val test'.find) if len(inside) > 1 else ())
  files, labels_in = {}, {}
  for split in wanted or ('train', 'test'):
    folder, belongs = split_folder(root, split)
    found = image_files(folder)
    files[split] = (str(folder), [f for f in found if os.sep in f and belongs(f)])
    if not labels_in or split == 'train':
      labels_in = sorted({f.split(os.sep)[0] for f in found if os.sep in f})
  if not labels_in:
    raise UserError(f'{root} holds no image in any sub-folder; a sub-folder each class is needed.')
  for name in labels_in:
    if not name.isprintable():
      raise UserError(f'The name of the class folder {ascii(name)} in {root} is no plain text.')
  ids, names = _classes(labels_in, options)
  label_of = {name: i for i, name in enumerate(ids)}
  splits = {}
  for split, (folder, found) in files.items():
    for file in found:
      if file.split(os.sep)[0] not in label_of:
        raise UserError(f'{folder}/{file} is of a class that the training images do not have.')
    labels = np.array([label_of[file.split(os.sep)[0]] for file in found], np.int32)
    if found:
      splits[split] = Files(folder, found, labels)
    elif wanted:
      raise UserError(f'{folder} holds no image of the split {split!r}.')
  fingerprint = _digest(*(splits[split].names for split in splits))
  return Listing(str(root), splits, names, ids if ids != names else (), fingerprint=fingerprint)


def _members(rows: list[tuple[int, int, int, int]], files: Sequence[str]) -> Members:
  columns = np.array(rows, np.int64).reshape(-1, 4).T
  return Members(
      tuple(files), columns[0].astype(np.uint16), columns[1], columns[2], columns[3].astype(np.int32)
  )


def _class_tars(root: pathlib.Path, files: list[pathlib.Path], options: Options) -> Listing:
  """One tar a synset, as ImageNet-21k comes."""
  which = {'imagenet': '1k', 'found': ''}.get(options.classes, '21k')
  ids = imagenet.synsets(which) if which else tuple(sorted(file.stem for file in files))
  label_of = {synset: i for i, synset in enumerate(ids)}
  rows = []
  for number, file in enumerate(files):
    if file.stem not in label_of:
      raise UserError(f'{file} is of a synset that the list of ImageNet-{which} does not have.')
    rows += [(number, *place, label_of[file.stem]) for _, *place in tars.members(str(file))]
  examples = _members(rows, [str(file) for file in files])
  return _of_members(str(root), {'train': examples}, ids)


def _of_members(source: str, splits: dict[str, Members], ids: tuple[str, ...]) -> Listing:
  places = [e.offsets.tobytes() + e.sizes.tobytes() + e.labels.tobytes() for e in splits.values()]
  return Listing(source, splits, imagenet.class_names(ids), ids, fingerprint=_digest(*places))


def _ground_truth(val_tar: pathlib.Path, options: Options) -> list[str]:
  if options.ground_truth:
    return imagenet.read_ground_truth(pathlib.Path(options.ground_truth).expanduser())
  for name in imagenet.GROUND_TRUTHS:
    if (val_tar.parent / name).exists():
      return imagenet.read_ground_truth(val_tar.parent / name)
  raise UserError(
      f'The classes of the images in {val_tar} are not known: put '
      f'{" or ".join(imagenet.GROUND_TRUTHS)} beside it, or name the file by --ground_truth.'
  )


def _refuse_partial(what: str, found: int, whole: int, options: Options) -> None:
  if found != whole and not options.partial:
    raise UserError(f'{what}: {found:,} of {whole:,}; copy it again, or take it with --partial.')


def _train_tar(file: pathlib.Path, options: Options) -> Members:
  label_of = {synset: i for i, synset in enumerate(imagenet.synsets())}
  rows, seen = [], set()
  for name, offset, size in sorted(tars.members(str(file))):
    synset = pathlib.PurePosixPath(name).stem
    if synset not in label_of:
      raise UserError(f'{file} holds {name[:60]!r}, which is no synset of ILSVRC2012.')
    seen.add(synset)
    inner = tars.members(str(file), offset, size)
    rows += [(0, start, length, label_of[synset]) for _, start, length in inner]
  _refuse_partial(f'{file} lacks classes', len(seen), len(label_of), options)
  _refuse_partial(f'{file} lacks images', len(rows), imagenet.TRAIN_IMAGES, options)
  return _members(rows, [str(file)])


def _val_tar(file: pathlib.Path, options: Options) -> Members:
  label_of = {synset: i for i, synset in enumerate(imagenet.synsets())}
  truth = _ground_truth(file, options)
  rows = []
  for name, offset, size in sorted(tars.members(str(file))):
    number = imagenet.val_number(name)
    if number is None or number >= len(truth):
      raise UserError(f'The ground truth of {name[:60]!r} in {file} is not known.')
    rows.append((0, offset, size, label_of[truth[number]]))
  _refuse_partial(f'{file} lacks images', len(rows), imagenet.VAL_IMAGES, options)
  return _members(rows, [str(file)])


def _list_imagenet(source: str, files: Sequence[pathlib.Path], options: Options) -> Listing:
  splits: dict[str, Members] = {}
  readers = {imagenet.TRAIN_TAR: ('train', _train_tar), imagenet.VAL_TAR: ('validation', _val_tar)}
  for name, (split, read) in readers.items():
    wanted = not options.splits or split in options.splits
    for file in (file for file in files if file.name == name and wanted):
      splits[split] = read(file, options)
  if not splits:
    raise UserError(f'{source} has no split {", ".join(options.splits)}.')
  return _of_members(source, splits, imagenet.synsets())


def _list_source(spec: str, options: Options) -> Listing:
  names = options.splits or split_names(spec)
  opened = {name: _opened(spec, name) for name in names}
  first = next(iter(opened.values()))
  return Listing(
      spec,
      {name: Opened(spec, name, 0, source.size) for name, source in opened.items()},
      first.class_names,
      multi_label=first.multi_label,
      fingerprint=_digest([f'{s.name} {s.size} {s.fingerprint}' for s in opened.values()]),
  )


def list_sources(sources: Mapping[str, Source]) -> Listing:
  """The listing of sources that are open, by split."""
  first = next(iter(sources.values()))
  return Listing(
      ', '.join(dict.fromkeys(source.name for source in sources.values())),
      {name: OfSource(source, 0, source.size) for name, source in sources.items()},
      first.class_names,
      multi_label=first.multi_label,
  )


def list_examples(source: str, options: Options | None = None) -> Listing:
  """What a data source, a folder, ImageNet's tars or the folder that they are in hold.

  Raises:
    UserError: for data that is not there, or not what it should be.
  """
  options = options or Options()
  if source.startswith('folder:'):
    source = source.removeprefix('folder:')
  elif _KIND.match(source):
    return _list_source(source, options)
  paths = [pathlib.Path(path.strip()).expanduser() for path in source.split(',')]
  if os.path.exists(os.path.expanduser(source)):
    paths = [pathlib.Path(source).expanduser()]
  for path in paths:
    if not path.exists():
      raise UserError(f'There is no {path}; SOURCE is a folder, ImageNet tars, or a data source.')
  tar_names = (imagenet.TRAIN_TAR, imagenet.VAL_TAR)
  if paths[0].is_dir():
    official = [paths[0] / name for name in tar_names if (paths[0] / name).exists()]
    if official:
      return _list_imagenet(source, official, options)
    class_tars = sorted(f for f in paths[0].glob('n*.tar') if imagenet.is_synset(f.stem))
    if class_tars:
      return _class_tars(paths[0], class_tars, options)
    return _list_folder(paths[0], options)
  if all(path.name in tar_names for path in paths):
    return _list_imagenet(source, paths, options)
  raise UserError(
      f'{paths[0]} is no folder, and not called {" or ".join(tar_names)}; tar shards are read as '
      'webdataset:/path.'
  )

