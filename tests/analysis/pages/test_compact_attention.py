"""Attention on a page: cells of patches, rounding, the limit of the size."""

import base64

import numpy as np
import pytest

from vit_jax.analysis.pages.compact_attention import choose_factor, compact
from vit_jax.errors import UserError


def random_weights(layers, heads, tokens):
  weights = np.random.default_rng(0).exponential(size=(layers, heads, tokens, tokens))
  return np.float32(weights**4 / (weights**4).sum(-1, keepdims=True))


def read(compacted) -> np.ndarray:
  """The weights, from what a page stores."""
  levels, largest = (base64.b64decode(text) for text in compacted.as_base64())
  shape = compacted.levels.shape
  units = np.frombuffer(largest, '<f4').reshape(shape[:-1])[..., None] / 255
  return np.frombuffer(levels, np.uint8).reshape(shape) * units


def test_weights_are_rounded_to_a_255th_of_the_largest_one():
  weights = random_weights(3, 2, 7)
  result = compact(weights, 1, (2, 3), 1)
  assert (result.grid, result.num_prefix, result.levels.dtype) == ((2, 3), 1, np.uint8)
  error = np.abs(read(result) - weights)
  assert (error <= weights.max(-1, keepdims=True) / 509).all()


@pytest.mark.parametrize('grid', [(4, 4), (5, 4), (3, 7)])
@pytest.mark.parametrize(('prefix', 'factor'), [(0, 2), (1, 2), (1, 3)])
def test_cells_sum_over_keys_and_average_over_queries(grid, prefix, factor):
  weights = random_weights(2, 2, prefix + grid[0] * grid[1])
  cells = -(-grid[0] // factor), -(-grid[1] // factor)

  def members(token):
    if token < prefix:
      return [token]
    y, x = divmod(token - prefix, cells[1])
    return [
      prefix + i * grid[1] + j for i, j in np.ndindex(grid) if (i // factor, j // factor) == (y, x)
    ]

  count = prefix + cells[0] * cells[1]
  expected = np.empty((2, 2, count, count))
  for query, key in np.ndindex(count, count):
    block = weights[..., members(query), :][..., members(key)]
    expected[..., query, key] = block.sum(-1).mean(-1)
  result = compact(weights, prefix, grid, factor)
  assert result.grid == cells
  np.testing.assert_allclose(read(result), expected, atol=expected.max() / 500)
  np.testing.assert_allclose(expected.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize('max_bytes', [100, 1_000, 10_000, 100_000])
@pytest.mark.parametrize('grid', [(4, 4), (7, 5), (2, 9)])
def test_a_page_is_no_larger_than_its_limit(grid, max_bytes):
  weights = random_weights(2, 3, 1 + grid[0] * grid[1])

  def size(factor):
    return sum(map(len, compact(weights, 1, grid, factor).as_base64()))

  try:
    factor = choose_factor(2, 3, 1, grid, max_bytes)
  except UserError as error:
    assert size(max(grid) - 1) > max_bytes and '--max_mb' in str(error)
  else:
    assert size(factor) <= max_bytes and (factor == 1 or size(factor - 1) > max_bytes)


def test_large_models_by_the_default_limit():
  limit = 32_000_000
  assert choose_factor(12, 12, 1, (14, 14), limit) == 1  # B/16 at 224
  assert choose_factor(12, 12, 1, (24, 24), limit) == 2  # B/16 at 384
  assert choose_factor(24, 16, 1, (24, 24), limit) == 2  # L/16 at 384
  assert choose_factor(4, 16, 1, (24, 24), limit) == 1  # four of its blocks


def test_no_attention_at_all():
  result = compact(np.zeros((1, 1, 4, 4), np.float32), 0, (2, 2), 1)
  assert not read(result).any()
