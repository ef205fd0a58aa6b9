"""softmax(Q K^T / sqrt(D)) V in several ways: the same results but for rounding.

Shapes: B batch, N queries, L keys, K heads, D features of a head.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vit_jax.hardware import vector_memory

Array = jax.Array
DropWeights = Callable[[Array], Array]  # dropout of attention weights (B, K, N, L)
# Query (B, N, K, D), key and value (B, L, K, D), dropout or None, addend of the logits (B, K, N, L)
# or None -> (B, N, K, D).
Attend = Callable[[Array, Array, Array, DropWeights | None, Array | None], Array]


def einsum_attention(
  query: Array, key: Array, value: Array, drop: DropWeights | None = None, bias: Array | None = None
) -> Array:
  """Softmax in float32; heads before tokens, which is the faster order on a CPU."""
  query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))  # (B, K, N, D)
  logits = jnp.einsum('bknd,bkld->bknl', query * query.shape[-1] ** -0.5, key)
  logits = logits if bias is None else logits + bias
  weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(value.dtype)  # (B, K, N, L)
  return jnp.einsum('bknl,bkld->bnkd', weights if drop is None else drop(weights), value)


def _jax_attention(
  implementation: Literal['xla', 'cudnn'],
  query: Array,
  key: Array,
  value: Array,
  drop: DropWeights | None = None,
  bias: Array | None = None,
) -> Array:
  """The attention of jax.nn, which has no dropout."""
  assert drop is None
  return jax.nn.dot_product_attention(query, key, value, bias, implementation=implementation)


def _fused_attention(
  mesh: Mesh | None,
  batch_axes: Sequence[str],
  query: Array,
  key: Array,
  value: Array,
  drop: DropWeights | None = None,
  bias: Array | None = None,
) -> Array:
  """The kernel for TPUs; einsum for what it does not compute: dropout, addends, long sequences."""
  from vit_jax.models.attention import fused_attention  # Pallas takes a second to import

  is_plain = query.shape == key.shape and drop is None and bias is None
  memory = vector_memory((mesh.devices.flat if mesh else jax.devices())[0].device_kind)
  if is_plain and fused_attention.supports(query, mesh, memory):
    return fused_attention.fused_attention(query, key, value, mesh, batch_axes, memory)
  return einsum_attention(query, key, value, drop, bias)


def choose_attention(
  name: str, platform: str, mesh: Mesh | None = None, batch_axes: Sequence[str] = ()
) -> Attend:
  """The function of `config.model.attention`.

  Args:
    name: auto (fused on a TPU, else einsum), einsum, xla, cudnn or fused.
    platform: of the devices, 'cpu', 'gpu' or 'tpu'.
    mesh: of these devices; None: one device.
    batch_axes: of the mesh, which divide the batch.
  """
  if name == 'auto':
    name = 'fused' if platform == 'tpu' else 'einsum'
  if name == 'einsum':
    return einsum_attention
  if name == 'fused':
    return functools.partial(_fused_attention, mesh, batch_axes)
  return functools.partial(_jax_attention, 'cudnn' if name == 'cudnn' else 'xla')
