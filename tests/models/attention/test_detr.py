"""DETR's encoder: positions move with pixels, published formulas of positions and parameters."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.config import ModelConfig
from vit_jax.models import build
from vit_jax.models.attention.detr import DetrEncoder, DetrEncoderLayer, sine_positions

TOKENS, WIDTH = 12, 16


@pytest.fixture(scope='module')
def encoder():
  """(tokens, positions) -> tokens, of an encoder with random parameters."""
  encoder = DetrEncoder(2, dict(mlp_dim=32, num_heads=4))
  tokens = jnp.zeros((1, TOKENS, WIDTH))
  params = encoder.init(jax.random.key(0), tokens, tokens)
  return lambda tokens, positions: encoder.apply(params, tokens, positions)


def test_tokens_that_move_with_their_positions_move_the_outputs(encoder):
  tokens = jax.random.normal(jax.random.key(1), (2, TOKENS, WIDTH))
  positions = jnp.asarray(sine_positions(3, 4, WIDTH).reshape(1, TOKENS, WIDTH))
  order = np.random.default_rng(0).permutation(TOKENS)
  expected = encoder(tokens, positions)[:, order]
  np.testing.assert_allclose(encoder(tokens[:, order], positions[:, order]), expected, atol=1e-5)
  moved_alone = encoder(tokens[:, order], positions)
  assert np.abs(moved_alone - expected).max() > 1e-2


def test_without_positions_tokens_in_another_order_are_outputs_in_that_order(encoder):
  tokens = jax.random.normal(jax.random.key(1), (2, TOKENS, WIDTH))
  order = np.random.default_rng(0).permutation(TOKENS)
  zeros = jnp.zeros((1, TOKENS, WIDTH))
  expected = encoder(tokens, zeros)[:, order]
  np.testing.assert_allclose(encoder(tokens[:, order], zeros), expected, atol=1e-5)


def test_a_layer_is_that_of_the_paper():
  """q = k = x + positions, v = x; LayerNorm after each residual; ReLU."""
  layer = DetrEncoderLayer(mlp_dim=32, num_heads=1)
  x, positions = np.random.default_rng(0).normal(size=(2, 1, TOKENS, WIDTH)).astype(np.float32)
  params = layer.init(jax.random.key(0), x, positions)
  tensors = jax.tree.map(np.asarray, params['params'])
  attention, mlp = tensors['MultiHeadDotProductAttention_0'], tensors['MlpBlock_0']

  def project(x, name):
    return x[0] @ attention[name]['kernel'].reshape(WIDTH, WIDTH)

  def normalize(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

  query, key = (project(x + positions, name) for name in ('query', 'key'))
  weights = np.exp(query @ key.T / np.sqrt(WIDTH))
  attended = weights / weights.sum(1, keepdims=True) @ project(x, 'value')
  y = normalize(x[0] + attended @ attention['out']['kernel'][0])
  hidden = np.maximum(y @ mlp['Dense_0']['kernel'], 0)
  expected = normalize(y + hidden @ mlp['Dense_1']['kernel'])
  np.testing.assert_allclose(layer.apply(params, x, positions)[0], expected, atol=1e-5)


def test_positions_are_sines_of_the_published_frequencies():
  positions = sine_positions(5, 3, 8)
  assert positions.shape == (5, 3, 8) and positions.dtype == np.float32
  row, column = 2 * math.pi * 4 / 5, 2 * math.pi * 2 / 3  # of the fourth row, the second column
  # 10000^(2 (i // 2) / 4) for feature i of the four of each half.
  expected = [f(x / t) for x in (row, column) for t in (1, 100) for f in (math.sin, math.cos)]
  np.testing.assert_allclose(positions[3, 1], expected, atol=1e-6)


def test_the_parameters_are_those_of_the_formula():
  layer = DetrEncoderLayer(mlp_dim=2048, num_heads=8)
  tokens = jax.ShapeDtypeStruct((1, 4, 256), jnp.float32)
  params = jax.eval_shape(layer.init, jax.random.key(0), tokens, tokens)
  assert build.count_parameters(params) == 1_315_072
  model = build.model_from_config(ModelConfig(variant='DETR-R50'), 1000)
  params = build.abstract_params(model, (224, 224))
  assert build.count_parameters(params['Transformer']) == 6 * 1_315_072
  assert build.count_parameters(params['input_projection']) == 2048 * 256 + 256
