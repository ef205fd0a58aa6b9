"""Lists a data set that is to be prepared: its splits, its classes, and how to read each example.

Only names, labels and offsets are read, so an unreadable image is not an error yet.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from etils import epath

from vit_jax.data import imagenet
from vit_jax.data.sources import Source, image_files, split_names
from vit_jax.data.sources.folder import ignored_files, locate_split, split_folders
from vit_jax.data.sources.folder import split_names as folder_splits
from vit_jax.data.sources.tar import tar_members
from vit_jax.errors import UserError
from vit_jax.prepare.examples import (
  Examples,
  FileExamples,
  OpenSourceExamples,
  SourceExamples,
  TarExamples,
  open_source_once,
)
from vit_jax.text import printable

_DATA_SOURCE = re.compile(r'[a-z_]+:|digits$|.*[*+].*:')


@dataclasses.dataclass(frozen=True)
class Listing:
  """A data set that is to be prepared.

  Attributes:
    source: what the user called it.
    splits: name -> its examples.
    class_names: unique names in label order.
    class_ids: the synsets of the classes in label order, or empty.
    multi_label: whether labels are vectors of zeros and ones.
    fingerprint: changes when the names of its files or their offsets in tars change.
    notes: what the user should know, a sentence each.
  """

  source: str
  splits: Mapping[str, Examples]
  class_names: tuple[str, ...]
  class_ids: tuple[str, ...] = ()
  multi_label: bool = False
  fingerprint: str = ''
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Options:
  """How to read a source.

  Attributes:
    splits: the splits to read; empty: all.
    classes: what the labels are indices into: 'found' (the classes of the source), 'imagenet' or
      'imagenet21k'; empty: chosen by the source.
    ground_truth: file with the classes of ImageNet's validation images; empty: beside their tar.
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


