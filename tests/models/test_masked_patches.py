"""Masked patch prediction (Appendix B.1.2): targets, corruption, what a prediction depends on."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import jit, make_model, random_params
from vit_jax.errors import UserError
from vit_jax.models import build, features, masked_patches
from vit_jax.models.flops import forward_flops, train_flops
from vit_jax.models.masked_patches import Corruption

TARGETS = ('mean_color', 'downsized', 'pixels')
SIZE = (8, 12)  # 2 x 3 patches of 4 pixels


def make_images(height, width, channels=3, count=5, seed=0):
  rng = np.random.default_rng(seed)
  shades = rng.integers(0, 256, (count, 1, 1, channels)) + rng.integers(
    -99, 99, (count, height, width, channels)
  )
  return np.clip(shades, 0, 255).astype(np.uint8)


def make_predictor(target='mean_color', **fields):
  return masked_patches.with_prediction_head(make_model(**fields), target, (*SIZE, 3))


def color(pixels) -> int:
  """The 3-bit color of pixels (n, C): the mean of each channel, of 256 levels in 8."""
  number = 0
  for channel in pixels.T:
    number = number * 8 + int(sum(map(int, channel))) // len(channel) // 32
  return number


def direct_targets(image, patch, target):
  """For each patch, row by row."""
  rows, columns = image.shape[0] // patch, image.shape[1] // patch
  result = []
  for row, column in itertools.product(range(rows), range(columns)):
    pixels = image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
    if target == 'pixels':
      result.append((pixels.astype(np.float64) / 127.5 - 1).ravel())
    else:
      side = patch if target == 'mean_color' else patch // 4
      starts = itertools.product(range(0, patch, side), repeat=2)
      cells = [pixels[y : y + side, x : x + side] for y, x in starts]
      result.append([color(cell.reshape(-1, image.shape[2])) for cell in cells])
  return np.array(result)


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize(('patch', 'channels'), [(4, 3), (8, 3), (12, 1)])
def test_targets_are_those_of_a_direct_computation(target, patch, channels):
  images = make_images(2 * patch, 3 * patch, channels)
  actual = masked_patches.patch_targets(jnp.asarray(images), patch, target)
  expected = np.array([direct_targets(image, patch, target) for image in images])
  assert actual.shape == expected.shape
  np.testing.assert_allclose(actual, expected, rtol=0, atol=0 if target != 'pixels' else 1e-6)
  assert len(np.unique(actual)) > 2


def test_colors_have_three_bits_a_channel():
  def of(*rgb):
    image = np.full((1, 4, 4, 3), rgb, np.uint8)
    return int(masked_patches.patch_targets(jnp.asarray(image), 4, 'mean_color')[0, 0, 0])

  assert (of(255, 255, 255), of(0, 0, 0), of(31, 31, 31)) == (511, 0, 0)
  assert (of(32, 0, 0), of(0, 32, 0), of(0, 0, 32)) == (64, 8, 1)


@pytest.mark.parametrize('num_patches', [2, 9, 16])
def test_half_of_the_patches_are_corrupted_in_these_shares(num_patches):
  count, draws = num_patches // 2, 3000
  draw = jit(lambda keys: masked_patches.draw_corruption(keys, num_patches))
  indices, source = (np.asarray(x) for x in draw(jax.random.split(jax.random.key(3), draws)))
  assert indices.shape == (draws, count) and source.shape == (draws, num_patches)
  assert all(len(set(row)) == count for row in indices.tolist())
  share = np.bincount(indices.ravel(), minlength=num_patches) / draws
  np.testing.assert_allclose(share, count / num_patches, atol=0.05)
  is_own = source == np.arange(num_patches)
  is_corrupted = np.zeros_like(is_own)
  np.put_along_axis(is_corrupted, indices, True, axis=1)
  assert is_own[~is_corrupted].all()
  kinds = source[is_corrupted], is_own[is_corrupted]
  masked, kept = kinds[0] == -1, kinds[1]
  np.testing.assert_allclose([masked.mean(), kept.mean()], [0.8, 0.1], atol=0.03)
  distance = (source - np.arange(num_patches))[is_corrupted & ~is_own & (source >= 0)]
  counts = np.bincount(distance % num_patches, minlength=num_patches)
  assert counts[0] == 0  # another patch is never the patch itself, and any of the others
  np.testing.assert_allclose(counts[1:] / counts.sum(), 1 / (num_patches - 1), atol=0.06)


def test_corruptions_are_a_function_of_the_key_or_of_the_pixels():
  images = make_images(16, 16)
  draw = jit(masked_patches.draw_corruptions, static_argnums=1)
  one, same, other = (draw(images, 4, jax.random.key(i)) for i in (1, 1, 2))
  np.testing.assert_array_equal(one.source, same.source)
  assert not np.array_equal(one.source, other.source)
  assert len(np.unique(one.source, axis=0)) == 5
  whole, part = draw(images, 4, None), draw(images[[3, 1]], 4, None)
  np.testing.assert_array_equal(whole.source[np.array([3, 1])], part.source)
  assert len(np.unique(whole.source, axis=0)) == 5
  changed = images.copy()
  changed[0, 5, 5, 1] ^= 1
  assert not np.array_equal(draw(changed, 4, None).source[0], whole.source[0])


def test_corruptions_are_drawn_and_sorted_once():
  """Each draw and each sort takes long to compile on a CPU."""
  images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.uint8)
  draw = jax.make_jaxpr(lambda x: masked_patches.draw_corruptions(x, 4, jax.random.key(0)))
  text = str(draw(images))
  assert (text.count('random_bits['), text.count(' sort[')) == (1, 1)


# Of the six patches, 0 is masked, 1 has the embedding of 5, 2 is kept; 3, 4, 5 are not corrupted.
CORRUPTION = Corruption(
  jnp.array([[0, 1, 2]], jnp.int32), jnp.array([[-1, 5, 2, 3, 4, 5]], jnp.int32)
)


@pytest.mark.parametrize('pool', ['gap', 'token'])
def test_corrupted_patches_are_not_seen(pool):
  """Through gradients: which patches' pixels the predictions for patches 0, 1, 2 depend on."""
  model = make_predictor().clone(pool=pool)
  params = random_params(model, SIZE)
  images = jnp.asarray(make_images(*SIZE, count=1), jnp.float32) / 127.5 - 1

  def predict(images):
    return model.apply({'params': params}, images, CORRUPTION)[0]

  assert predict(images).shape == (3, 512)
  gradients = np.abs(jit(jax.jacrev(lambda x: predict(x).std(axis=1)))(images))[:, 0]
  of_patches = gradients.reshape(3, 2, 4, 3, 4, 3).max(axis=(2, 4, 5)).reshape(3, 6)
  assert (of_patches[:, :2] == 0).all()  # the masked one, and the one that 5 stands in for
  assert (of_patches[:, 2:] > 0).all()


