"""Images of the same content, within the splits of a data set and across them."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from vit_jax.prepare.statistics import HASH_BYTES

_PAIRS = 20  # of duplicates that are named


@dataclasses.dataclass(frozen=True)
class Overlap:
  """Images of the same content.

  Attributes:
    where: the split, or the two of them.
    count: images of the (second) split that are also elsewhere in it (in the first).
    pairs: the names of some.
  """

  where: tuple[str, ...]
  count: int
  pairs: list[tuple[str, str]]


def _groups(hashes: Mapping[str, bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(group, split, place) of all examples that share their content with another, by group."""
  table = np.concatenate([np.frombuffer(h, '>u8').reshape(-1, 2) for h in hashes.values()])
  order = np.lexsort((table[:, 1], table[:, 0]))
  same = (table[order[1:]] == table[order[:-1]]).all(1) & table[order[1:]].any(1)
  in_group = np.concatenate([[False], same]) | np.concatenate([same, [False]])
  group = np.cumsum(~np.concatenate([[False], same]))
  sizes = [len(h) // HASH_BYTES for h in hashes.values()]
  starts = np.cumsum([0, *sizes])
  members = order[in_group]
  split = np.searchsorted(starts, members, side='right') - 1
  return group[in_group], split, members - starts[split]


def find_overlaps(hashes: Mapping[str, bytes], name: Callable[[str, int], str]) -> list[Overlap]:
  """Images of the same content within each split, and across each two of them.

  Args:
    hashes: split -> the hashes of its examples, one after the other.
    name: (split, place) -> the name of an example.
  """
  if not any(hashes.values()):
    return []
  group, split, place = _groups(hashes)
  names, found = list(hashes), []

  def pairs(first: np.ndarray, second: np.ndarray, a: str, b: str) -> list[tuple[str, str]]:
    return [
      (name(a, int(place[i])), name(b, int(place[j]))) for i, j in zip(first, second, strict=True)
    ]

  for number, one in enumerate(names):
    mine = np.flatnonzero(split == number)
    mine = mine[np.lexsort((place[mine], group[mine]))]
    again = np.flatnonzero(group[mine][1:] == group[mine][:-1])
    if len(again):
      some = again[:_PAIRS]
      found.append(Overlap((one,), len(again), pairs(mine[some], mine[some + 1], one, one)))
    for other in range(number):
      theirs = np.flatnonzero(split == other)
      both = mine[np.isin(group[mine], group[theirs])]
      if len(both):
        theirs = theirs[np.argsort(group[theirs], kind='stable')]
        first = theirs[np.searchsorted(group[theirs], group[both[:_PAIRS]])]
        some = pairs(first, both[:_PAIRS], names[other], one)
        found.append(Overlap((names[other], one), len(both), some))
  return found
