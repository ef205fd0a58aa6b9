"""The dense layers against flax's, gradients included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.dense import Dense, PatchEmbedding


def assert_same(layer, reference, x):
  """The same parameters, outputs and gradients as those of a layer of flax."""
  params = reference.init(jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, layer.init(jax.random.key(0), x)) == jax.tree.map(
    jnp.shape, params
  )
  params = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)

  def score(layer):
    return jax.value_and_grad(lambda params, x: jnp.sin(layer.apply(params, x)).sum(), (0, 1))(
      params, x
    )

  for actual, expected in zip(
    jax.tree.leaves(score(layer)), jax.tree.leaves(score(reference)), strict=True
  ):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_dense_is_a_dense_general():
  x = jax.random.normal(jax.random.key(1), (2, 5, 12))
  assert_same(Dense((12,), (3, 4)), Flat(nn.DenseGeneral((3, 4))), x)


class Flat(nn.Module):
  """A layer whose last two axes are made one."""

  layer: nn.Module

  @nn.compact
  def __call__(self, x):
    nn.share_scope(self, self.layer)
    return self.layer(x).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize('size', [(8, 12), (9, 15)])  # the second with a margin
def test_patch_embedding_is_a_convolution(size):
  x = jax.random.normal(jax.random.key(1), (2, *size, 3))
  conv = nn.Conv(10, (4, 4), (4, 4), padding='VALID')
  assert_same(PatchEmbedding(4, 10), conv, x)


def test_gradients_of_parameters_are_float32_sums():
  x = jax.random.normal(jax.random.key(1), (4096, 8)).astype(jnp.bfloat16)
  layer = Dense((8,), (8,), jnp.bfloat16)
  params = layer.init(jax.random.key(0), x)
  grads = jax.grad(lambda params: layer.apply(params, x).astype(jnp.float32).sum())(params)
  exact = np.asarray(x, np.float64).sum(axis=0)
  np.testing.assert_allclose(grads['params']['kernel'][:, 0], exact, rtol=1e-5, atol=1e-4)
  np.testing.assert_array_equal(grads['params']['bias'], 4096)
