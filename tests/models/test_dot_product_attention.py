"""cuDNN's attention against einsum's: on an NVIDIA GPU; what surrounds it, everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from vit_jax.hardware import has_flash_attention
from vit_jax.models.build import abstract_params
from vit_jax.models.dot_product_attention import (
  choose_attention,
  cudnn_attention,
  einsum_attention,
  pad_for_cudnn,
)
from vit_jax.models.vit import Numerics, VisionTransformer

on_nvidia = pytest.mark.skipif(
  not has_flash_attention(jax.devices()[0]), reason='needs an NVIDIA GPU'
)


def arrays(shape, dtype, count=4):
  keys = jax.random.split(jax.random.key(0), count)
  return [jax.random.normal(key, shape).astype(dtype) for key in keys]


def output_and_gradients(attend, query, key, value, grad):
  output, pull = jax.vjp(attend, query, key, value)
  return output, *pull(grad)


def relative_error(actual, expected):
  actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
  return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@on_nvidia
@pytest.mark.parametrize('num_tokens', [16, 197, 577])
@pytest.mark.parametrize('head_dim', [64, 80])
def test_cudnn_equals_einsum(num_tokens, head_dim):
  inputs = arrays((2, num_tokens, 3, head_dim), jnp.bfloat16)
  results = jax.jit(functools.partial(output_and_gradients, cudnn_attention))(*inputs)
  expected = output_and_gradients(einsum_attention, *(x.astype(jnp.float32) for x in inputs))
  for actual, exact in zip(results, expected, strict=True):
    assert relative_error(actual, exact) < 1e-2


@on_nvidia
def test_auto_is_cudnn_on_an_nvidia_gpu():
  assert choose_attention('auto', 'gpu') is cudnn_attention


@pytest.mark.parametrize('num_tokens', [5, 8, 9])
def test_padded_tokens_change_no_other(num_tokens):
  # Dropout, even of nothing, bypasses cuDNN, which this machine may lack.
  tokens, *_ = arrays((2, num_tokens, 24), jnp.bfloat16)
  padded, attend = pad_for_cudnn(tokens, cudnn_attention, num_heads=3)
  assert padded.shape[1] % 8 == 0
  assert (padded.shape[1] == num_tokens) == (num_tokens == 8)

  def attend_to_itself(attend, x):
    heads = x.reshape(*x.shape[:2], 3, 8)
    return attend(heads, heads, heads, lambda weights: weights)

  expected = attend_to_itself(einsum_attention, tokens)
  actual = attend_to_itself(attend, padded)
  np.testing.assert_array_equal(actual[:, :num_tokens], expected)


@pytest.mark.parametrize(
  ('attend', 'dtype', 'num_heads'),
  [
    (einsum_attention, jnp.bfloat16, 1),
    (cudnn_attention, jnp.float32, 1),
    (cudnn_attention, jnp.bfloat16, 2),  # heads of four features
  ],
)
def test_no_tokens_are_added_where_cudnn_is_not_used(attend, dtype, num_heads):
  tokens = jnp.ones((1, 5, 8), dtype)
  padded, same = pad_for_cudnn(tokens, attend, num_heads)
  assert padded is tokens
  assert same is attend


def test_float32_bypasses_cudnn():
  query, key, value = arrays((2, 5, 3, 8), jnp.float32, 3)
  np.testing.assert_array_equal(
    cudnn_attention(query, key, value), einsum_attention(query, key, value)
  )


@pytest.mark.parametrize('scan_blocks', [False, True])
@pytest.mark.parametrize(('remat', 'count'), [('none', 1), ('dots', 1), ('full', 2)])
def test_dots_keeps_the_outputs_of_cudnn(remat, count, scan_blocks, monkeypatch):
  # Traced as for a GPU.
  monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 91900)
  monkeypatch.setattr(fused_attention_stablehlo, 'check_compute_capability', lambda _: True)
  monkeypatch.setattr(
    fused_attention_stablehlo, 'is_cuda_compute_capability_equal', lambda _: False
  )
  model = VisionTransformer(8, 16, 1, 32, 2, 3, numerics=Numerics(jnp.bfloat16))
  model = model.clone(attention=cudnn_attention, remat=remat, scan_blocks=scan_blocks)
  images = jnp.zeros((2, 16, 16, 3))
  params = abstract_params(model, (16, 16))
  gradients = jax.grad(lambda params: model.apply({'params': params}, images).sum())
  jaxpr = str(jax.make_jaxpr(gradients)(params))
  assert jaxpr.count('dot_product_attention_bwd_wrapper') == 1
  assert jaxpr.count('dot_product_attention_fwd_wrapper') == count
