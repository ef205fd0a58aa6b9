"""Rollout and distances: closed forms, and the sums of the definitions."""

import numpy as np
import pytest

from tests.analysis import numpy_vit
from tests.analysis.models import GOLDEN_MODELS, embedded, golden, golden_images, noise, tiny
from vit_jax.analysis import attention, attention_distance, attention_map, rollout


def random_weights(*shape: int) -> np.ndarray:
  weights = np.random.default_rng(3).exponential(size=shape)
  return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def test_rollout_of_the_identity_is_the_identity():
  weights = np.broadcast_to(np.eye(5, dtype=np.float32), (1, 4, 3, 5, 5))
  np.testing.assert_allclose(rollout(weights)[0], np.eye(5), atol=1e-6)


def test_rollout_of_uniform_attention():
  # Each block keeps half of a token and mixes the rest: I / 2^L + (1 - 1 / 2^L) / N.
  weights = np.full((1, 3, 2, 4, 4), 0.25, np.float32)
  expected = np.eye(4) / 8 + (7 / 8) / 4
  np.testing.assert_allclose(rollout(weights)[0], expected, atol=1e-6)


def test_the_first_block_is_on_the_right():
  copy, mix = np.zeros((3, 3)), np.full((3, 3), 1 / 3)
  copy[:, 0] = 1  # the first block brings token 0 to all
  weights = np.float32(np.stack([copy, mix]))[None, :, None]
  first, second = ((block + np.eye(3)) / 2 for block in (copy, mix))
  np.testing.assert_allclose(rollout(weights)[0], second @ first, atol=1e-6)
  assert np.abs(second @ first - first @ second).max() > 0.05


@pytest.mark.parametrize('name', GOLDEN_MODELS)
def test_the_map_is_what_reaches_the_head(name):
  vit, images = golden(name), golden_images(name)
  pool, depth = vit.model.pool, vit.model.depth
  params, patches = embedded(vit, images)
  maps = np.asarray(attention_map(vit, images))
  grid = tuple(side // vit.model.patch_size for side in vit.image_size)
  assert maps.shape == (2, *grid) and maps.dtype == np.float32
  for each, of_image in zip(maps, patches, strict=True):
    _, weights = numpy_vit.run(params, of_image, pool)
    matrix = numpy_vit.rolled(weights[:depth])
    if pool == 'token':
      row = matrix[0, 1:]
    elif pool == 'gap':
      row = matrix.mean(0)
    else:
      row = weights[-1].mean(0)[0] @ matrix
    np.testing.assert_allclose(each.ravel(), row / row.sum(), atol=1e-6)


def test_a_map_of_a_rectangle():
  vit = tiny((8, 12))
  maps = attention_map(vit, noise(vit))
  assert maps.shape == (2, 2, 3)
  np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-6)


def test_attention_to_oneself_has_no_distance():
  weights = np.broadcast_to(np.eye(6, dtype=np.float32), (2, 3, 4, 6, 6))
  np.testing.assert_array_equal(attention_distance(weights, (2, 3), 16), np.zeros((3, 4)))


def test_distance_of_uniform_attention():
  # Of a row of three patches: from the ends (0 + 1 + 2) / 3, from the middle 2 / 3, of 8 pixels.
  weights = np.full((1, 1, 1, 3, 3), 1 / 3, np.float32)
  expected = (1 + 2 / 3 + 1) / 3 * 8
  for grid in ((1, 3), (3, 1)):
    np.testing.assert_allclose(attention_distance(weights, grid, 8), [[expected]], rtol=1e-6)


def test_distances_leave_the_class_token_out():
  (rows, columns), patch = (2, 3), 4
  weights = random_weights(2, 3, 2, 7, 7)
  total = np.zeros((3, 2))
  for image, layer, head, query in np.ndindex(2, 3, 2, 6):
    row = np.float64(weights[image, layer, head, query + 1, 1:])
    y, x = divmod(query, columns)
    reach = [np.hypot(y - k // columns, x - k % columns) * patch for k in range(6)]
    total[layer, head] += row @ reach / row.sum() / (2 * rows * columns)
  np.testing.assert_allclose(attention_distance(weights, (2, 3), patch), total, rtol=1e-5)


def test_distances_of_a_model():
  vit = golden('vit_gap')
  grid = tuple(side // vit.model.patch_size for side in vit.image_size)
  weights = attention(vit, golden_images('vit_gap'))
  distances = attention_distance(weights, grid, vit.model.patch_size)
  assert distances.shape == (vit.model.depth, vit.model.num_heads)
  assert 0 < distances.min() and distances.max() < np.hypot(*vit.image_size)
