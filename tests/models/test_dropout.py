"""Dropout: shares, independence, and draws that depend on the example's key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.dropout import _draw_bits, dropout, example_keys, split_keys

KEYS = example_keys(jax.random.key(0), None, 64)


@pytest.mark.parametrize('shape', [(64, 1000), (64, 13, 77), (64, 5, 7, 29)])
@pytest.mark.parametrize('rate', [0.1, 0.003, jnp.float32(0.75)])
def test_the_share_of_zeros_is_the_rate_and_the_mean_is_kept(shape, rate):
  x = dropout(jnp.ones(shape), rate, KEYS)
  count = x.size
  expected_zeros, deviation = rate * count, np.sqrt(rate * (1 - rate) * count)
  assert abs((x == 0).sum() - expected_zeros) < 4 * deviation
  np.testing.assert_allclose(x[x != 0], 1 / (1 - rate), rtol=2e-5)


def test_the_upper_bits_of_a_draw_are_uniform():
  draws = np.asarray(_draw_bits(KEYS, (64, 64, 64)))
  bits = (draws[..., None] >> np.arange(8, 32)) % 2
  allowed = 5 / np.sqrt(4 * draws.size)
  np.testing.assert_allclose(bits.mean(axis=(0, 1, 2)), 0.5, atol=allowed)
  different_examples = (bits ^ np.roll(bits, 1, 0)).mean(axis=(0, 1, 2))
  np.testing.assert_allclose(different_examples, 0.5, atol=allowed)


@pytest.mark.parametrize('rate', [0.1, 0.5])
def test_draws_of_neighbors_are_independent(rate):
  kept = np.asarray(dropout(jnp.ones((64, 197, 192)), rate, KEYS) > 0, float)
  kept = (kept - (1 - rate)) / np.sqrt(rate * (1 - rate))
  for axis, shifts in ((0, [1]), (1, [1, 2, 16, 64]), (2, [1, 2, 3, 16, 64])):
    for shift in shifts:
      assert abs((kept * np.roll(kept, shift, axis)).mean()) < 0.004
  # No row, column or example keeps more or less than by chance.
  for axes in ((1, 2), (0, 2), (0, 1)):
    means = kept.mean(axis=axes) * np.sqrt(kept.size / np.delete(kept.shape, axes).prod())
    assert 0.6 < means.var() < 1.6


def test_draws_are_those_of_the_hash():
  key = jax.random.wrap_key_data(np.array([[3, 2**32 - 5]], np.uint32))
  expected = []
  for number in range(6):
    x = (number ^ 3) * 0x7FEB352D % 2**32
    expected.append(((x ^ x >> 15) + 2**32 - 5) * 0x846CA68B % 2**32)
  np.testing.assert_array_equal(np.ravel(_draw_bits(key, (1, 2, 3))), expected)


def test_further_tokens_change_no_other():
  few, many = (dropout(jnp.ones((64, n, 10)), 0.5, KEYS) for n in (9, 16))
  np.testing.assert_array_equal(many[:, :9], few)


def test_an_example_depends_on_its_own_key_alone():
  x = jnp.ones((64, 9, 10))
  whole = dropout(x, 0.5, KEYS)
  part = dropout(x[20:30], 0.5, KEYS[20:30])
  np.testing.assert_array_equal(whole[20:30], part)
  assert not np.array_equal(whole[0], whole[1])


def test_several_sequences_of_an_example():
  keys = KEYS[:2]
  x = dropout(jnp.ones((6, 5, 8)), 0.5, keys)  # three sequences each
  assert len({np.asarray(each).tobytes() for each in x}) == 6
  branches = dropout(jnp.ones((6, 5, 8)), 0.5, example_keys(jax.random.key(1), None, 2), (1, 2))
  for each in branches.reshape(2, 15, 8):
    assert len(np.unique(each)) == 1


def test_split_keys_of_an_example_depend_on_its_own_key_alone():
  parts = jax.random.key_data(split_keys(KEYS, 3))
  np.testing.assert_array_equal(parts[:, 5:6], jax.random.key_data(split_keys(KEYS[5:6], 3)))
  assert len(np.unique(parts.reshape(-1, parts.shape[-1]), axis=0)) == 3 * 64


def test_without_keys_or_at_rate_zero_nothing_is_dropped():
  x = jnp.ones((2, 3))
  assert dropout(x, 0.5, None) is x and dropout(x, 0.0, KEYS[:2]) is x
  np.testing.assert_array_equal(dropout(x, jnp.float32(0), KEYS[:2]), x)