def test_another_patch_stands_in():
  """Patch 1 with the embedding of 5: as an image that has the pixels of 5 there."""
  model = make_predictor()
  params = random_params(model, SIZE)
  images = make_images(*SIZE, count=1).astype(np.float32) / 127.5 - 1
  pasted = images.copy()
  pasted[:, :4, 4:8] = images[:, 4:, 8:]
  corruption = CORRUPTION._replace(source=jnp.array([[0, 5, 2, 3, 4, 5]], jnp.int32))
  own = jnp.arange(6, dtype=jnp.int32)[None]
  actual = model.apply({'params': params}, images, corruption)
  expected = model.apply({'params': params}, pasted, CORRUPTION._replace(source=own))
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('pool', ['gap', 'token'])
def test_the_encoder_has_the_released_parameters(target, pool):
  model = make_predictor(target).clone(pool=pool)
  params = random_params(model, SIZE)
  assert params.keys() - {'mask_token', 'prediction_head'} == params.keys() & (
    {'embedding', 'Transformer', 'cls'}
  )
  encoder, encoder_params = masked_patches.encoder(model), masked_patches.encoder_params(params)
  assert type(encoder) is type(make_model())
  jax.tree.map(lambda a, b: None, build.abstract_params(encoder, SIZE), encoder_params)
  # Without a corruption, each patch is predicted from its encoded token.
  images = make_images(*SIZE, count=2).astype(np.float32) / 127.5 - 1
  tokens = features.last_tokens(encoder, encoder_params, images)[:, -6:]
  head = params['prediction_head']
  expected = np.einsum('bnd,dm->bnm', tokens, head['kernel']) + head['bias'][None, None]
  actual = model.apply({'params': params}, images)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_the_grid_reaches_the_blocks():
  model = make_predictor().clone(axial=True, position_embedding='2d')
  params = random_params(model, SIZE)
  assert model.apply({'params': params}, jnp.zeros((1, *SIZE, 3)), CORRUPTION).shape == (1, 3, 512)


