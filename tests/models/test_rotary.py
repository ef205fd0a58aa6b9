"""Rotary positions against complex numbers in float64, and the properties that they are for."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.rotary import ROTARIES, Rotary, Rotation

GRID, PREFIX, HEADS, FEATURES = (3, 5), 2, 2, 8
RULES = {
  **ROTARIES,
  'eva02 of another grid': Rotary(10_000.0, 'index', reference_grid=(6, 6), neighbors=True),
  'small base': Rotary(base=2.0),
}


def random_heads(tokens: int = PREFIX + 15, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(2, tokens, HEADS, FEATURES)).astype(np.float32)


def expected_angles(rule: Rotary) -> np.ndarray:
  """(patches, F / 2) float64, patch by patch from the published formulas."""
  quarter = FEATURES // 4
  frequencies = [rule.base ** (-4 * i / FEATURES) for i in range(quarter)]
  angles = []
  for row in range(GRID[0]):
    for column in range(GRID[1]):
      place = []
      for i, index in enumerate((row, column)):
        if rule.coordinates == 'centered':
          place.append(2 * np.pi * (2 * (index + 0.5) / GRID[i] - 1))
        else:
          scale = rule.reference_grid[i] / GRID[i] if rule.reference_grid else 1
          place.append((index + rule.offset) * scale)
      order = place[::-1] if rule.columns_first else place
      angles.append([x * frequency for x in order for frequency in frequencies])
  return np.array(angles)


@pytest.mark.parametrize('name', RULES)
def test_pairs_are_rotated_as_complex_numbers(name):
  rule, x = RULES[name], random_heads()
  rotated = np.asarray(Rotation(rule, GRID, PREFIX)(jnp.asarray(x)), np.float64)
  turn = np.exp(1j * expected_angles(rule))[None, :, None]
  half = FEATURES // 2
  first = (slice(0, None, 2), slice(1, None, 2)) if rule.neighbors else None
  first, second = first or (slice(0, half), slice(half, None))
  patches = x[:, PREFIX:].astype(np.float64)
  pairs = (patches[..., first] + 1j * patches[..., second]) * turn
  np.testing.assert_allclose(rotated[:, PREFIX:][..., first], pairs.real, atol=1e-5)
  np.testing.assert_allclose(rotated[:, PREFIX:][..., second], pairs.imag, atol=1e-5)


def test_prefix_and_padding_are_not_rotated_and_norms_are_kept():
  x = random_heads(PREFIX + 15 + 3)
  rotated = np.asarray(Rotation(ROTARIES['dinov3'], GRID, PREFIX)(jnp.asarray(x)))
  np.testing.assert_array_equal(rotated[:, :PREFIX], x[:, :PREFIX])
  np.testing.assert_array_equal(rotated[:, -3:], x[:, -3:])
  assert np.abs(rotated - x)[:, PREFIX:-3].max() > 0.1
  norms = [np.linalg.norm(each, axis=-1) for each in (rotated, x)]
  np.testing.assert_allclose(*norms, rtol=1e-5)


@pytest.mark.parametrize('name', ['dinov3', 'eva02', 'perception_encoder'])
def test_products_depend_on_the_distance_of_patches_alone(name):
  query, key = (np.broadcast_to(random_heads(1, seed), (2, 15, HEADS, FEATURES)) for seed in (1, 2))
  rotation = Rotation(ROTARIES[name], GRID, 0)
  query, key = (np.asarray(rotation(jnp.asarray(x))) for x in (query, key))
  products = np.einsum('bqkf,blkf->bkql', query, key).reshape(2, HEADS, *GRID, *GRID)
  np.testing.assert_allclose(
    products[:, :, 0, 0, 1, 2], products[:, :, 1, 2, 2, 4], rtol=1e-4, atol=1e-4
  )
  assert np.abs(products[:, :, 0, 0, 1, 2] - products[:, :, 0, 0, 2, 2]).max() > 1e-2


def test_half_precision_is_rotated_in_float32():
  x = jnp.asarray(random_heads(), jnp.bfloat16)
  rotation = Rotation(ROTARIES['dinov3'], GRID, PREFIX)
  rotated = rotation(x)
  assert rotated.dtype == jnp.bfloat16
  full = rotation(x.astype(jnp.float32)).astype(jnp.bfloat16)
  np.testing.assert_array_equal(np.float32(rotated), np.float32(full))
