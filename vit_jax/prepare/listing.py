"""Lists a data set that is to be prepared: its splits, its classes, and how to read each example.

Only names, labels and offsets are read, so an unreadable image is not an error yet.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vit_jax.data import imagenet
from vit_jax.data.sources import Source, open_source, split_names
from vit_jax.data.sources.folders.folder import ImageFolder
from vit_jax.data.sources.tar import tar_members
from vit_jax.errors import UserError
from vit_jax.prepare.examples import Examples, FileExamples, SourceExamples, TarExamples

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


def _label_classes(folders: set[str], options: Options) -> tuple[str, ...]:
  """Returns the classes, in label order, of a data set with these class folders."""
  synsets_21k = imagenet.synsets('21k')
  known = {'imagenet': imagenet.synsets(), 'imagenet21k': synsets_21k}.get(options.classes)
  if known is None:
    is_21k = len(folders) > 1000 and folders <= set(synsets_21k)
    return synsets_21k if is_21k else tuple(sorted(folders))
  if extra := sorted(folders - set(known)):
    raise UserError(
      f'The class folder {extra[0]!r} is not a class of {options.classes}; remove it, or use '
      '--classes=found.'
    )
  return known


def _list_folder(path: str, options: Options) -> Listing:
  """{train,val,test}/class/* or class/*, as `folder:` reads it."""
  folder = ImageFolder(path)
  classes = _label_classes(set(folder.class_names), options)
  splits, notes = {}, []
  for split in options.splits or folder.split_names:
    files = folder.split(split, classes)
    notes += files.notes
    if files.names:
      splits[split] = FileExamples(str(files.folder), files.names, files.labels)
    elif options.splits or set(folder.layout.splits) - {'train'}:
      raise UserError(
        f'{files.folder} has no images for the split {split!r}; choose other splits with --splits.'
      )
  are_synsets = set(classes) <= {*imagenet.synsets(), *imagenet.synsets('21k')}
  return Listing(
    path,
    splits,
    imagenet.class_names(classes) if are_synsets else classes,
    class_ids=classes if are_synsets else (),
    fingerprint=_digest(*(examples.names for examples in splits.values())),
    notes=tuple(dict.fromkeys(notes)),
  )


def _member_rows(tar: int, members: Iterable[tuple[str, int, int]], label: int) -> np.ndarray:
  """Returns rows of `TarExamples.members`; at 32 bytes each, 14 million fit in memory."""
  rows = [(tar, offset, size, label) for _, offset, size in members]
  return np.array(rows, np.int64).reshape(-1, 4)


def _list_tars(source: str, splits: dict[str, TarExamples], ids: tuple[str, ...]) -> Listing:
  contents = []
  for examples in splits.values():
    _, offsets, sizes, labels = examples.members.T
    contents.append(offsets.tobytes() + sizes.tobytes() + labels.astype(np.int32).tobytes())
  return Listing(source, splits, imagenet.class_names(ids), ids, fingerprint=_digest(*contents))


def _list_class_tars(root: pathlib.Path, tars: list[pathlib.Path], options: Options) -> Listing:
  """One tar per synset, as ImageNet-21k is published."""
  id_list = {'imagenet': '1k', 'found': ''}.get(options.classes, '21k')
  ids = imagenet.synsets(id_list) if id_list else tuple(sorted(tar.stem for tar in tars))
  labels = {synset: label for label, synset in enumerate(ids)}
  rows = []
  for number, tar in enumerate(tars):
    if tar.stem not in labels:
      raise UserError(
        f'{tar} is named after a synset that ImageNet-{id_list} does not have; remove it, or use '
        '--classes=found.'
      )
    rows.append(_member_rows(number, tar_members.members(str(tar)), labels[tar.stem]))
  examples = TarExamples([str(tar) for tar in tars], np.concatenate(rows))
  return _list_tars(str(root), {'train': examples}, ids)


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
  labels = {synset: label for label, synset in enumerate(imagenet.synsets())}
  rows = [_member_rows(0, [], 0)]
  for name, offset, size in sorted(tar_members.members(str(tar))):
    synset = pathlib.PurePosixPath(name).stem
    if synset not in labels:
      raise UserError(
        f'{tar} contains {name[:60]!r}, which is not a synset of ILSVRC2012; use the official tar.'
      )
    rows.append(_member_rows(0, tar_members.members(str(tar), offset, size), labels[synset]))
  examples = TarExamples([str(tar)], np.concatenate(rows))
  num_classes = len(np.unique(examples.members[:, 3]))
  _check_complete(tar, num_classes, len(labels), 'classes', options)
  _check_complete(tar, len(examples), imagenet.TRAIN_IMAGES, 'images', options)
  return examples


def _list_val_tar(tar: pathlib.Path, options: Options) -> TarExamples:
  labels = {synset: label for label, synset in enumerate(imagenet.synsets())}
  ground_truth = _read_ground_truth(tar, options)
  rows = []
  for name, offset, size in sorted(tar_members.members(str(tar))):
    number = imagenet.val_number(name)
    if number is None or number >= len(ground_truth):
      raise UserError(
        f'The ground truth has no class for {name[:60]!r} in {tar}; use the official files.'
      )
    rows.append((0, offset, size, labels[ground_truth[number]]))
  _check_complete(tar, len(rows), imagenet.VAL_IMAGES, 'images', options)
  return TarExamples([str(tar)], np.array(rows, np.int64).reshape(-1, 4))


# split -> its tar, and the function that lists it
_IMAGENET = {
  'train': (imagenet.TRAIN_TAR, _list_train_tar),
  'validation': (imagenet.VAL_TAR, _list_val_tar),
}
_TAR_NAMES = f'{imagenet.TRAIN_TAR} or {imagenet.VAL_TAR}'


def _list_imagenet(source: str, tars: Mapping[str, pathlib.Path], options: Options) -> Listing:
  """Lists the official tars, by name."""
  splits = {
    split: list_tar(tars[name], options)
    for split, (name, list_tar) in _IMAGENET.items()
    if name in tars and split in (options.splits or _IMAGENET)
  }
  if not splits:
    raise UserError(
      f'{source} does not have the split {" or ".join(options.splits)}; {imagenet.TRAIN_TAR} is '
      f'train, {imagenet.VAL_TAR} is validation.'
    )
  return _list_tars(source, splits, imagenet.synsets())


def list_sources(sources: Mapping[str, Source]) -> Listing:
  """Returns the listing of open sources, by split."""
  first = next(iter(sources.values()))
  return Listing(
    ', '.join(dict.fromkeys(source.name for source in sources.values())),
    {name: SourceExamples(lambda s=s: s, range(s.size)) for name, s in sources.items()},
    first.class_names,
    multi_label=first.multi_label,
    notes=tuple(dict.fromkeys(note for source in sources.values() for note in source.notes)),
  )


@functools.lru_cache(maxsize=8)
def _open_once(spec: str, split: str) -> Source:
  """`open_source`, once in each process."""
  return open_source(spec, split)


def _list_source(spec: str, options: Options) -> Listing:
  names = options.splits or split_names(spec)
  for name in names:
    if not re.fullmatch('[A-Za-z0-9_.-]+', name):
      raise UserError(f'{name!r} is not the name of a split; prepare whole splits, not slices.')
  sources = {name: _open_once(spec, name) for name in names}
  return dataclasses.replace(
    list_sources(sources),
    source=spec,
    splits={
      name: SourceExamples(functools.partial(_open_once, spec, name), range(source.size))
      for name, source in sources.items()
    },
    fingerprint=_digest([f'{s.name} {s.size} {s.fingerprint}' for s in sources.values()]),
    notes=(),
  )


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
  if _DATA_SOURCE.match(source) and not source.startswith('folder:'):
    return _list_source(source, options)
  source = source.removeprefix('folder:')
  root = pathlib.Path(source).expanduser()
  paths = [root]
  if not root.exists() and '?' in source:
    return _list_folder(source, options)
  if not root.exists():
    paths = [pathlib.Path(path.strip()).expanduser() for path in source.split(',')]
  for path in paths:
    if not path.exists():
      raise UserError(
        f'{path} does not exist; SOURCE is a folder, ImageNet tars, or a data source.'
      )
  if root.is_dir():
    paths = [root / name for name, _ in _IMAGENET.values() if (root / name).exists()]
    class_tars = sorted(tar for tar in root.glob('n*.tar') if imagenet.is_synset(tar.stem))
    if not paths and class_tars:
      return _list_class_tars(root, class_tars, options)
    if not paths:
      return _list_folder(str(root), options)
  tars = {path.name: path for path in paths}
  if not tars.keys() <= {name for name, _ in _IMAGENET.values()}:
    raise UserError(
      f'{source} is neither a folder nor named {_TAR_NAMES}; tar shards are read as '
      'webdataset:/path, tables as table:/path.'
    )
  return _list_imagenet(source, tars, options)