def _classes(
  folder_names: Sequence[str], options: Options
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Returns (class ids, class names), in label order, for the names of class folders."""
  id_lists = {'imagenet': '1k', 'imagenet21k': '21k'}
  folders, synsets_21k = set(folder_names), set(imagenet.synsets('21k'))
  if options.classes in id_lists:
    ids = imagenet.synsets(id_lists[options.classes])
    if extra := sorted(folders - set(ids)):
      raise UserError(
        f'The class folder {extra[0]!r} is not a class of {options.classes}; remove it, or use '
        '--classes=found.'
      )
  elif len(folders) > 1000 and folders <= synsets_21k:
    ids = imagenet.synsets('21k')
  else:
    ids = tuple(sorted(folders))
  return ids, (
    imagenet.class_names(ids) if set(ids) <= synsets_21k.union(imagenet.synsets()) else ids
  )


def _class_of(file: str) -> str:
  return file.split(os.sep)[0]


def _class_folders(folder: epath.Path) -> list[str]:
  names = sorted({_class_of(file) for file in image_files(folder) if os.sep in file})
  if not names:
    raise UserError(f'{folder} has no images in subfolders; it needs one subfolder per class.')
  for name in names:
    if not name.isprintable():
      raise UserError(
        f'The class folder {folder}/{ascii(name)} has unprintable characters in its name; '
        'rename it.'
      )
  return names


def _list_folder(root: epath.Path, options: Options) -> Listing:
  """{train,val,test}/class/* or class/*, as `folder:` reads it."""
  named_folders = split_folders(root)
  split_files: dict[str, tuple[epath.Path, list[str]]] = {}
  folder = root
  for split in options.splits or folder_splits(str(root)):
    folder, belongs = locate_split(root, split)
    names = [file for file in image_files(folder) if os.sep in file and belongs(file)]
    split_files[split] = (folder, names)
  # All classes count, also those without an image in these splits: labels must not depend on it.
  train = named_folders.get('train', folder)
  ids, class_names = _classes(_class_folders(train), options)
  label_of = {name: i for i, name in enumerate(ids)}
  splits = {}
  for split, (folder, names) in split_files.items():
    for name in names:
      if _class_of(name) not in label_of:
        raise UserError(
          f'{folder / printable(name)} belongs to a class that {train} does not have; add that '
          'class there, or remove the image.'
        )
    if names:
      labels = np.array([label_of[_class_of(name)] for name in names], np.int32)
      splits[split] = FileExamples(str(folder), names, labels)
    elif options.splits or set(named_folders) - {'train'}:
      raise UserError(
        f'{folder} has no images for the split {split!r}; choose other splits with --splits.'
      )
  folders = dict.fromkeys(folder for folder, _ in split_files.values())
  return Listing(
    str(root),
    splits,
    class_names,
    class_ids=ids if ids != class_names else (),
    fingerprint=_digest(*(examples.names for examples in splits.values())),
    notes=tuple(note for folder in folders for note in ignored_files(folder)),
  )


def _tar_rows(tar: int, members: Iterable[tuple[str, int, int]], label: int) -> np.ndarray:
  """(N, 4) int64: tar, offset, size, label; 32 bytes per file, so 14 million files fit."""
  rows = [(tar, offset, size, label) for _, offset, size in members]
  return np.array(rows, np.int64).reshape(-1, 4)


def _tar_examples(rows: Sequence[np.ndarray], tars: Sequence[str]) -> TarExamples:
  columns = np.concatenate([np.empty((0, 4), np.int64), *rows]).T
  tar, labels = columns[0].astype(np.uint16), columns[3].astype(np.int32)
  return TarExamples(tuple(tars), tar, columns[1].copy(), columns[2].copy(), labels)


def _list_tars(source: str, splits: dict[str, TarExamples], ids: tuple[str, ...]) -> Listing:
  contents = [e.offsets.tobytes() + e.sizes.tobytes() + e.labels.tobytes() for e in splits.values()]
  return Listing(source, splits, imagenet.class_names(ids), ids, fingerprint=_digest(*contents))


def _list_class_tars(root: pathlib.Path, tars: list[pathlib.Path], options: Options) -> Listing:
  """One tar per synset, as ImageNet-21k is published."""
  id_list = {'imagenet': '1k', 'found': ''}.get(options.classes, '21k')
  ids = imagenet.synsets(id_list) if id_list else tuple(sorted(tar.stem for tar in tars))
  label_of = {synset: i for i, synset in enumerate(ids)}
  rows = []
  for number, tar in enumerate(tars):
    if tar.stem not in label_of:
      raise UserError(
        f'{tar} is named after a synset that ImageNet-{id_list} does not have; remove it, or use '
        '--classes=found.'
      )
    rows.append(_tar_rows(number, tar_members.members(str(tar)), label_of[tar.stem]))
  return _list_tars(str(root), {'train': _tar_examples(rows, [str(tar) for tar in tars])}, ids)


def _read_ground_truth(val_tar: pathlib.Path, options: Options) -> list[str]:
  if options.ground_truth:
    return imagenet.read_ground_truth(pathlib.Path(options.ground_truth).expanduser())
  for name in imagenet.GROUND_TRUTHS:
    if (val_tar.parent / name).exists():
      return imagenet.read_ground_truth(val_tar.parent / name)
  raise UserError(
    f'The classes of the images in {val_tar} are unknown: put '
    f'{" or ".join(imagenet.GROUND_TRUTHS)} beside it, or pass the file with --ground_truth.'
  )


def _check_complete(
  tar: pathlib.Path, count: int, expected: int, noun: str, options: Options
) -> None:
  if count != expected and not options.partial:
    raise UserError(
      f'{tar} has {count:,} of {expected:,} {noun}; copy it again, or accept it with --partial.'
    )


def _list_train_tar(tar: pathlib.Path, options: Options) -> TarExamples:
  label_of = {synset: i for i, synset in enumerate(imagenet.synsets())}
  rows, seen = [], set()
  for name, offset, size in sorted(tar_members.members(str(tar))):
    synset = pathlib.PurePosixPath(name).stem
    if synset not in label_of:
      raise UserError(
        f'{tar} contains {name[:60]!r}, which is not a synset of ILSVRC2012; use the official tar.'
      )
    seen.add(synset)
    rows.append(_tar_rows(0, tar_members.members(str(tar), offset, size), label_of[synset]))
  examples = _tar_examples(rows, [str(tar)])
  _check_complete(tar, len(seen), len(label_of), 'classes', options)
  _check_complete(tar, len(examples), imagenet.TRAIN_IMAGES, 'images', options)
  return examples


def _list_val_tar(tar: pathlib.Path, options: Options) -> TarExamples:
  label_of = {synset: i for i, synset in enumerate(imagenet.synsets())}
  ground_truth = _read_ground_truth(tar, options)
  rows = []
  for name, offset, size in sorted(tar_members.members(str(tar))):
    number = imagenet.val_number(name)
    if number is None or number >= len(ground_truth):
      raise UserError(
        f'The ground truth has no class for {name[:60]!r} in {tar}; use the official files.'
      )
    rows.append(_tar_rows(0, [(name, offset, size)], label_of[ground_truth[number]]))
  _check_complete(tar, len(rows), imagenet.VAL_IMAGES, 'images', options)
  return _tar_examples(rows, [str(tar)])


def _list_imagenet(source: str, tars: Sequence[pathlib.Path], options: Options) -> Listing:
  splits: dict[str, TarExamples] = {}
  for name, split, list_tar in (
    (imagenet.TRAIN_TAR, 'train', _list_train_tar),
    (imagenet.VAL_TAR, 'validation', _list_val_tar),
  ):
    for tar in tars:
      if tar.name == name and (not options.splits or split in options.splits):
        splits[split] = list_tar(tar, options)
  if not splits:
    raise UserError(
      f'{source} does not have the split {" or ".join(options.splits)}; {imagenet.TRAIN_TAR} is '
      f'train, {imagenet.VAL_TAR} is validation.'
    )
  return _list_tars(source, splits, imagenet.synsets())


def _list_source(spec: str, options: Options) -> Listing:
  names = options.splits or split_names(spec)
  for name in names:
    if not re.fullmatch('[A-Za-z0-9_.-]+', name):
      raise UserError(f'{name!r} is not the name of a split; prepare whole splits, not slices.')
  sources = {name: open_source_once(spec, name) for name in names}
  first = next(iter(sources.values()))
  return Listing(
    spec,
    {name: SourceExamples(spec, name, 0, source.size) for name, source in sources.items()},
    first.class_names,
    multi_label=first.multi_label,
    fingerprint=_digest([f'{s.name} {s.size} {s.fingerprint}' for s in sources.values()]),
  )


def list_sources(sources: Mapping[str, Source]) -> Listing:
  """Returns the listing of open sources, by split."""
  first = next(iter(sources.values()))
  return Listing(
    ', '.join(dict.fromkeys(source.name for source in sources.values())),
    {name: OpenSourceExamples(source, 0, source.size) for name, source in sources.items()},
    first.class_names,
    multi_label=first.multi_label,
    notes=tuple(dict.fromkeys(note for source in sources.values() for note in source.notes)),
  )


def _list_directory(source: str, root: pathlib.Path, options: Options) -> Listing:
  tars = [root / name for name in (imagenet.TRAIN_TAR, imagenet.VAL_TAR) if (root / name).exists()]
  if tars:
    return _list_imagenet(source, tars, options)
  class_tars = sorted(tar for tar in root.glob('n*.tar') if imagenet.is_synset(tar.stem))
  if class_tars:
    return _list_class_tars(root, class_tars, options)
  return _list_folder(epath.Path(root), options)


def list_examples(source: str, options: Options | None = None) -> Listing:
  """Lists the examples of a data set.

  Args:
    source: a data source (see `open_source`), an image folder, a folder of ImageNet's tars, or
      those tars, separated by commas.
    options: how to read it.

  Raises:
    UserError: when data is missing, incomplete or of another kind.
  """
  options = options or Options()
  if source.startswith('folder:'):
    source = source.removeprefix('folder:')
  elif _DATA_SOURCE.match(source):
    return _list_source(source, options)
  paths = [pathlib.Path(path.strip()).expanduser() for path in source.split(',')]
  if os.path.exists(os.path.expanduser(source)):
    paths = [pathlib.Path(source).expanduser()]
  for path in paths:
    if not path.exists():
      raise UserError(
        f'{path} does not exist; SOURCE is a folder, ImageNet tars, or a data source.'
      )
  if paths[0].is_dir():
    return _list_directory(source, paths[0], options)
  tar_names = (imagenet.TRAIN_TAR, imagenet.VAL_TAR)
  if all(path.name in tar_names for path in paths):
    return _list_imagenet(source, paths, options)
  raise UserError(
    f'{paths[0]} is neither a folder nor named {" or ".join(tar_names)}; tar shards are read as '
    'webdataset:/path.'
  )
