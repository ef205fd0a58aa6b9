"""`attention`: the weights of every block, of every kind of Vision Transformer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.analysis import numpy_vit
from tests.analysis.models import (
  GOLDEN_MODELS,
  embedded,
  golden,
  golden_images,
  golden_logits,
  noise,
  tiny,
)
from vit_jax.analysis import attention, pooling
from vit_jax.errors import UserError
from vit_jax.models.attention.detr import DETR
from vit_jax.models.dot_product_attention import choose_attention, cudnn_attention
from vit_jax.models.vit import Numerics


@pytest.mark.parametrize('name', GOLDEN_MODELS)
def test_weights_are_those_of_the_equations(name):
  vit, images = golden(name), golden_images(name)
  params, patches = embedded(vit, images)
  logits, expected = zip(*(numpy_vit.run(params, x, vit.model.pool) for x in patches), strict=True)
  np.testing.assert_allclose(golden_logits(name), logits, atol=1e-4)  # it is the model of the file
  weights = attention(vit, images)
  assert weights.dtype == jnp.float32
  blocks = np.stack([each[: vit.model.depth] for each in expected])  # (B, L, K, N, N)
  np.testing.assert_allclose(weights, blocks, atol=1e-5)
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
  if vit.model.pool == 'map':
    query = np.stack([each[-1][:, 0].mean(0) for each in expected])
    np.testing.assert_allclose(pooling(vit, images), query, atol=1e-5)


@pytest.mark.parametrize(
  'fields',
  [
    {'attention': choose_attention('xla', 'cpu')},
    {'attention': cudnn_attention},
    {'attention': choose_attention('fused', 'cpu', device=jax.devices('cpu')[0])},
    {'remat': 'full'},
    {'scan_blocks': True},
  ],
  ids=['xla', 'cudnn', 'fused', 'remat', 'scan'],
)
def test_settings_of_the_training_change_no_weight(fields):
  vit = tiny()
  other = dataclasses.replace(vit, model=vit.model.clone(**fields))
  np.testing.assert_array_equal(attention(other, noise(vit)), attention(vit, noise(vit)))


def test_weights_of_a_model_in_bfloat16_are_not_rounded_to_it():
  vit = tiny(numerics=Numerics(jnp.bfloat16))
  weights = np.asarray(attention(vit, noise(vit)))
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
  assert (weights != weights.astype(jnp.bfloat16)).mean() > 0.9


def test_relative_positions_change_the_weights():
  vit = tiny(position_embedding='relative')
  weights = np.asarray(attention(vit, noise(vit)))
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
  table = {'relative_embedding': np.zeros((11, 2, 8), np.float32)}
  block = vit.params['Transformer']['encoderblock_0']
  others = {**vit.params['Transformer'], 'encoderblock_0': {**block, 'posembed_input': table}}
  other = dataclasses.replace(vit, params={**vit.params, 'Transformer': others})
  assert np.abs(np.asarray(attention(other, noise(vit)))[:, 0] - weights[:, 0]).max() > 0.01


def test_another_size_than_that_of_the_training():
  vit = golden('vit_gap').at_size((32, 16))
  rows, columns = 32 // vit.model.patch_size, 16 // vit.model.patch_size
  assert attention(vit, noise(vit)).shape[-1] == rows * columns


@pytest.mark.parametrize('pool', ['token', 'gap', 'map'])
def test_pooling_is_what_the_head_reads(pool):
  vit = tiny(pool=pool, num_classes=0)
  shares = np.asarray(pooling(vit, noise(vit)))
  np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-6)
  if pool == 'token':
    assert (shares[:, 0] == 1).all() and shares.shape == (2, 7)
  elif pool == 'gap':
    np.testing.assert_allclose(shares, 1 / 6, rtol=1e-6)
  else:
    assert shares.shape == (2, 6) and shares.std() > 1e-3


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    (dict(registers=2), [1] + 8 * [0]),
    (dict(pool='gap', registers=2), 2 * [0] + 6 * [1 / 6]),
    (dict(pool='gap', class_token=True), [0] + 6 * [1 / 6]),
    (dict(pool='token_gap', registers=1), [1 / 2, 0] + 6 * [1 / 12]),
    (dict(pool='distilled'), 2 * [1 / 2] + 6 * [0]),
  ],
)
def test_tokens_that_are_not_pooled_have_no_share(fields, expected):
  vit = tiny(**fields)
  np.testing.assert_allclose(pooling(vit, noise(vit)), [expected] * 2, rtol=1e-6)


def test_inside_of_jit():
  vit = tiny()
  jitted = jax.jit(attention)(vit, noise(vit))
  np.testing.assert_allclose(jitted, attention(vit, noise(vit)), atol=1e-6)


@pytest.mark.parametrize('name', ['mixer', 'bit_resnet'])
def test_models_without_attention_are_refused(name):
  vit = golden(name)
  with pytest.raises(UserError, match='MLP-Mixer' if name == 'mixer' else 'ResNet'):
    attention(vit, np.zeros((1, *vit.image_size, 3), np.float32))


def test_models_with_other_attention_are_refused():
  axial = tiny(pool='gap', axial=True)
  with pytest.raises(UserError, match='rows, then along columns'):
    attention(axial, noise(axial))
  detr = vit_jax.Classifier(DETR(16, 1, 16, 2, 3, 32, (1,)), {}, (32, 32))
  with pytest.raises(UserError, match='a DETR'):
    attention(detr, noise(detr))


def test_images_of_another_shape_are_refused():
  with pytest.raises(ValueError, match='images are'):
    attention(tiny(), np.zeros((1, 8, 8, 3), np.float32))
