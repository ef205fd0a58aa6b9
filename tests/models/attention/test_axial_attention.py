"""Axial attention: rows and columns, a direct computation, published counts of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import input_dependence
from vit_jax.models.attention.axial_attention import AxialAttention
from vit_jax.models.build import count_parameters

SHAPE = (1, 6, 5, 4)
PIXEL = (2, 3)


def layer_and_params(axis, window=11, features=8, num_heads=2, shape=SHAPE):
  layer = AxialAttention(axis, features, num_heads, window)
  return layer, layer.init(jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize('axis', [1, 2])
@pytest.mark.parametrize('window', [3, 11])
def test_a_pixel_depends_on_one_line_only(axis, window):
  layer, params = layer_and_params(axis, window)
  depends = input_dependence(lambda x: layer.apply(params, x), SHAPE, PIXEL)
  along, across = np.indices(SHAPE[1:3]) if axis == 1 else np.indices(SHAPE[1:3])[::-1]
  center, line = PIXEL if axis == 1 else PIXEL[::-1]
  np.testing.assert_array_equal(depends, (across == line) & (abs(along - center) <= window // 2))


def test_after_both_axes_a_pixel_depends_on_all():
  height, params = layer_and_params(1)
  width, others = layer_and_params(2, shape=(*SHAPE[:3], 8))
  depends = input_dependence(lambda x: width.apply(others, height.apply(params, x)), SHAPE, PIXEL)
  assert depends.all()


def test_it_is_the_position_sensitive_formula_of_the_paper():
  layer, params = layer_and_params(2)
  x = np.asarray(jax.random.normal(jax.random.key(1), SHAPE))
  tensors = jax.tree.map(np.asarray, params['params'])
  query, key, value = (
    np.einsum('hwf,fkd->hwkd', x[0], tensors[name]['kernel']) for name in ('query', 'key', 'value')
  )
  of_query, of_key, of_value = (
    tensors[f'{name}_positions'][5:] for name in ('query', 'key', 'value')
  )  # from the offset 0 on
  row, head = 4, 1
  logits = [
    query[row, 0, head] @ key[row, j, head] / np.sqrt(2)
    + query[row, 0, head] @ of_query[j]
    + key[row, j, head] @ of_key[j]
    for j in range(5)
  ]
  weights = np.exp(logits) / np.exp(logits).sum()
  expected = sum(weights[j] * (value[row, j, head] + of_value[j]) for j in range(5))
  np.testing.assert_allclose(layer.apply(params, x)[0, row, 0, 4:], expected, atol=1e-5)


def test_the_parameters_are_those_of_the_formula():
  _, params = layer_and_params(1, window=7, features=16, num_heads=4)
  assert count_parameters(params) == 2 * 4 * 16 + 7 * 2 * 16 // 4


def test_axial_resnet_26_s_has_the_published_number_of_parameters():
  """5.9 M in the table of github.com/csrhddlam/axial-deeplab; sizes of lib/models/axialnet.py."""
  total, inputs = 7 * 7 * 3 * 32 + 2 * 32, 32
  for units, features, length, stride in (
    (1, 64, 56, 1),
    (2, 128, 56, 2),
    (4, 256, 28, 2),
    (1, 512, 14, 2),
  ):
    for unit in range(units):
      line = length // stride if unit else length  # the first unit pools after its attention
      shape = (1, 2, 2, features)
      for axis in (1, 2):
        _, params = layer_and_params(axis, 2 * line - 1, features, 8, shape)
        total += count_parameters(params)
      normalization = 2 * (2 * 2 * features + 3 * 8 * 2 + 2 * 2 * features)  # of both attentions
      total += normalization + inputs * features + 2 * features  # and the first convolution
      total += features * 2 * features + 2 * 2 * features  # the last one
      if not unit:
        total += inputs * 2 * features + 2 * 2 * features  # the shortcut
      inputs = 2 * features
  total += inputs * 1000 + 1000
  assert round(total / 1e6, 1) == 5.9
