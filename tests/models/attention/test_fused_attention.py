"""The fused kernel, in interpret mode, against attention in plain operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.config import MeshConfig
from vit_jax.distributed.sharding import make_mesh
from vit_jax.models.attention.fused_attention import fused_attention, supports


def plain(query, key, value):
  logits = jnp.einsum(
    'bnkd,blkd->bknl', query, key, precision='highest', preferred_element_type='f4'
  )
  weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5)
  return jnp.einsum('bknl,blkd->bnkd', weights, value, precision='highest')


def arrays(shape, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 4)
  return [jax.random.normal(key, shape).astype(dtype) for key in keys]


def output_and_gradients(attend, query, key, value, grad):
  output, pull = jax.vjp(attend, query, key, value)
  return output, *pull(grad)


@pytest.mark.parametrize(
  'shape',
  [
    (2, 17, 4, 64),  # a group of all heads
    (1, 5, 2, 80),  # heads that fill no whole register
    (1, 130, 16, 64),  # two groups of heads; more tokens than lanes
    (1, 1, 1, 8),
  ],
)
def test_equals_plain_attention(shape):
  fused = output_and_gradients(lambda *x: fused_attention(*x, interpret=True), *arrays(shape))
  expected = output_and_gradients(plain, *arrays(shape))
  for actual, desired in zip(fused, expected, strict=True):
    np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_as_close_to_float32_as_plain_operations_are():
  inputs = arrays((2, 33, 2, 64), jnp.bfloat16)
  exact = output_and_gradients(plain, *(x.astype(jnp.float32) for x in inputs))
  fused = output_and_gradients(lambda *x: fused_attention(*x, interpret=True), *inputs)
  for actual, desired in zip(fused, exact, strict=True):
    error = jnp.linalg.norm(actual.astype(jnp.float32) - desired) / jnp.linalg.norm(desired)
    assert actual.dtype == jnp.bfloat16 and error < 0.01


def test_large_logits_do_not_overflow():
  query, key, value, _ = (100 * x for x in arrays((1, 9, 2, 64)))
  assert np.isfinite(fused_attention(query, key, value, interpret=True)).all()


def test_batch_and_heads_are_sharded():
  mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=2), jax.devices()[:4])
  inputs = arrays((2, 7, 4, 64))
  sharded = jax.jit(
    lambda *x: output_and_gradients(
      lambda *y: fused_attention(*y, mesh, ('data', 'fsdp'), interpret=True), *x
    )
  )(*inputs)
  single = output_and_gradients(lambda *x: fused_attention(*x, interpret=True), *inputs)
  for actual, desired in zip(sharded, single, strict=True):
    np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('shape', 'tensor', 'mebibytes', 'fits'),
  [
    ((8, 197, 12, 64), 1, 14, True),
    ((8, 577, 16, 64), 1, 14, False),
    ((8, 577, 16, 64), 1, 112, True),
    ((8, 257, 16, 88), 1, 112, False),  # a block of all heads
    ((8, 257, 16, 88), 2, 112, True),
  ],
)
def test_what_fits_into_vector_memory(shape, tensor, mebibytes, fits):
  mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=tensor), jax.devices()[:tensor])
  query = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  assert supports(query, mesh, ('data', 'fsdp'), mebibytes * 2**20) == fits


def test_a_batch_that_the_mesh_does_not_divide_is_not_supported():
  mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=1), jax.devices()[:2])
  query = jax.ShapeDtypeStruct((1, 17, 4, 64), jnp.bfloat16)  # as of an initialization
  assert not supports(query, mesh, ('data', 'fsdp'), 2**27)
  assert supports(query, mesh, (), 2**27)
