"""What every source of examples is: a size, random access, and names of classes."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from vit_jax.errors import UserError

QUICKSTART = 'to try things without any data, run --config=configs/quickstart.py'

Stored = tuple[bytes | np.ndarray, np.ndarray]  # an image as it is stored, and its label


@dataclasses.dataclass(frozen=True)
class Source:
  """Examples with random access.

  Attributes:
    name: the string it was opened with, and the split.
    size: the number of examples.
    read: index in [0, size) -> (image, label): the bytes of an image file, or (H, W, C) uint8;
      an int32 class or, for multi-label data, a (C,) uint8 vector of zeros and ones. Raises
      `BadExampleError` when it cannot be read.
    class_names: one name a class, in label order.
    multi_label: whether labels are such vectors.
    where: index -> what to call the example in a message, such as its file.
    fingerprint: changes when the listing of the data does, such as the names of its files; the
      worker processes compare it. Empty where nothing can change.
    notes: what the user should know about the data, a sentence each.
    parts: the sizes of the sources that a weighted mixture is made of, in the order of its
      indices; empty for anything else.
    weights: how often each of the parts is drawn from, relative to the others.
  """

  name: str
  size: int
  read: Callable[[int], Stored]
  class_names: tuple[str, ...]
  multi_label: bool = False
  where: Callable[[int], str] | None = None
  fingerprint: str = ''
  notes: tuple[str, ...] = ()
  parts: tuple[int, ...] = ()
  weights: tuple[float, ...] = ()

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  def describe(self, index: int) -> str:
    """What to call an example in a message."""
    return self.where(index) if self.where else f'{self.name}, example {index}'


def _sha256(text: str) -> 'hashlib._Hash':
  return hashlib.sha256(text.encode('utf-8', 'surrogateescape'))


def fingerprint(listing: str) -> str:
  """What `Source.fingerprint` is, of all that tells one listing of data from another."""
  return _sha256(listing).hexdigest()


def is_held_out(name: str) -> bool:
  """Whether an example of unsplit data belongs to its test split: one in five, by its name."""
  return _sha256(name).digest()[0] % 5 == 0


def multi_hot(labels: np.typing.ArrayLike, num_classes: int) -> np.ndarray:
  """Classes as a (num_classes,) uint8 vector of zeros and ones."""
  vector = np.zeros(num_classes, np.uint8)
  vector[np.asarray(labels, np.int64)] = 1
  return vector


def check_same_classes(expected: Sequence[str], found: Sequence[str], what: str) -> None:
  """Raises `UserError` naming the first classes in which two lists of names differ."""
  if tuple(expected) == tuple(found):
    return
  missing = [name for name in expected if name not in set(found)]
  extra = [name for name in found if name not in set(expected)]
  raise UserError(
    f'{what} has {len(found)} classes, {len(expected)} were expected'
    + (f'; missing: {", ".join(missing[:3])}' if missing else '')
    + (f'; not expected: {", ".join(extra[:3])}' if extra else '')
    + ('; their order differs' if not missing and not extra else '')
    + '.'
  )
