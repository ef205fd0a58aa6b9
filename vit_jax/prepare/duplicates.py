"""Finds images with the same content, within the splits of a data set and across them."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from vit_jax.prepare.statistics import HASH_BYTES

_MAX_PAIRS = 20  # duplicates that are named


@dataclasses.dataclass(frozen=True)
class Overlap:
  """Images with the same content.

  Attributes:
    splits: one split (duplicates within it), or two.
    count: within a split, its images that repeat an earlier one; for two splits, the images of the
      second that are also in the first.
    pairs: names of some: (original, duplicate).
  """

  splits: tuple[str, ...]
  count: int
  pairs: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class _Duplicates:
  """All examples that share their content with another one, sorted by content.

  Attributes:
    group: (N,) the same number for the same content.
    split: (N,) index of the split.
    index: (N,) index of the example within its split.
  """

  group: np.ndarray
  split: np.ndarray
  index: np.ndarray


def _group_duplicates(hashes: Mapping[str, bytes]) -> _Duplicates:
  table = np.concatenate([np.frombuffer(h, '>u8').reshape(-1, 2) for h in hashes.values()])
  order = np.lexsort((table[:, 1], table[:, 0]))
  # Zeros stand for unreadable examples.
  same = (table[order[1:]] == table[order[:-1]]).all(1) & table[order[1:]].any(1)
  same_as_previous, same_as_next = np.append([False], same), np.append(same, [False])
  has_duplicate = same_as_previous | same_as_next
  members = order[has_duplicate]
  starts = np.cumsum([0, *(len(h) // HASH_BYTES for h in hashes.values())])
  split = np.searchsorted(starts, members, side='right') - 1
  return _Duplicates(np.cumsum(~same_as_previous)[has_duplicate], split, members - starts[split])


def find_overlaps(hashes: Mapping[str, bytes], name: Callable[[str, int], str]) -> list[Overlap]:
  """Finds images with the same content within each split and across each pair of splits.

  Args:
    hashes: split -> the hashes of its examples, concatenated.
    name: (split, index) -> the name of an example.
  """
  if not any(hashes.values()):
    return []
  duplicates = _group_duplicates(hashes)
  group, index = duplicates.group, duplicates.index
  splits = list(hashes)
  # The rows of each split, sorted by group and index because `lexsort` is stable.
  members = [np.flatnonzero(duplicates.split == number) for number in range(len(splits))]

  def names(split: int, rows: np.ndarray) -> list[str]:
    return [name(splits[split], int(index[row])) for row in rows[:_MAX_PAIRS]]

  overlaps = []
  for second, rows in enumerate(members):
    repeats = np.flatnonzero(group[rows][1:] == group[rows][:-1])
    if len(repeats):
      pairs = zip(names(second, rows[repeats]), names(second, rows[repeats + 1]), strict=True)
      overlaps.append(Overlap((splits[second],), len(repeats), list(pairs)))
    for first, first_rows in enumerate(members[:second]):
      shared = rows[np.isin(group[rows], group[first_rows])]
      if len(shared):
        originals = first_rows[np.searchsorted(group[first_rows], group[shared])]
        pairs = zip(names(first, originals), names(second, shared), strict=True)
        overlaps.append(Overlap((splits[first], splits[second]), len(shared), list(pairs)))
  return overlaps
