"""The fixed permutation: pinned, complete, and without order."""

import math

import numpy as np
import pytest

from vit_jax.data.sources.splitting.permutation import permutation, permute, permute_each


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


def test_each_size_and_key_has_its_permutation():
  for size in (1, 2, 3, 5, 16, 17, 100, 4097):
    permutations = set()
    for key in range(40):
      keys = np.full(size, key * 0x9E3779B97F4A7C15 % 2**64, np.uint64)
      indices = permute_each(np.arange(size), np.full(size, size), keys)
      assert sorted(indices) == list(range(size))
      permutations.add(tuple(indices))
    assert len(permutations) >= min(math.factorial(size), 20)
