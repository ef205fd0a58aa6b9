"""The interface of all data sources: a size, random access to examples, and class names."""

import bisect
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vit_jax.data import imagenet
from vit_jax.errors import UserError
from vit_jax.text import plural

MAX_CLASSES = 1_000_000  # larger integers are not classes
_STAT_CHUNK, _STAT_THREADS = 1000, 16  # threads hide the latency of network file systems

# (image as stored, label); `Source.read` documents both.
Example = tuple[bytes | np.ndarray, np.int32 | np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
  """Examples with random access.

  Attributes:
    name: the string that opened it, and the split.
    size: number of examples.
    read: index in [0, size) -> (image, label). The image is the bytes of an image file, or
      (H, W, channels) uint8. The label is an int32 class or, for multi-label data, a (C,) uint8
      vector of zeros and ones. Raises `BadExampleError` for an unreadable example, or a label that
      is not one of the classes.
    class_names: one name per class, in label order.
    multi_label: whether labels are (C,) vectors.
    location: index -> where the example is stored, such as its file; None without files.
    fingerprint: changes with the listing of the data: the names of its files, the sizes and
      counts of its shards; worker processes compare it. Empty for data that cannot change.
    files: returns the paths of the local files that hold the data; None without any.
    labels: returns the classes of all examples without reading images: (N,) int32, -1 for one
      without a valid label. None for multi-label data, and where only the images tell.
    shuffled: whether neighbors are of random classes, so that a slice may be a range of indices;
      otherwise slices follow a fixed permutation.
    notes: one sentence for each thing that the user should know about the data.
    component_sizes: sizes of the sources in a weighted mixture, in the order of its indices;
      empty for any other source.
    weights: relative sampling weights of these sources.
  """

  name: str
  size: int
  read: Callable[[int], Example]
  class_names: tuple[str, ...]
  multi_label: bool = False
  location: Callable[[int], str] | None = None
  fingerprint: str = ''
  files: Callable[[], Sequence[str]] | None = None
  labels: Callable[[], np.ndarray] | None = None
  shuffled: bool = False
  notes: tuple[str, ...] = ()
  component_sizes: tuple[int, ...] = ()
  weights: tuple[float, ...] = ()

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  def describe(self, index: int) -> str:
    """Names an example in messages: by its location, or its index."""
    return self.location(index) if self.location else f'{self.name}, example {index}'


def fingerprint(listing: str) -> str:
  """Hashes a listing of the data for `Source.fingerprint`."""
  return hashlib.sha256(listing.encode('utf-8', 'surrogateescape')).hexdigest()


def hash_files(files: Sequence[str], times: bool = False) -> str:
  """Hashes the sizes of files in their order, and the times at which they were last modified.

  A file that cannot be read has the size -1.
  """

  def stats(first: int) -> list[tuple[int, ...]]:
    return [_file_stat(file, times) for file in files[first : first + _STAT_CHUNK]]

  with ThreadPoolExecutor(_STAT_THREADS) as pool:
    chunks = pool.map(stats, range(0, len(files), _STAT_CHUNK))
    return fingerprint(repr(list(chunks)))


def _file_stat(file: str, times: bool) -> tuple[int, ...]:
  try:
    stat = os.stat(file)
    return (stat.st_size, stat.st_mtime_ns) if times else (stat.st_size,)
  except OSError:
    return (-1,)


def is_held_out(name: str) -> bool:
  """Returns True if an example of unsplit data is in the test split: one in five, by its name."""
  return int(fingerprint(name)[:2], 16) % 5 == 0


def locate(ends: Sequence[int], i: int) -> tuple[int, int]:
  """Returns which of several concatenated segments holds element `i`, and its index there.

  `ends` has the index after the last element of each segment.
  """
  segment = bisect.bisect_right(ends, i)
  return segment, i - (ends[segment - 1] if segment else 0)


def multi_hot(labels: Sequence[int] | np.ndarray, num_classes: int) -> np.ndarray:
  """Encodes class indices, all valid, as a (num_classes,) uint8 vector of zeros and ones."""
  vector = np.zeros(num_classes, np.uint8)
  vector[np.asarray(labels, np.int64)] = 1
  return vector


def encode_label(
  values: Sequence[int], num_classes: int, multi_label: bool
) -> np.int32 | np.ndarray:
  """Encodes the integers of an example as its label, as `Source.read` returns it.

  Raises:
    ValueError: for an integer that is not a class, or any other number of labels than one in data
      that is not multi-label; the message fits after 'cannot be read: '.
  """
  for value in values:
    if not isinstance(value, int) or not 0 <= value < num_classes:
      last = f'{num_classes - 1:,}'
      raise ValueError(
        f'its label is {str(value)[:40]}, but the {plural(num_classes, "class")} are 0 to {last}'
      )
  if multi_label:
    return multi_hot(values, num_classes)
  if len(values) != 1:
    raise ValueError(f'it has {plural(len(values), "label")}, not one')
  return np.int32(values[0])


def check_same_classes(expected: Sequence[str], actual: Sequence[str], source_name: str) -> None:
  """Checks that a source has the expected classes, in the expected order.

  Those of ImageNet may be called by their synsets (n01440764) or by their names.

  Raises:
    UserError: when it has others; names the first missing and the first unexpected ones.
  """
  if have_same_classes(expected, actual):
    return
  expected, actual = _comparable(expected), _comparable(actual)
  missing = [name for name in expected if name not in set(actual)]
  unexpected = [name for name in actual if name not in set(expected)]
  raise UserError(
    f'{source_name} has {plural(len(actual), "class")}, expected {len(expected):,}'
    + (f'; missing: {", ".join(missing[:3])}' if missing else '')
    + (f'; not expected: {", ".join(unexpected[:3])}' if unexpected else '')
    + ('; their order differs' if not missing and not unexpected else '')
    + '.'
  )


def have_same_classes(one: Sequence[str], other: Sequence[str]) -> bool:
  """Returns True for the same classes in the same order; see `check_same_classes`."""
  return _comparable(one) == _comparable(other)


def _comparable(names: Sequence[str]) -> tuple[str, ...]:
  """Names of classes, for synsets their names, without the synset that makes a name unique."""
  if names and all(map(imagenet.is_synset, names)):
    names = imagenet.class_names(tuple(names))
  return tuple(re.sub(r' \(n\d{8}\)$', '', name) for name in names)