@pytest.mark.parametrize('target', TARGETS)
def test_scores_are_means_over_corrupted_patches(target):
  model, images = make_predictor(target), make_images(*SIZE, count=3)
  corruption = masked_patches.draw_corruptions(images, 4, jax.random.key(0))
  rng = np.random.default_rng(2)
  predictions = rng.normal(size=(3, 3, model.num_outputs(3))).astype(np.float32)
  losses, hits = np.zeros(3), np.zeros(3)
  for b, k in itertools.product(range(3), range(3)):
    patch = direct_targets(images[b], 4, target)[corruption.indices[b, k]]
    if target == 'pixels':
      losses[b] += np.square(predictions[b, k] - patch).mean() / 3
      continue
    for cell, number in enumerate(patch):
      row = predictions[b, k].reshape(len(patch), 512)[cell].astype(np.float64)
      if (b + k) % 2:
        row[number] = predictions[b, k, cell * 512 + number] = 9
      hits[b] += (row.argmax() == number) / len(patch) / 3
      losses[b] -= (row[number] - np.log(np.exp(row).sum())) / len(patch) / 3
  score = jit(masked_patches.score_patches, static_argnums=0)
  loss, accuracy = score(model, predictions, images, corruption)
  np.testing.assert_allclose(loss, losses, rtol=1e-5)
  if target == 'pixels':
    assert accuracy is None
  else:
    np.testing.assert_allclose(accuracy, hits, rtol=1e-6)
    assert 0.2 < hits.mean() < 0.8


@pytest.mark.parametrize(
  ('target', 'fields', 'shape', 'message'),
  [
    ('mean_color', {}, (4, 4, 3), 'at least two patches'),
    ('downsized', {'patch_size': 6}, (12, 12, 3), 'patch_size is 6; .* a multiple of 4'),
    ('mean_color', {}, (8, 8, 5), 'channels is 5; .* up to 4'),
  ],
)
def test_what_cannot_be_predicted_is_refused(target, fields, shape, message):
  with pytest.raises(UserError, match=message):
    masked_patches.with_prediction_head(make_model().clone(**fields), target, shape)


@pytest.mark.parametrize('target', TARGETS)
def test_flops_are_those_that_xla_counts(target):
  model = make_predictor(target).clone(width=256, mlp_dim=512, patch_size=8)
  params = build.abstract_params(model, (32, 64))
  images = jax.ShapeDtypeStruct((1, 32, 64, 3), jnp.float32)
  corruption = Corruption(
    jax.ShapeDtypeStruct((1, 16), jnp.int32), jax.ShapeDtypeStruct((1, 32), jnp.int32)
  )
  apply = jax.jit(lambda params, *arguments: model.apply({'params': params}, *arguments))
  counted = apply.lower(params, images, corruption).compile().cost_analysis()['flops']
  assert forward_flops(model, (32, 64)) == pytest.approx(counted, rel=0.06)
  assert train_flops(model, (32, 64)) == 3 * forward_flops(model, (32, 64))
