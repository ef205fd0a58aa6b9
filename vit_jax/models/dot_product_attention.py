"""softmax(Q K^T / sqrt(D)) V in several ways: the same results but for rounding.

Shapes: B batch, N queries, L keys, K heads, D features of a head.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vit_jax.hardware import has_flash_attention, vector_memory

Array = jax.Array
DropWeights = Callable[[Array], Array]  # dropout of attention weights (B, K, N, L)
# Query (B, N, K, D), key and value (B, L, K, D), dropout or None, addend of the logits (B, K, N, L)
# or None -> (B, N, K, D).
Attend = Callable[[Array, Array, Array, DropWeights | None, Array | None], Array]


def einsum_attention(
  query: Array, key: Array, value: Array, drop: DropWeights | None = None, bias: Array | None = None
) -> Array:
  """Softmax in float32."""
  logits = jnp.einsum('bnkd,blkd->bknl', query * query.shape[-1] ** -0.5, key)
  logits = logits if bias is None else logits + bias
  weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(value.dtype)  # (B, K, N, L)
  return jnp.einsum('bknl,blkd->bnkd', weights if drop is None else drop(weights), value)


def _xla_attention(
  query: Array, key: Array, value: Array, drop: DropWeights | None = None, bias: Array | None = None
) -> Array:
  """The attention of jax.nn, which has no dropout."""
  assert drop is None
  return jax.nn.dot_product_attention(query, key, value, bias, implementation='xla')


def cudnn_attention(
  query: Array,
  key: Array,
  value: Array,
  drop: DropWeights | None = None,
  bias: Array | None = None,
  num_keys: int | None = None,
) -> Array:
  """cuDNN's flash attention; einsum for what it does not compute: dropout, addends, float32.

  Only the first `num_keys` keys are attended to; None: all.
  """
  num_queries, num_keys = query.shape[1], num_keys or key.shape[1]
  if drop is not None or bias is not None or not _has_kernel(query.dtype, query.shape[-1]):
    return einsum_attention(query, key[:, :num_keys], value[:, :num_keys], drop, bias)
  # JAX 0.10 to 0.12 refuse to differentiate with an odd number of tokens.
  query, key, value = (_pad_tokens(x, x.shape[1] + x.shape[1] % 2) for x in (query, key, value))
  lengths = None if num_keys == key.shape[1] else jnp.full(key.shape[:1], num_keys, jnp.int32)
  outputs = jax.nn.dot_product_attention(
    query, key, value, key_value_seq_lengths=lengths, implementation='cudnn'
  )
  return outputs[:, :num_queries]


def _has_kernel(dtype: jnp.dtype, head_dim: int) -> bool:
  """Whether cuDNN has flash attention for heads of this dtype and so many features."""
  return dtype.itemsize == 2 and head_dim <= 128 and head_dim % 8 == 0


def pad_for_cudnn(x: Array, attend: Attend, num_heads: int) -> tuple[Array, Attend]:
  """Adds tokens that nobody attends to, once rather than in each block: (B, N, D) -> (B, L, D).

  L is a multiple of 8. On an H100 a train step of B/16 is 9 % faster than with one more token in
  each block's queries, keys and values.
  """
  if attend is not cudnn_attention or not _has_kernel(x.dtype, x.shape[-1] // num_heads):
    return x, attend
  num_tokens = x.shape[1]
  x = _pad_tokens(x, -(-num_tokens // 8) * 8)
  return x, functools.partial(cudnn_attention, num_keys=num_tokens)


def _pad_tokens(x: Array, count: int) -> Array:
  return jnp.pad(x, ((0, 0), (0, count - x.shape[1]), *((0, 0) for _ in x.shape[2:])))


def _fused_attention(
  device: Any,
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
  memory = vector_memory(device.device_kind)
  if is_plain and fused_attention.supports(query, mesh, batch_axes, memory):
    return fused_attention.fused_attention(query, key, value, mesh, batch_axes, memory)
  return einsum_attention(query, key, value, drop, bias)


@functools.cache  # one function for a device, so that `jit` knows the model again
def choose_attention(
  name: str,
  platform: str,
  mesh: Mesh | None = None,
  batch_axes: tuple[str, ...] = (),
  device: Any = None,
) -> Attend:
  """The function of `config.model.attention`.

  Args:
    name: auto (fused on a TPU, cudnn on an NVIDIA GPU that has it, else einsum), einsum, xla, cudnn
      or fused.
    platform: of the devices, 'cpu', 'gpu' or 'tpu'.
    mesh: of these devices; None: one device.
    batch_axes: of the mesh, which divide the batch.
    device: that one; None: the first one of the mesh or of JAX.
  """
  if name == 'einsum' or (name == 'auto' and platform == 'cpu'):
    return einsum_attention
  device = device or (mesh.devices.flat if mesh else jax.devices())[0]
  if name == 'auto':
    name = 'cudnn' if has_flash_attention(device) else 'fused' if platform == 'tpu' else 'einsum'
    return choose_attention(name, platform, mesh, batch_axes, device)
  if name == 'fused':
    return functools.partial(_fused_attention, device, mesh, batch_axes)
  return {'cudnn': cudnn_attention, 'xla': _xla_attention}[name]
