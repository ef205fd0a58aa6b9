"""Local attention: its window, its borders, a direct computation, its count of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import input_dependence
from vit_jax.models.attention.local_attention import LocalAttention
from vit_jax.models.build import count_parameters

SHAPE = (1, 7, 9, 6)


def layer_and_params(window=3, stride=1, features=8, num_heads=2):
  layer = LocalAttention(features, num_heads, window, stride)
  return layer, layer.init(jax.random.key(0), jnp.zeros(SHAPE))


@pytest.mark.parametrize('window', [1, 3, 5])
@pytest.mark.parametrize('pixel', [(3, 4), (0, 0), (6, 8), (1, 7)])
def test_a_pixel_depends_on_its_window_only(window, pixel):
  layer, params = layer_and_params(window)
  depends = input_dependence(lambda x: layer.apply(params, x), SHAPE, pixel)
  rows, columns = np.indices(SHAPE[1:3])
  reach = window // 2
  expected = (abs(rows - pixel[0]) <= reach) & (abs(columns - pixel[1]) <= reach)
  np.testing.assert_array_equal(depends, expected)


def test_it_is_the_formula_of_the_paper():
  layer, params = layer_and_params()
  x = np.asarray(jax.random.normal(jax.random.key(1), SHAPE))
  tensors = jax.tree.map(np.asarray, params['params'])
  query, key, value = (
    np.einsum('hwf,fkd->hwkd', x[0], tensors[name]['kernel']) for name in ('query', 'key', 'value')
  )
  expected = np.zeros((*SHAPE[1:3], 2, 4))
  for i, j, head in np.ndindex(expected.shape[:3]):
    logits, values = [], []
    for a in range(max(i - 1, 0), min(i + 2, SHAPE[1])):
      for b in range(max(j - 1, 0), min(j + 2, SHAPE[2])):
        of_row, of_column = tensors['rows'][head, a - i + 1], tensors['columns'][head, b - j + 1]
        position = np.concatenate([of_row, of_column])
        logits.append(query[i, j, head] @ (key[a, b, head] + position) / np.sqrt(4))
        values.append(value[a, b, head])
    weights = np.exp(logits) / np.exp(logits).sum()
    expected[i, j, head] = weights @ np.array(values)
  result = layer.apply(params, x)
  np.testing.assert_allclose(result[0], expected.reshape(*SHAPE[1:3], 8), atol=1e-5)


def test_a_stride_averages_the_attended_pixels():
  layer, params = layer_and_params()
  x = jax.random.normal(jax.random.key(1), SHAPE)
  whole, strided = (each.apply(params, x) for each in (layer, layer.clone(stride=2)))
  assert strided.shape == (1, 4, 5, 8)
  np.testing.assert_allclose(strided[0, 1, 2], whole[0, 2:4, 4:6].mean((0, 1)), atol=1e-6)
  np.testing.assert_allclose(strided[0, 3, 4], whole[0, 6, 8], atol=1e-6)


@pytest.mark.parametrize('window', [3, 7])
def test_the_parameters_do_not_grow_with_the_window_but_for_the_positions(window):
  _, params = layer_and_params(window, features=16)
  assert count_parameters(params) == 3 * 6 * 16 + window * 16
