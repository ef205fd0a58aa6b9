"""Non-local blocks: the identity at the start, all pixels afterwards, the count of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import input_dependence
from vit_jax.models.attention.non_local import NonLocalBlock
from vit_jax.models.build import count_parameters

SHAPE = (1, 5, 4, 64)


def block_and_params(subsample=False):
  block = NonLocalBlock(subsample)
  return block, block.init(jax.random.key(0), jnp.zeros(SHAPE))


@pytest.mark.parametrize('subsample', [False, True])
def test_a_new_block_is_the_identity_and_a_trained_one_sees_all_pixels(subsample):
  block, params = block_and_params(subsample)
  x = jax.random.normal(jax.random.key(1), SHAPE)
  np.testing.assert_array_equal(block.apply(params, x), x)
  pixel = (3, 1)
  depends = input_dependence(lambda x: block.apply(params, x), SHAPE, pixel)
  assert depends.sum() == 1 and depends[pixel]
  gradient = jax.grad(lambda params: block.apply(params, x).var())(params)
  params = jax.tree.map(lambda x, step: x - 0.1 * step, params, gradient)
  assert input_dependence(lambda x: block.apply(params, x), SHAPE, pixel).all()


def test_it_is_the_embedded_gaussian():
  block, params = block_and_params()
  params['params']['norm']['scale'] = jnp.ones(64)
  x = np.asarray(jax.random.normal(jax.random.key(1), SHAPE))
  tensors = jax.tree.map(np.asarray, params['params'])
  pixels = x.reshape(20, 64)
  query, key, value = (pixels @ tensors[name]['kernel'] for name in ('query', 'key', 'value'))
  weights = np.exp(query @ key.T / np.sqrt(32))
  y = weights / weights.sum(1, keepdims=True) @ value @ tensors['out']['kernel']
  groups = y.reshape(20, 32, 2)
  variance = groups.var((0, 2), keepdims=True) + 1e-5
  y = (groups - groups.mean((0, 2), keepdims=True)) / np.sqrt(variance)
  expected = pixels + y.reshape(20, 64)
  np.testing.assert_allclose(block.apply(params, x).reshape(20, 64), expected, atol=1e-4)


def test_subsampling_changes_no_parameters_but_their_names():
  plain, subsampled = (block_and_params(subsample)[1]['params'] for subsample in (False, True))
  assert plain.keys() ^ subsampled.keys() == {'key', 'value', 'pooled_key', 'pooled_value'}
  expected = 4 * 64 * 32 + 3 * 32 + 64 + 2 * 64  # convolutions, biases, normalization
  assert count_parameters(plain) == count_parameters(subsampled) == expected
