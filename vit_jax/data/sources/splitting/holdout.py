"""Holds examples out for testing: by their names, so that they are the same on every machine.

One example in five is held out, by a hash of its name; adding examples moves none of the others.
Then, so that each class is on both sides, a few are moved: of a class with at least two examples
that are all on one side, the one with the lowest hash. Adding examples may move these back.

With a group (a patient, a burst of photos), the hash is that of the group, and whole groups move.
With fold k of n, the examples are in n parts, likewise, and part k is held out.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

from vit_jax.data.sources.source import fingerprint
from vit_jax.errors import UserError

_MAX_FOLDS = 20  # of 256 values of a byte
Labels = Sequence[int] | np.ndarray | Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Fold:
  """Fold `number`, 1 to `count`, is held out."""

  number: int
  count: int


def parse_fold(text: str) -> Fold:
  """Parses '2/5'; raises `UserError`."""
  match = re.fullmatch(r'(\d{1,4})/(\d{1,4})', text)
  if match and 2 <= int(match[2]) <= _MAX_FOLDS and 1 <= int(match[1]) <= int(match[2]):
    return Fold(int(match[1]), int(match[2]))
  raise UserError(
    f'fold={text} is not a fold; write fold=1/5 to fold=5/5, of at most {_MAX_FOLDS} folds.'
  )


def spread_classes(
  parts: np.ndarray, units: np.ndarray, labels: np.ndarray, num_parts: int
) -> None:
  """Moves units between parts, in place, so that each class is in as many parts as it can be.

  Args:
    parts: (U,) the part of each unit; units come in the order in which they are preferred to move.
    units, labels: (P,) each pair is a class of a unit.
    num_parts: the parts are 0 to num_parts - 1.
  """
  num_classes = int(labels.max(initial=-1)) + 1
  of_pairs = np.bincount(labels * num_parts + parts[units], minlength=num_classes * num_parts)
  of_pairs = of_pairs.reshape(num_classes, num_parts)
  if not ((of_pairs == 0).any(1) & (of_pairs.sum(1) > 1)).any():
    return  # as always with much data
  pairs = np.unique(np.stack([units, labels], 1), axis=0)
  counts = np.zeros((num_classes, num_parts), np.int64)
  np.add.at(counts, (pairs[:, 1], parts[pairs[:, 0]]), 1)
  incomplete = np.flatnonzero((counts == 0).any(1) & (counts.sum(1) > 1))
  for label in incomplete.tolist():
    candidates = pairs[pairs[:, 1] == label, 0]
    for part in range(num_parts):
      if counts[label, part]:
        continue
      for unit in candidates.tolist():
        classes = pairs[np.searchsorted(pairs[:, 0], unit) :, :]
        classes = classes[: np.searchsorted(classes[:, 0], unit, 'right'), 1]
        if (counts[classes, parts[unit]] > 1).all():
          counts[classes, parts[unit]] -= 1
          counts[classes, part] += 1
          parts[unit] = part
          break


def _flatten(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
  """Returns the number of labels of each example, and all labels."""
  if not len(labels) or np.ndim(labels[0]) == 0:
    return np.ones(len(labels), np.int64), np.asarray(labels, np.int64)
  counts = np.fromiter(map(len, labels), np.int64, len(labels))  # pyright: ignore[reportArgumentType]
  return counts, np.fromiter(itertools.chain.from_iterable(labels), np.int64, counts.sum())  # pyright: ignore[reportArgumentType]


def held_out(
  names: Sequence[str],
  labels: Labels,
  groups: Sequence[str] | None = None,
  fold: Fold | None = None,
) -> np.ndarray:
  """Returns which examples are held out: (N,) bool.

  Args:
    names: N names that identify the examples, such as relative paths with '/'.
    labels: N classes, or N lists of classes (multi-label).
    groups: N groups; those of one group are on the same side.
    fold: which part is held out; None: one of five.
  """
  keys, of_examples = names, np.arange(len(names))
  if groups is not None:
    keys = list(dict.fromkeys(groups))
    numbers = {group: i for i, group in enumerate(keys)}
    of_examples = np.array([numbers[group] for group in groups], np.int64)
  hashes = np.array([int(fingerprint(key)[:16], 16) for key in keys], np.uint64)
  order = np.argsort(hashes, kind='stable')
  position = np.argsort(order)
  num_folds = fold.count if fold else 5
  parts = (hashes[order] >> 56).astype(np.int64) % num_folds
  if fold is None:
    parts = np.minimum(parts, 1)
  units = position[of_examples]
  counts, flat = _flatten(labels)
  spread_classes(parts, np.repeat(units, counts), flat, num_folds if fold else 2)
  return (parts == (fold.number - 1 if fold else 0))[units]


def find_groups(pattern: str, names: Sequence[str]) -> list[str]:
  """Returns the group of each name: what the first parentheses of a regular expression match.

  Raises:
    UserError: for an invalid regular expression, or a name that it does not match.
  """
  regex = compile_pattern('group', pattern)
  groups = []
  for name in names:
    match = regex.search(name)
    if not match:
      raise UserError(f'group={pattern} does not match {name}; every image needs a group.')
    groups.append((match[1] or '') if regex.groups else match[0])
  if len(set(groups)) < 2 <= len(names):
    raise UserError(
      f'group={pattern} matches {groups[0]!r} in every name; nothing can be held out.'
    )
  return groups


def compile_pattern(option: str, pattern: str) -> re.Pattern[str]:
  """Compiles the regular expression of an option; raises `UserError`."""
  try:
    return re.compile(pattern)
  except re.error as error:
    raise UserError(f'{option}={pattern} is not a regular expression ({error}).') from None
