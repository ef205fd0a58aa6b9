"""webdataset:/path: tar shards, with random access.

  webdataset:/path/{000000..000127}.tar   several shards
  webdataset:/path                        all .tar files in a folder, or in its sub-folders
                                          train/, val/, …, also below a lone folder
  webdataset:/path/images.tar             one shard

The splits are such sub-folders, or in the names of the files: 'train-0000.tar',
'imagenet1k-Validation-12.tar' (split_aliases.py). Without either, one example in five is held out
as test, by a hash of its name, and so that each class of two or more examples is on both sides.
tar_index.py documents the members of an example. Class names are the lines of
classes.txt or labels.txt beside the shards, the 'class_names' in a dataset.json there, else the
names that serve as labels, else numbers.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tqdm

from vit_jax.data.sources.source import Example, Source, fingerprint, multi_hot
from vit_jax.data.sources.splitting.holdout import spread_classes
from vit_jax.data.sources.tar import tar_shards
from vit_jax.data.sources.tar.tar_index import ShardIndex, file_stamp, index_shard, member_name
from vit_jax.errors import BadExampleError, UserError
from vit_jax.files import open_to_read, parse_json, read_text
from vit_jax.text import plural

_INDEX_THREADS = 4  # more of them would wait for the interpreter's lock
_MAX_OPEN_FILES = 64  # of one source


class _OpenFile:
  """An open shard; it closes when the last thread that reads it releases it."""

  def __init__(self, path: pathlib.Path):
    self.descriptor = open_to_read(path)

  def __del__(self):
    if hasattr(self, 'descriptor'):
      os.close(self.descriptor)


@dataclasses.dataclass(frozen=True)
class _Examples:
  """The N examples of a split: 16 bytes of memory each, a little more for multi-label data."""

  shard_ends: np.ndarray  # index after the last example of each shard
  offsets: np.ndarray  # (N,) position of each image in its shard
  sizes: np.ndarray  # (N,) bytes
  label_ends: np.ndarray | None  # (N,) end of the labels of each; None for one label per example
  labels: np.ndarray  # of all examples
  num_classes: int

  def shard(self, i: int) -> int:
    return int(np.searchsorted(self.shard_ends, i, side='right'))

  def digest(self) -> str:
    """A hash of where the images are, and of their labels."""
    digest = hashlib.sha256()
    for array in (self.shard_ends, self.offsets, self.sizes, self.labels):
      digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

  def label(self, i: int) -> np.int32 | np.ndarray:
    if self.label_ends is None:
      return self.labels[i]
    start = int(self.label_ends[i - 1]) if i else 0
    return multi_hot(self.labels[start : int(self.label_ends[i])], self.num_classes)


def _index_shards(files: Sequence[pathlib.Path]) -> list[ShardIndex]:
  """Indexes shards; on a terminal, a progress bar appears when it takes long."""
  bar = {'desc': 'indexing', 'unit': 'tar', 'delay': 2, 'leave': False, 'disable': None}
  with ThreadPoolExecutor(_INDEX_THREADS) as pool:
    return list(tqdm.tqdm(pool.map(index_shard, files), total=len(files), **bar))


def _read_class_names(root: pathlib.Path) -> tuple[str, ...]:
  """Reads the list of class names beside the shards; () without one."""
  for file in (root / 'classes.txt', root / 'labels.txt', root / 'dataset.json'):
    if not file.is_file():
      continue
    try:
      if file.suffix == '.txt':
        return tuple(read_text(file).splitlines())
      return tuple(map(str, parse_json(read_text(file)).get('class_names', ())))
    except (OSError, ValueError, AttributeError) as error:
      raise UserError(f'{file} cannot be read as a list of class names ({error}).') from None
  return ()


def _class_names(root: pathlib.Path, indices: Sequence[ShardIndex]) -> tuple[str, ...]:
  """Returns the classes of all splits, whichever is opened: labels must not depend on it."""
  listed = _read_class_names(root)
  used = {name for index in indices for name in index.names}
  numbered = [index for index in indices if not index.names and len(index.labels)]
  if used and numbered:
    raise UserError(f'webdataset:{root} has both names and numbers as labels; use one of them.')
  if unlisted := used.difference(listed) if listed else ():
    raise UserError(
      f'{min(unlisted)!r} is a label, but not in the list of classes in {root}; add it.'
    )
  highest = max((int(index.labels.max()) for index in numbered), default=-1)
  if listed and highest >= len(listed):
    count = plural(len(listed), 'class')
    raise UserError(f'{root} lists {count}, but has the label {highest}; complete the list.')
  return listed or tuple(sorted(used)) or tuple(map(str, range(highest + 1)))


def _held_out(
  shards: Sequence[ShardIndex], counts: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> list[np.ndarray]:
  """Returns which examples of each shard are held out: by their names, and some of each class."""
  if not shards:
    return []
  parts = np.where(np.concatenate([index.held_out for index in shards]), 0, 1)
  units = np.repeat(np.arange(len(parts)), np.concatenate(counts))
  spread_classes(parts, units, np.concatenate(labels), 2)
  return np.split(parts == 0, np.cumsum([len(index.offsets) for index in shards])[:-1])


def _gather(
  shards: Sequence[ShardIndex], class_names: Sequence[str], multi_label: bool, held_out: bool | None
) -> _Examples:
  """Gathers the examples of some shards: the held-out ones, the others, or all (None)."""
  label_of = {name: i for i, name in enumerate(class_names)}
  counts = [np.diff(index.ends, prepend=np.uint32(0)) for index in shards]
  all_labels = []
  for index in shards:
    new_labels = np.array([label_of[name] for name in index.names], np.int32)
    all_labels.append(new_labels[index.labels] if index.names else index.labels)
  keeps = [np.ones(len(index.offsets), bool) for index in shards]
  if held_out is not None:
    keeps = [mask == held_out for mask in _held_out(shards, counts, all_labels)]
  offsets, sizes, label_counts, labels = [], [], [], []
  for index, count, of_shard, keep in zip(shards, counts, all_labels, keeps, strict=True):
    offsets.append(index.offsets[keep])
    sizes.append(index.sizes[keep])
    label_counts.append(count[keep])
    labels.append(of_shard[np.repeat(keep, count)])
  return _Examples(
    shard_ends=np.cumsum([len(shard_offsets) for shard_offsets in offsets]),
    offsets=np.concatenate(offsets),
    sizes=np.concatenate(sizes),
    label_ends=np.cumsum(np.concatenate(label_counts)) if multi_label else None,
    labels=np.concatenate(labels),
    num_classes=len(class_names),
  )


def split_names(path: str) -> tuple[str, ...]:
  return tar_shards.split_names(tar_shards.find_shards(path)[1])


def open_split(path: str, split: str) -> Source:
  """Opens a split of tar shards, indexing them on first use."""
  spec = f'webdataset:{path}'
  root, shards = tar_shards.find_shards(path)
  files, held_out = tar_shards.choose_shards(shards, split, spec)
  all_files = list(itertools.chain(*shards.values()))
  indices = dict(zip(all_files, _index_shards(all_files), strict=True))
  multi_label = any(index.multi_label for index in indices.values())
  class_names = _class_names(root, list(indices.values()))
  examples = _gather([indices[file] for file in files], class_names, multi_label, held_out)
  stamps = [indices[file].stamp for file in files]
  if not len(examples.offsets):
    raise UserError(f'{spec} has no images (jpg, png, webp, …) in its split {split!r}.')
  open_file = functools.lru_cache(_MAX_OPEN_FILES)(_OpenFile)

  def location(i: int) -> str:
    file = files[examples.shard(i)]
    return f'{file}: {member_name(file, int(examples.offsets[i]))}'

  def read(i: int) -> Example:
    shard, size = examples.shard(i), int(examples.sizes[i])
    try:
      file = open_file(files[shard])  # a reference to it keeps it open
      image = os.pread(file.descriptor, size, int(examples.offsets[i]))
      if file_stamp(os.fstat(file.descriptor)) != stamps[shard] or len(image) != size:
        raise BadExampleError(f'{files[shard]} has changed since it was opened.')
    except OSError as error:
      raise BadExampleError(f'{files[shard]} cannot be read: {error.strerror}.') from None
    return image, examples.label(i)

  listing = [(file.name, indices[file].stamp[0]) for file in files]
  return Source(
    name=f'{spec} ({split})',
    size=len(examples.offsets),
    read=read,
    class_names=class_names,
    multi_label=multi_label,
    location=location,
    fingerprint=fingerprint(repr((listing, class_names, examples.digest()))),
    files=lambda: list(map(str, files)),
    labels=None if multi_label else lambda: examples.labels,
  )
