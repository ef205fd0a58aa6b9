"""Self-attention of all tokens in one kernel for TPUs, forward and backward.

The logits of an image and head, (N, N), stay in the TPU's vector memory, which holds them whole up
to some 700 tokens; XLA writes them to HBM and reads them back several times. The kernel works on
their transpose, keys by queries, so that a softmax reduces along sublanes, and a value of each
query is a row: that saves the moves between lanes that bound the other order. Products take
operands of the inputs' dtype and accumulate in float32; the softmax is float32, as everywhere.

The backward pass recomputes the weights from the logarithms of their sums, as in FlashAttention
(arXiv 2205.14135, Algorithm 4).

Shapes: B batch, N tokens, K heads, D features of a head.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

Array = jax.Array

SAVED_NAME = 'fused_attention'
_LANES = 128  # of a vector register
_BLOCK_SIZE = 2**17  # tokens x features that a step of the grid aims at: more compile slowly
_VECTOR_MEMORY = 14 * 2**20  # bytes, of the 16 MiB that a kernel may use


def supports(num_tokens: int) -> bool:
  """Whether four float32 arrays (N, N), what the backward pass needs, fit into vector memory."""
  rows, columns = (math.ceil(num_tokens / size) * size for size in (8, _LANES))
  return 4 * 4 * rows * columns <= _VECTOR_MEMORY


def fused_attention(
  query: Array, key: Array, value: Array, mesh: Mesh | None = None, interpret: bool = False
) -> Array:
  """softmax(query key^T / sqrt(D)) value: (B, N, K, D) three times -> (B, N, K, D).

  Args:
    query, key, value: of one dtype, bfloat16 or float32.
    mesh: the batch is sharded over its axes data and fsdp, and the heads over tensor.
    interpret: run the kernel on any device, slowly, to test it.
  """
  attend = functools.partial(_attend, interpret=interpret)
  if mesh is not None:
    spec = P(('data', 'fsdp'), None, 'tensor', None)
    attend = jax.shard_map(attend, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
  return attend(query, key, value)


def _attend(query: Array, key: Array, value: Array, interpret: bool) -> Array:
  batch, tokens, heads, head_dim = query.shape
  flat = (batch, tokens, heads * head_dim)
  arrays = (x.reshape(flat) for x in (query, key, value))
  return _flat_attention(*arrays, head_dim, interpret).reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _flat_attention(
  query: Array, key: Array, value: Array, head_dim: int, interpret: bool
) -> Array:
  """Attention on (B, N, K D), the layout of the projections."""
  return _forward(query, key, value, head_dim, interpret)[0]


def _forward(
  query: Array, key: Array, value: Array, head_dim: int, interpret: bool
) -> tuple[Array, tuple[Array, ...]]:
  call, block, sums_block, sums = _layout(query, head_dim, interpret)
  output, log_sums = call(
    functools.partial(_forward_kernel, head_dim=head_dim),
    in_specs=[block] * 3,
    out_specs=[block, sums_block],
    out_shape=[jax.ShapeDtypeStruct(query.shape, query.dtype), sums],
  )(query, key, value)
  # By these names, rematerialization keeps what only the kernel can recompute.
  output, log_sums = (checkpoint_name(x, SAVED_NAME) for x in (output, log_sums))
  return output, (query, key, value, output, log_sums)


def _backward(
  head_dim: int, interpret: bool, residuals: tuple[Array, ...], grad: Array
) -> tuple[Array, ...]:
  query = residuals[0]
  call, block, sums_block, _ = _layout(query, head_dim, interpret)
  return call(
    functools.partial(_backward_kernel, head_dim=head_dim),
    in_specs=[*[block] * 4, sums_block, block],
    out_specs=[block] * 3,
    out_shape=[jax.ShapeDtypeStruct(query.shape, query.dtype)] * 3,
  )(*residuals, grad)


_flat_attention.defvjp(_forward, _backward)


def _layout(
  query: Array, head_dim: int, interpret: bool
) -> tuple[Any, pl.BlockSpec, pl.BlockSpec, jax.ShapeDtypeStruct]:
  """`pallas_call` by image and group of heads; blocks of (B, N, K D) and of the log sums."""
  batch, tokens, width = query.shape
  heads = _heads_of_block(tokens, width // head_dim, head_dim)
  groups, lanes = width // (heads * head_dim), heads * head_dim
  call = functools.partial(
    pl.pallas_call,
    grid=(batch, groups),
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel')),
    interpret=interpret,
  )
  block = pl.BlockSpec((1, tokens, lanes), lambda image, group: (image, 0, group))
  sums_block = pl.BlockSpec((1, 1, heads, tokens), lambda image, group: (image, group, 0, 0))
  sums = jax.ShapeDtypeStruct((batch, groups, heads, tokens), jnp.float32)
  return call, block, sums_block, sums


def _heads_of_block(tokens: int, num_heads: int, head_dim: int) -> int:
  """The largest divisor of `num_heads` whose features fill whole registers, up to _BLOCK_SIZE."""
  divisors = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
  aligned = [n for n in divisors if n * head_dim % _LANES == 0] or [num_heads]
  return max((n for n in aligned if tokens * n * head_dim <= _BLOCK_SIZE), default=aligned[0])


def _forward_kernel(
  query_ref: Any, key_ref: Any, value_ref: Any, output_ref: Any, sums_ref: Any, *, head_dim: int
) -> None:
  """One image, some heads: (1, N, heads D) three times -> the same, and (1, 1, heads, N)."""
  for i in range(query_ref.shape[2] // head_dim):
    head = 0, slice(None), slice(i * head_dim, (i + 1) * head_dim)
    query, key, value = query_ref[head], key_ref[head], value_ref[head]
    logits = _product(key, query, 1, 1) * head_dim**-0.5  # (keys, queries)
    largest = logits.max(axis=0, keepdims=True)
    weights = jnp.exp(logits - largest)
    total = weights.sum(axis=0, keepdims=True)  # (1, queries)
    output = _product(value, weights.astype(value.dtype), 0, 0) / total  # (D, queries)
    output_ref[head] = output.T.astype(output_ref.dtype)
    sums_ref[0, 0, i : i + 1, :] = largest + jnp.log(total)


def _backward_kernel(
  query_ref: Any,
  key_ref: Any,
  value_ref: Any,
  output_ref: Any,
  sums_ref: Any,
  grad_ref: Any,
  query_grad_ref: Any,
  key_grad_ref: Any,
  value_grad_ref: Any,
  *,
  head_dim: int,
) -> None:
  """One image, some heads: the gradients of queries, keys and values, (1, N, heads D) each."""
  for i in range(query_ref.shape[2] // head_dim):
    head = 0, slice(None), slice(i * head_dim, (i + 1) * head_dim)
    query, key, value, grad = query_ref[head], key_ref[head], value_ref[head], grad_ref[head]
    scale = head_dim**-0.5
    logits = _product(key, query, 1, 1) * scale  # (keys, queries), as all that follow
    weights = jnp.exp(logits - sums_ref[0, 0, i : i + 1, :])
    value_grad = _product(weights.astype(grad.dtype), grad, 1, 0)
    weights_grad = _product(value, grad, 1, 1)
    # The sum over keys of weights x weights_grad, from the N x D outputs.
    means = (grad.astype(jnp.float32) * output_ref[head].astype(jnp.float32)).T
    means = means.sum(axis=0, keepdims=True)  # (1, queries)
    logits_grad = (weights * (weights_grad - means) * scale).astype(query.dtype)
    value_grad_ref[head] = value_grad.astype(value_grad_ref.dtype)
    key_grad_ref[head] = _product(logits_grad, query, 1, 0).astype(key_grad_ref.dtype)
    query_grad_ref[head] = _product(key, logits_grad, 0, 0).T.astype(query_grad_ref.dtype)


def _product(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
  """A matrix product over these axes; float32, exact for float32 operands."""
  return jax.lax.dot_general(
    a,
    b,
    (((a_axis,), (b_axis,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )
