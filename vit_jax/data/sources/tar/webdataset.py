"""webdataset:/path: tar shards, with random access.

  webdataset:/path/{000000..000127}.tar   all of them
  webdataset:/path                        all .tar files in the folder, or in its sub-folders
                                          train/, val/, …
  webdataset:/path/images.tar             one

The splits are such sub-folders, or what the names of the files say: 'train-0000.tar',
'imagenet1k-validation-12.tar'. Without either one example in five, chosen by a hash of its name,
is held out as test. What is read of an example: see tar_index.py. Class names are the lines of a
file classes.txt or labels.txt beside the shards, the 'class_names' of a dataset.json there, else
those given as labels, else numbers.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tqdm

from vit_jax.data.sources.source import Source, Stored, fingerprint, multi_hot
from vit_jax.data.sources.tar.tar_index import ShardIndex, file_stamp, index_shard, member_name
from vit_jax.data.sources.tar.tar_shards import choose_shards, find_shards, names_of_splits
from vit_jax.errors import BadExampleError, UserError

_THREADS = 4  # that read headers; more wait for the interpreter's lock
_OPEN_FILES = 64  # at most, of one source


class _OpenFile:
  """A shard that is open; closed when the last thread that reads it has let go of it."""

  def __init__(self, path: pathlib.Path):
    self.descriptor = os.open(path, os.O_RDONLY)

  def __del__(self):
    if hasattr(self, 'descriptor'):
      os.close(self.descriptor)


@dataclasses.dataclass(frozen=True)
class _Examples:
  """The examples of a split: 16 bytes each, a little more where labels are several.

  Attributes:
    files: the shards.
    stamps: size and time of each.
    shard_ends: where the examples of each end.
    offsets, sizes: where the bytes of the images lie.
    label_ends: where the labels of each example end; None for one each.
    labels: of all examples.
  """

  files: list[pathlib.Path]
  stamps: list[tuple[int, int]]
  shard_ends: np.ndarray
  offsets: np.ndarray
  sizes: np.ndarray
  label_ends: np.ndarray | None
  labels: np.ndarray

  def locate(self, i: int) -> tuple[int, int, int]:
    """Shard, offset and size of an example."""
    shard = int(np.searchsorted(self.shard_ends, i, side='right'))
    return shard, int(self.offsets[i]), int(self.sizes[i])


def _index(files: Sequence[pathlib.Path]) -> list[ShardIndex]:
  """The indices of all shards; a bar shows on a terminal when it takes long."""
  with ThreadPoolExecutor(_THREADS) as pool:
    indices = pool.map(index_shard, files)
    bar = dict(desc='indexing', unit='tar', delay=2, leave=False, disable=None)
    return list(tqdm.tqdm(indices, total=len(files), **bar))


def _listed_names(root: pathlib.Path) -> tuple[str, ...]:
  """The class names that a file beside the shards gives."""
  for file in (root / 'classes.txt', root / 'labels.txt', root / 'dataset.json'):
    if not file.is_file():
      continue
    try:
      if file.suffix == '.txt':
        return tuple(file.read_text('utf-8').splitlines())
      names = json.loads(file.read_text('utf-8')).get('class_names', ())
      return tuple(map(str, names))
    except (OSError, ValueError, AttributeError) as error:
      raise UserError(f'{file} cannot be read as a list of class names ({error}).') from None
  return ()


def _class_names(root: pathlib.Path, indices: Sequence[ShardIndex]) -> tuple[str, ...]:
  """The classes of all splits, whichever is opened: labels must not depend on it."""
  listed = _listed_names(root)
  named = {name for index in indices for name in index.names}
  numbers = [index for index in indices if not index.names and len(index.labels)]
  if named and numbers:
    raise UserError(f'webdataset:{root} gives some labels as names and some as numbers.')
  if listed and named - set(listed):
    raise UserError(f'{min(named - set(listed))!r} is not in the list of classes in {root}.')
  highest = max((int(index.labels.max()) for index in numbers), default=-1)
  if listed and highest >= len(listed):
    raise UserError(f'{root} lists {len(listed)} classes, but there is the label {highest}.')
  return listed or tuple(sorted(named)) or tuple(map(str, range(highest + 1)))


def _gather(
  files: list[pathlib.Path],
  indices: list[ShardIndex],
  names: tuple[str, ...],
  several: bool,
  held_out: bool | None,
) -> _Examples:
  """The examples of some shards; of those, the held out ones, the others, or all."""
  numbers = {name: i for i, name in enumerate(names)}
  offsets, sizes, counts, labels = [], [], [], []
  for index in indices:
    keep = np.ones(len(index.offsets), bool) if held_out is None else index.held_out == held_out
    count = np.diff(index.ends, prepend=np.uint32(0))
    new = np.array([numbers[name] for name in index.names], np.int32)
    given = index.labels[np.repeat(keep, count)]
    offsets.append(index.offsets[keep])
    sizes.append(index.sizes[keep])
    counts.append(count[keep])
    labels.append(new[given] if index.names else given)
  return _Examples(
    files,
    [index.stamp for index in indices],
    np.cumsum([len(part) for part in offsets]),
    np.concatenate(offsets),
    np.concatenate(sizes),
    np.cumsum(np.concatenate(counts)) if several else None,
    np.concatenate(labels),
  )


def split_names(path: str) -> tuple[str, ...]:
  """The splits of a set of shards."""
  return names_of_splits(find_shards(path)[1])


def open_webdataset(path: str, split: str) -> Source:
  """The tar shards of a split."""
  spec = f'webdataset:{path}'
  root, shards = find_shards(path)
  files, held_out = choose_shards(shards, split, spec)
  everything = [file for files in shards.values() for file in files]
  indices = dict(zip(everything, _index(everything), strict=True))
  several = any(index.several for index in indices.values())
  names = _class_names(root, list(indices.values()))
  examples = _gather(files, [indices[file] for file in files], names, several, held_out)
  if not len(examples.offsets):
    raise UserError(f'{spec} has no image (jpg, png, webp, …) in its split {split!r}.')
  opened = functools.lru_cache(_OPEN_FILES)(_OpenFile)

  def where(i: int) -> str:
    shard, offset, _ = examples.locate(i)
    return f'{files[shard]}: {member_name(files[shard], offset)}'

  def read(i: int) -> Stored:
    shard, offset, size = examples.locate(i)
    try:
      file = opened(files[shard])
      image = os.pread(file.descriptor, size, offset)
      if file_stamp(os.fstat(file.descriptor)) != examples.stamps[shard] or len(image) != size:
        raise BadExampleError(f'{files[shard]} has changed since it was opened.')
    except OSError as error:
      raise BadExampleError(f'{files[shard]} cannot be read: {error.strerror}.') from None
    if not several:
      return image, examples.labels[i]
    first = int(examples.label_ends[i - 1]) if i else 0
    return image, multi_hot(examples.labels[first : int(examples.label_ends[i])], len(names))

  listing = repr([(file.name, index.stamp[0]) for file, index in indices.items()])
  return Source(
    f'{spec} ({split})', len(examples.offsets), read, names, several, where, fingerprint(listing)
  )
