"""Self-attention of all tokens in one kernel for TPUs, forward and backward.

The logits of an image and head, (N, N), stay in the TPU's vector memory; XLA writes them to HBM and
reads them back several times. The kernel works on their transpose, keys by queries, so that a
softmax reduces along sublanes, and a value of each query is a row: this avoids the lane shuffles
that limit the untransposed order. Products take operands of the inputs' dtype and accumulate in
float32; the softmax is float32, as everywhere.

XLA lays tokens out as (N, B, K D), since N, unlike B, is rarely a multiple of a register's rows. So
does the kernel: it brings some images forward itself, which costs less than copies in HBM.

The backward pass recomputes the weights from the logarithms of their sums, as in FlashAttention
(arXiv 2205.14135, Algorithm 4).

Shapes: B batch, N tokens, K heads, D features of a head; I images and L features of a block.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from vit_jax.models.precision import precision_of

Array = jax.Array

SAVED_NAME = 'fused_attention'
_LANES = 128  # of a vector register
BLOCK_IMAGES = 8  # of a block: the rows of a register
# Up to so many (N, N) a block, the loop over them is unrolled: the compiler overlaps them, but
# takes longer.
_UNROLLED = 16
_UNROLLED_TOKENS = 256


def supports(
  query: Array, mesh: Mesh | None, batch_axes: Sequence[str], vector_memory: int
) -> bool:
  """Whether the kernels for `query`, (B, N, K, D), fit into so many bytes of vector memory.

  A batch that the axes do not divide, such as the one image of an initialization, is not supported.
  The backward pass needs its eight inputs and outputs, twice, as they are moved, their transposes,
  and four arrays (N, N).
  """
  batch, tokens, heads, head_dim = query.shape
  if mesh is not None and batch % math.prod(mesh.shape[axis] for axis in batch_axes):
    return False
  heads = _heads_of_block(heads // (mesh.shape['tensor'] if mesh else 1), head_dim)
  rows, columns, lanes = (
    math.ceil(size / unit) * unit
    for size, unit in ((tokens, 8), (tokens, _LANES), (heads * head_dim, _LANES))
  )
  arrays = 8 * 3 * rows * BLOCK_IMAGES * lanes * query.dtype.itemsize
  return arrays + 4 * 4 * rows * columns <= vector_memory


def is_unrolled(images: int, heads: int, tokens: int) -> bool:
  """Whether the kernel has the instructions for all images and heads of a block, without a loop."""
  return images * heads <= _UNROLLED and tokens <= _UNROLLED_TOKENS


def fused_attention(
  query: Array,
  key: Array,
  value: Array,
  mesh: Mesh | None = None,
  batch_axes: Sequence[str] = (),
  vector_memory: int | None = None,
  interpret: bool = False,
) -> Array:
  """softmax(query key^T / sqrt(D)) value: (B, N, K, D) three times -> (B, N, K, D).

  Args:
    query, key, value: of one dtype, bfloat16 or float32.
    mesh: the batch is sharded over its `batch_axes`, and the heads over its axis tensor.
    batch_axes: names.
    vector_memory: bytes that the kernel may use; None: the compiler's default.
    interpret: run the kernel on any device, slowly, to test it.
  """
  batch, tokens, heads, head_dim = query.shape

  def attend(query: Array, key: Array, value: Array) -> Array:
    return _token_major_attention(query, key, value, head_dim, (vector_memory, interpret))

  if mesh is not None:
    spec = P(None, tuple(batch_axes), 'tensor')
    attend = jax.shard_map(attend, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
  # Reshaped outside of `shard_map`, so that XLA sees that the projections' reshapes cancel.
  flat = (x.reshape(batch, tokens, heads * head_dim) for x in (query, key, value))
  output = attend(*(jnp.swapaxes(x, 0, 1) for x in flat))
  return jnp.swapaxes(output, 0, 1).reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _token_major_attention(
  query: Array, key: Array, value: Array, head_dim: int, options: tuple[int | None, bool]
) -> Array:
  """Attention on (N, B, K D)."""
  return _forward(query, key, value, head_dim, options)[0]


def _forward(
  query: Array, key: Array, value: Array, head_dim: int, options: tuple[int | None, bool]
) -> tuple[Array, tuple[Array, ...]]:
  call, block, sums_block, sums = _layout(query, head_dim, options)
  output, log_sums = call(
    functools.partial(_forward_kernel, head_dim=head_dim),
    in_specs=[block] * 3,
    out_specs=[block, sums_block],
    out_shape=[jax.ShapeDtypeStruct(query.shape, query.dtype), sums],
    scratch_shapes=[_transposed(block, query.dtype)] * 4,
  )(query, key, value)
  # By these names, rematerialization keeps what only the kernel can recompute.
  output, log_sums = (checkpoint_name(x, SAVED_NAME) for x in (output, log_sums))
  return output, (query, key, value, output, log_sums)


def _backward(
  head_dim: int, options: tuple[int | None, bool], residuals: tuple[Array, ...], grad: Array
) -> tuple[Array, ...]:
  query, key, value, output, log_sums = residuals
  call, block, sums_block, _ = _layout(query, head_dim, options)
  return call(
    functools.partial(_backward_kernel, head_dim=head_dim),
    in_specs=[*[block] * 5, sums_block],
    out_specs=[block] * 3,
    out_shape=[jax.ShapeDtypeStruct(query.shape, query.dtype)] * 3,
    scratch_shapes=[_transposed(block, query.dtype)] * 8,
  )(query, key, value, output, grad, log_sums)


_token_major_attention.defvjp(_forward, _backward)


def _layout(
  query: Array, head_dim: int, options: tuple[int | None, bool]
) -> tuple[Any, pl.BlockSpec, pl.BlockSpec, jax.ShapeDtypeStruct]:
  """`pallas_call` by images and heads; blocks of (N, B, K D) and of the log sums (B, 1, K, N)."""
  vector_memory, interpret = options
  tokens, batch, width = query.shape
  heads, images = _heads_of_block(width // head_dim, head_dim), min(BLOCK_IMAGES, batch)
  groups, lanes = width // (heads * head_dim), heads * head_dim
  call = functools.partial(
    pl.pallas_call,
    grid=(math.ceil(batch / images), groups),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel'), vmem_limit_bytes=vector_memory
    ),
    interpret=interpret,
  )
  block = pl.BlockSpec((tokens, images, lanes), lambda image, group: (0, image, group))
  sums_block = pl.BlockSpec((images, 1, heads, tokens), lambda image, group: (image, group, 0, 0))
  sums = jax.ShapeDtypeStruct((batch, groups, heads, tokens), jnp.float32)
  return call, block, sums_block, sums


def _transposed(block: pl.BlockSpec, dtype: Any) -> Any:
  """Scratch for (N, I, L) as (I, N, L)."""
  shape: Any = block.block_shape
  return pltpu.VMEM((shape[1], shape[0], shape[2]), dtype)


def _heads_of_block(num_heads: int, head_dim: int) -> int:
  """The smallest divisor of `num_heads` whose features fill whole registers; else all."""
  divisors = (n for n in range(1, num_heads + 1) if num_heads % n == 0)
  return next((n for n in divisors if n * head_dim % _LANES == 0), num_heads)


def _for_each_head(
  kernel: Callable[[Any, int], None], inputs: Sequence[Any], outputs: Sequence[Any], head_dim: int
) -> None:
  """Calls kernel(image, head) for all of a block, on its inputs' transposes.

  Args:
    kernel: reads and writes the scratch.
    inputs, outputs: pairs of references: (N, I, L), and scratch (I, N, L).
    head_dim: features of a head.
  """
  for source, transposed in inputs:
    transposed[...] = jnp.swapaxes(source[...], 0, 1)
  tokens, images, lanes = inputs[0][0].shape
  heads = lanes // head_dim

  def heads_of_image(image: Any, unused: Any) -> None:
    for head in range(heads):
      kernel(image, head)

  unroll = is_unrolled(images, heads, tokens)
  jax.lax.fori_loop(0, images, heads_of_image, None, unroll=unroll)
  for target, transposed in outputs:
    target[...] = jnp.swapaxes(transposed[...], 0, 1)


def _forward_kernel(
  query_ref: Any,
  key_ref: Any,
  value_ref: Any,
  output_ref: Any,
  sums_ref: Any,
  *scratch: Any,
  head_dim: int,
) -> None:
  """Some images and heads: (N, I, L) three times -> the same, and (I, 1, heads, N)."""
  queries, keys, values, outputs = scratch

  def attend(image: Any, head: int) -> None:
    part = image, slice(None), slice(head * head_dim, (head + 1) * head_dim)
    query, key, value = queries[part], keys[part], values[part]
    logits = _product(key, query, 1, 1) * head_dim**-0.5  # (keys, queries)
    largest = logits.max(axis=0, keepdims=True)
    weights = jnp.exp(logits - largest)
    total = weights.sum(axis=0, keepdims=True)  # (1, queries)
    output = _product(value, weights.astype(value.dtype), 0, 0) / total  # (D, queries)
    outputs[part] = output.T.astype(outputs.dtype)
    sums_ref[image, 0, head : head + 1, :] = largest + jnp.log(total)

  inputs = ((query_ref, queries), (key_ref, keys), (value_ref, values))
  _for_each_head(attend, inputs, ((output_ref, outputs),), head_dim)


def _backward_kernel(*refs: Any, head_dim: int) -> None:
  """Some images and heads: gradients of queries, keys and values from (N, I, L) and log sums."""
  inputs, (sums_ref, *outputs), scratch = refs[:5], refs[5:9], refs[9:]
  queries, keys, values, attended, grads, query_grads, key_grads, value_grads = scratch

  def attend(image: Any, head: int) -> None:
    part = image, slice(None), slice(head * head_dim, (head + 1) * head_dim)
    query, key, value, grad = queries[part], keys[part], values[part], grads[part]
    scale = head_dim**-0.5
    logits = _product(key, query, 1, 1) * scale  # (keys, queries), as all that follow
    weights = jnp.exp(logits - sums_ref[image, 0, head : head + 1, :])
    value_grad = _product(weights.astype(grad.dtype), grad, 1, 0)
    weights_grad = _product(value, grad, 1, 1)
    # The sum over keys of weights x weights_grad, from the N x D outputs.
    means = (grad.astype(jnp.float32) * attended[part].astype(jnp.float32)).T
    means = means.sum(axis=0, keepdims=True)  # (1, queries)
    logits_grad = (weights * (weights_grad - means) * scale).astype(query.dtype)
    value_grads[part] = value_grad.astype(value_grads.dtype)
    key_grads[part] = _product(logits_grad, query, 1, 0).astype(key_grads.dtype)
    query_grads[part] = _product(key, logits_grad, 0, 0).T.astype(query_grads.dtype)

  pairs = list(zip((*inputs, *outputs), scratch, strict=True))
  _for_each_head(attend, pairs[:5], pairs[5:], head_dim)


def _product(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
  """A matrix product over these axes; float32, exact for float32 operands."""
  return jax.lax.dot_general(
    a,
    b,
    (((a_axis,), (b_axis,)), ((), ())),
    precision=precision_of(a.dtype),
    preferred_element_type=jnp.float32,
  )
