"""The fixed permutation: pinned, complete, and without order."""

import numpy as np
import pytest

from vit_jax.data.sources.permutation import permutation, permute


@pytest.mark.parametrize('size', [1, 2, 3, 7, 16, 255, 256, 257, 5000])
def test_every_example_has_one_position(size):
  order = [permute(i, size) for i in range(size)]
  assert sorted(order) == list(range(size))
  np.testing.assert_array_equal(permutation(size), order)


def test_the_permutation_never_changes():
  assert permutation(10).tolist() == [3, 9, 5, 6, 8, 0, 1, 4, 2, 7]
  assert [permute(i, 303_000_000) for i in range(5)] == [
    25329674,
    18964385,
    74434212,
    302390145,
    159982452,
  ]
  assert [permute(i, 2**40) for i in (0, 1, 2**40 - 1)] == [
    330799042512,
    701805813404,
    895208614765,
  ]


@pytest.mark.parametrize('size', [100, 1000, 9999])
def test_neighbors_are_spread(size):
  order = permutation(size)
  assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 3 / np.sqrt(size)
  tenths = np.histogram(order[: size // 2], 10, (0, size))[0]
  assert tenths.min() > 0.1 * tenths.mean()
