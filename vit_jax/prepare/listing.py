"""What a data set to be prepared holds: its splits, its classes, and how to read each example.

Nothing is read here but names, labels and places, so an unreadable image is no error yet. The
examples of a split can be cut in parts and sent to another process.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vit_jax.data import imagenet
from vit_jax.data.sources import Source, image_files, split_names
from vit_jax.data.sources.folder import ignored_files, locate_split, split_folders
from vit_jax.data.sources.folder import split_names as folder_splits
from vit_jax.data.sources.tar import tar_members
from vit_jax.errors import UserError
from vit_jax.prepare.examples import Examples, Files, Members, OfSource, Opened, opened, shown

_KIND = re.compile(r'[a-z_]+:|digits$|.*[*+].*:')


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


def _class_folders(files: Sequence[str], folder: pathlib.Path) -> list[str]:
  names = sorted({file.split(os.sep)[0] for file in files if os.sep in file})
  if not names:
    raise UserError(f'{folder} holds no image in any sub-folder; it takes a sub-folder each class.')
  for name in names:
    if not name.isprintable():
      raise UserError(f'The name of the class folder {folder}/{ascii(name)} is no plain text.')
  return names


def _list_folder(root: pathlib.Path, options: Options) -> Listing:
  """{train,val,test}/class/* or class/*, as `folder:` reads it."""
  files = {}
  for split in options.splits or folder_splits(str(root)):
    folder, belongs = locate_split(root, split)
    found = [file for file in image_files(folder) if os.sep in file]
    files[split] = (folder, [file for file in found if belongs(file)])
  # All classes count, also those without an image in these splits: labels must not depend on it.
  train = split_folders(root).get('train', folder)
  ids, names = _classes(_class_folders(image_files(train), train), options)
  label_of = {name: i for i, name in enumerate(ids)}
  splits = {}
  for split, (folder, found) in files.items():
    for file in found:
      if file.split(os.sep)[0] not in label_of:
        raise UserError(f'{folder / shown(file)} is of a class that {train} does not have.')
    labels = np.array([label_of[file.split(os.sep)[0]] for file in found], np.int32)
    if found:
      splits[split] = Files(str(folder), found, labels)
    elif options.splits or set(split_folders(root)) - {'train'}:
      raise UserError(f'{folder} holds no image of the split {split!r}.')
  fingerprint = _digest(*(splits[split].names for split in splits))
  folders = dict.fromkeys(folder for folder, _ in files.values())
  notes = tuple(note for folder in folders for note in ignored_files(folder))
  ids = ids if ids != names else ()
  return Listing(str(root), splits, names, ids, fingerprint=fingerprint, notes=notes)


def _rows(tar: int, places: Iterable[tuple[str, int, int]], label: int) -> np.ndarray:
  """(tar, offset, bytes, label) of the files in a tar; 32 bytes each, so 14 million are fine."""
  rows = [(tar, offset, size, label) for _, offset, size in places]
  return np.array(rows, np.int64).reshape(-1, 4)


def _members(rows: Sequence[np.ndarray], files: Sequence[str]) -> Members:
  columns = np.concatenate([np.empty((0, 4), np.int64), *rows]).T
  tar, label = columns[0].astype(np.uint16), columns[3].astype(np.int32)
  return Members(tuple(files), tar, columns[1].copy(), columns[2].copy(), label)


def _class_tars(root: pathlib.Path, files: list[pathlib.Path], options: Options) -> Listing:
  """One tar a synset, as ImageNet-21k comes."""
  which = {'imagenet': '1k', 'found': ''}.get(options.classes, '21k')
  ids = imagenet.synsets(which) if which else tuple(sorted(file.stem for file in files))
  label_of = {synset: i for i, synset in enumerate(ids)}
  rows = []
  for number, file in enumerate(files):
    if file.stem not in label_of:
      raise UserError(f'{file} is of a synset that the list of ImageNet-{which} does not have.')
    rows.append(_rows(number, tar_members.members(str(file)), label_of[file.stem]))
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
  for name, offset, size in sorted(tar_members.members(str(file))):
    synset = pathlib.PurePosixPath(name).stem
    if synset not in label_of:
      raise UserError(f'{file} holds {name[:60]!r}, which is no synset of ILSVRC2012.')
    seen.add(synset)
    inner = tar_members.members(str(file), offset, size)
    rows.append(_rows(0, inner, label_of[synset]))
  found = _members(rows, [str(file)])
  _refuse_partial(f'{file} lacks classes', len(seen), len(label_of), options)
  _refuse_partial(f'{file} lacks images', len(found), imagenet.TRAIN_IMAGES, options)
  return found


def _val_tar(file: pathlib.Path, options: Options) -> Members:
  label_of = {synset: i for i, synset in enumerate(imagenet.synsets())}
  truth = _ground_truth(file, options)
  rows = []
  for name, offset, size in sorted(tar_members.members(str(file))):
    number = imagenet.val_number(name)
    if number is None or number >= len(truth):
      raise UserError(f'The ground truth of {name[:60]!r} in {file} is not known.')
    rows.append(_rows(0, [(name, offset, size)], label_of[truth[number]]))
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
  for name in names:
    if not re.fullmatch('[A-Za-z0-9_.-]+', name):
      raise UserError(f'{name!r} is no name of a split; whole splits are prepared, not parts.')
  sources = {name: opened(spec, name) for name in names}
  first = next(iter(sources.values()))
  return Listing(
    spec,
    {name: Opened(spec, name, 0, source.size) for name, source in sources.items()},
    first.class_names,
    multi_label=first.multi_label,
    fingerprint=_digest([f'{s.name} {s.size} {s.fingerprint}' for s in sources.values()]),
  )


def list_sources(sources: Mapping[str, Source]) -> Listing:
  """The listing of sources that are open, by split."""
  first = next(iter(sources.values()))
  return Listing(
    ', '.join(dict.fromkeys(source.name for source in sources.values())),
    {name: OfSource(source, 0, source.size) for name, source in sources.items()},
    first.class_names,
    multi_label=first.multi_label,
    notes=tuple(dict.fromkeys(note for source in sources.values() for note in source.notes)),
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
