"""All readers have work, and the memory of the batches is bounded."""

import itertools

import pytest

from vit_jax.data.loading.schedule import make_schedule

SIZES = (1, 7, 8, 31, 32, 100, 128, 512, 1024, 4096)
READERS = (1, 2, 3, 16, 112, 128)


@pytest.mark.parametrize(('rows', 'readers'), list(itertools.product(SIZES, READERS)))
def test_schedule(rows, readers):
  schedule = make_schedule(rows, readers)
  assert 1 <= schedule.chunk <= min(rows, 32)
  tasks_per_batch = -(-rows // schedule.chunk)
  # While the first batch waits for its last task, each reader has six.
  assert (schedule.num_reading - 1) * tasks_per_batch >= min(6 * readers, 2 * tasks_per_batch)
  assert schedule.num_reading >= 3
  assert schedule.num_slots * rows <= 5 * rows + max(3 * rows, 48 * readers)


def test_of_large_batches_few_are_in_memory():
  assert make_schedule(4096, 2).num_slots == 6


def test_a_batch_without_rows_has_a_schedule():
  assert make_schedule(0, 16).chunk == 1
