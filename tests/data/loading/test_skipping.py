"""Steps keep their numbers, batches keep theirs, and the past of a run cannot be changed."""

import numpy as np
import pytest

from vit_jax.data.loading.skipping import batch_numbers, check_skipped, merge_ranges
from vit_jax.errors import UserError


def test_ranges_are_merged():
  assert merge_ranges([(7, 9), (2, 4), (3, 5), (5, 6), (2, 3)]) == ((2, 6), (7, 9))
  assert merge_ranges([]) == ()


def test_equals_the_plain_order_without_the_ranges():
  rng = np.random.default_rng(0)
  for _ in range(50):
    firsts = rng.integers(0, 40, rng.integers(0, 6))
    ranges = [(int(first), int(first + rng.integers(1, 9))) for first in firsts]
    left_out = {batch for first, stop in ranges for batch in range(first, stop)}
    expected = [batch for batch in range(100) if batch not in left_out][:40]
    np.testing.assert_array_equal(batch_numbers(np.arange(40), ranges), expected)
    np.testing.assert_array_equal(batch_numbers(np.arange(30, 40), ranges), expected[30:])


@pytest.mark.parametrize(
  ('before', 'now', 'num_steps'),
  [
    ((), ((10, 12),), 10),
    (((3, 5),), ((3, 5), (12, 14)), 10),
    (((3, 5), (20, 30)), ((3, 5),), 10),
    (((3, 5),), ((3, 4), (4, 5)), 10),
    ((), ((0, 5),), 0),
  ],
)
def test_the_future_may_change(before, now, num_steps):
  check_skipped(before, now, num_steps)


def test_the_past_may_not_change():
  with pytest.raises(UserError) as caught:
    check_skipped((), ((9, 12),), 10)
  assert str(caught.value) == (
    'config.data.skip_batches is ((9, 12),), but the run has made 10 steps, with batches up to 9; '
    'it can skip batches from 10 on.'
  )
  with pytest.raises(UserError, match=r'from 12 on, and must keep \(\(3, 5\),\)\.'):
    check_skipped(((3, 5), (50, 60)), ((13, 15),), 10)
