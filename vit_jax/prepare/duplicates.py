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


def find_overlaps(
  hashes: Mapping[str, bytes | bytearray], name: Callable[[str, int], str]
) -> list[Overlap]:
  """Finds images with the same content within each split and across each pair of splits.

  `hashes` are those of the examples of each split, concatenated, and zeros for unreadable ones;
  `name` returns the name of an example, by split and index.
  """
  overlaps: list[Overlap] = []

  def add(splits: tuple[str, ...], originals: np.ndarray, duplicates: np.ndarray) -> None:
    if len(duplicates):
      pairs = zip(originals[:_MAX_PAIRS].tolist(), duplicates[:_MAX_PAIRS].tolist(), strict=True)
      names = [(name(splits[0], first), name(splits[-1], second)) for first, second in pairs]
      overlaps.append(Overlap(splits, len(duplicates), names))

  by_content: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # sorted hashes, their indices
  for split, concatenated in hashes.items():
    table = np.frombuffer(concatenated, f'S{HASH_BYTES}')
    order = np.argsort(table, kind='stable')
    order = order[table[order] != b'']
    table = table[order]
    repeats = np.flatnonzero(table[1:] == table[:-1])
    add((split,), order[repeats], order[repeats + 1])
    for first_split, (first_table, first_order) in by_content.items():
      starts, ends = (np.searchsorted(first_table, table, side) for side in ('left', 'right'))
      shared = starts < ends
      add((first_split, split), first_order[starts[shared]], order[shared])
    by_content[split] = table, order
  return overlaps
