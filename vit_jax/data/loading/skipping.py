"""Which batch of the data order each training step uses, where ranges of batches are left out.

The steps keep their numbers: with the range (3, 5), step 3 (counted from 0) uses batch 5, step 4
batch 6, and so on. It is a function of the step and the ranges alone.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from vit_jax.errors import UserError

Ranges = Sequence[tuple[int, int]]  # (first, stop) each, in batches


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
  """The same batches as disjoint ranges, in order."""
  merged: list[tuple[int, int]] = []
  for first, stop in sorted(ranges):
    if merged and first <= merged[-1][1]:
      merged[-1] = merged[-1][0], max(stop, merged[-1][1])
    else:
      merged.append((first, stop))
  return tuple(merged)


def batch_numbers(steps: np.ndarray, skipped: Ranges) -> np.ndarray:
  """Maps (N,) int64 steps, from 0 on, to the (N,) numbers of their batches in the data order."""
  numbers = steps
  for first, stop in merge_ranges(skipped):
    numbers = np.where(numbers >= first, numbers + (stop - first), numbers)
  return numbers


def check_skipped(before: Ranges, now: Ranges, num_steps: int) -> None:
  """Checks that other ranges leave the batches of the steps that a run has made as they were.

  Args:
    before, now: the ranges of the run so far, and from now on.
    num_steps: that the run has made.

  Raises:
    UserError: when they do not.
  """
  steps = np.arange(num_steps)
  used = batch_numbers(steps, before)
  if not np.array_equal(used, batch_numbers(steps, now)):
    past = tuple((first, stop) for first, stop in merge_ranges(before) if first <= used[-1])
    raise UserError(
      f'config.data.skip_batches is {tuple(now)!r}, but the run has made {num_steps:,} steps, with '
      f'batches up to {used[-1]:,}; it can skip batches from {used[-1] + 1:,} on'
      + (f', and must keep {past!r}.' if past else '.')
    )
