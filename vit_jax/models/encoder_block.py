"""The block of a Transformer's encoder, and its parts (arXiv 2010.11929, Section 3.1, Appendix A).

Shapes: B batch, N tokens, D width, K heads, M mlp_dim.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.dot_product_attention import Attend, einsum_attention
from vit_jax.models.positions import Positions, enter_block, relative_logits

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Numerics:
  """Options that change the outputs but not the parameters.

  Attributes:
    dtype: of the matrix products; softmax, LayerNorm statistics and the head stay float32.
    approximate_gelu: use the tanh approximation, as the released JAX weights do; most PyTorch
      weights were trained with the exact GELU.
    layer_norm_epsilon: 1e-6 in the released JAX code and in timm, 1e-12 in Transformers.
  """

  dtype: Any = jnp.float32
  approximate_gelu: bool = True
  layer_norm_epsilon: float = 1e-6

  def layer_norm(self, name: str | None = None) -> nn.LayerNorm:
    """A LayerNorm with this epsilon and dtype."""
    return nn.LayerNorm(epsilon=self.layer_norm_epsilon, dtype=self.dtype, name=name)


def dropout(
  x: Array, rate: float | Array, key: Array | None, broadcast_dims: Sequence[int] = ()
) -> Array:
  """Zeroes a share `rate` of `x` and scales up the rest; without a key returns `x`.

  The key is an argument, so that the draws do not depend on how blocks are executed.
  """
  if key is None or (isinstance(rate, float) and rate == 0):
    return x
  shape = [1 if i in broadcast_dims else size for i, size in enumerate(x.shape)]
  keep = 1 - jnp.float32(rate)
  return jnp.where(jax.random.bernoulli(key, keep, shape), x / keep, 0).astype(x.dtype)


def split_key(key: Array | None, count: int) -> Array | list[None]:
  return [None] * count if key is None else jax.random.split(key, count)


class MlpBlock(nn.Module):
  """Dense, GELU, dense: (B, N, D) -> (B, N, D)."""

  mlp_dim: int
  dropout_rate: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x: Array, key: Array | None = None) -> Array:
    width, keys = x.shape[-1], split_key(key, 2)
    dense = dict(
      dtype=self.numerics.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(stddev=1e-6),
    )
    x = nn.Dense(self.mlp_dim, **dense)(x)  # (B, N, M)
    x = nn.gelu(x, approximate=self.numerics.approximate_gelu)
    x = dropout(x, self.dropout_rate, keys[0])
    x = nn.Dense(width, **dense)(x)  # (B, N, D)
    return dropout(x, self.dropout_rate, keys[1])


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
  """x + bias, (…, D) and (D,); the gradient of the bias is a matrix product, not a reduction.

  By the estimates of the TPU compiler the product takes a fortieth of the cycles.
  """
  return x + bias


def _bias_gradients(unused: None, grad: Array) -> tuple[Array, Array]:
  # The barrier hides the ones from XLA, which would make the product a reduction.
  ones = jax.lax.optimization_barrier(jnp.ones(grad.shape[:-1], grad.dtype))
  axes = tuple(range(ones.ndim))
  contraction = ((axes, axes), ((), ()))
  bias_grad = jax.lax.dot_general(ones, grad, contraction, preferred_element_type=jnp.float32)
  return grad, bias_grad.astype(grad.dtype)


add_bias.defvjp(lambda x, bias: (x + bias, None), _bias_gradients)


class HeadsDense(nn.Module):
  """A dense layer to heads or from them, whose features stay flat: (B, N, D) -> (B, N, K D/K).

  Its parameters are those of an `nn.DenseGeneral` from `inputs` to `outputs`, but no array has a
  last axis of D/K, which a TPU pads to 128.

  Attributes:
    inputs: (D,), or (K, D/K).
    outputs: (K, D/K), or (D,).
  """

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    flat_shape = math.prod(self.inputs), math.prod(self.outputs)

    def init_kernel(key: Array) -> Array:
      kernel = nn.initializers.xavier_uniform()(key, flat_shape)
      return kernel.reshape(*self.inputs, *self.outputs)

    kernel = self.param('kernel', init_kernel)
    bias = self.param('bias', nn.initializers.zeros_init(), self.outputs)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    return add_bias(x @ kernel.reshape(flat_shape), bias.reshape(-1))


class MultiHeadDotProductAttention(nn.Module):
  """Attention of `queries` (B, N, D) to `inputs` (B, L, D): (B, N, D) (Appendix A).

  The values are those of `values` (B, L, D), or of `inputs`, as the keys are.
  With a table of relative embeddings (`PositionEmbedding`; then N = L) they are further keys,
  whose logits are added to those of the content (Appendix D.4).
  """

  num_heads: int
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  attention: Attend = einsum_attention

  @nn.compact
  def __call__(
    self,
    queries: Array,
    inputs: Array,
    key: Array | None = None,
    table: Array | None = None,
    values: Array | None = None,
  ) -> Array:
    width = queries.shape[-1]
    head_shape = self.num_heads, width // self.num_heads

    def project(x: Array, name: str) -> Array:  # -> (B, N, K, D/K)
      x = HeadsDense((width,), head_shape, self.dtype, name=name)(x)
      return x.reshape(*x.shape[:2], *head_shape)

    query = project(queries, 'query')
    is_dropped = key is not None and self.dropout_rate > 0
    x = self.attention(
      query,
      project(inputs, 'key'),
      project(inputs if values is None else values, 'value'),
      (lambda weights: dropout(weights, self.dropout_rate, key)) if is_dropped else None,
      None if table is None else relative_logits(query * query.shape[-1] ** -0.5, table),
    )
    x = x.reshape(*x.shape[:2], width)
    return HeadsDense(head_shape, (width,), self.dtype, name='out')(x)


class EncoderBlock(nn.Module):
  """Pre-norm attention and MLP, each with a residual (Equations 2 and 3): (B, N, D) -> same.

  Stochastic depth (arXiv 1603.09382, Section 3) drops a branch of an example with probability
  `relative_depth * stochastic_depth_rate`; `relative_depth` is 0 for the first block and 1 for
  the last. Where an example is several sequences (B is a multiple of `sequences`), it drops the
  branch of all of them.
  """

  mlp_dim: int
  num_heads: int
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  stochastic_depth_rate: float = 0.0
  numerics: Numerics = Numerics()
  attention: Attend = einsum_attention
  positions: Positions = Positions()  # that are learned in each block, or shared by them
  sequences: int = 1

  @nn.compact
  def __call__(
    self,
    x: Array,
    relative_depth: float | Array = 1.0,
    key: Array | None = None,
    shared: Array | None = None,
  ) -> Array:
    keys = split_key(key, 5)

    def drop_branch(branch: Array, key: Array | None) -> Array:
      if key is None:
        return branch
      rate = self.stochastic_depth_rate and self.stochastic_depth_rate * relative_depth
      num_examples = branch.shape[0] // self.sequences
      examples = branch.reshape(num_examples, self.sequences * branch.shape[1], branch.shape[2])
      return dropout(examples, rate, key, broadcast_dims=(1, 2)).reshape(branch.shape)

    x, table = enter_block(self.positions, self.num_heads, x, shared)
    y = self.numerics.layer_norm()(x)
    y = MultiHeadDotProductAttention(
      self.num_heads, self.attention_dropout_rate, self.numerics.dtype, self.attention
    )(y, y, keys[0], table)
    y = dropout(y, self.dropout_rate, keys[1])
    x = x + drop_branch(y, keys[2])

    y = self.numerics.layer_norm()(x)
    y = MlpBlock(self.mlp_dim, self.dropout_rate, self.numerics)(y, keys[3])
    return x + drop_branch(y, keys[4])
