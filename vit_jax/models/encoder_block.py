"""The block of a Transformer's encoder, and its parts (arXiv 2010.11929, Section 3.1, Appendix A).

Shapes: B batch, N tokens, D width, K heads, M mlp_dim.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.dense import Dense
from vit_jax.models.dot_product_attention import Attend, einsum_attention
from vit_jax.models.dropout import dropout, split_keys
from vit_jax.models.positions import Positions, enter_block, relative_logits
from vit_jax.models.rotary import Rotation

Array = jax.Array

GELUS: dict[str, Callable[[Array], Array]] = {
  'tanh': functools.partial(nn.gelu, approximate=True),
  'exact': functools.partial(nn.gelu, approximate=False),
  'quick': lambda x: x * nn.sigmoid(1.702 * x),  # of the original CLIP
}
QKV_BIASES = {  # the projections of an attention that have biases
  'all': ('query', 'key', 'value'),
  'query_value': ('query', 'value'),
  'none': (),
}
MLPS = ('gelu', 'swiglu', 'swiglu_norm')
NORMS = {'layer': nn.LayerNorm, 'rms': nn.RMSNorm}


@dataclasses.dataclass(frozen=True)
class Numerics:
  """Options of all layers; of them the parameters determine only `norm`.

  Attributes:
    dtype: of the matrix products; softmax, LayerNorm statistics and the head stay float32. Float32
      products have full precision (precision.py).
    gelu: a key of GELUS: tanh approximates it, as the released JAX weights do; most PyTorch
      weights were trained with the exact one.
    layer_norm_epsilon: 1e-6 in the released JAX code and in timm, 1e-12 in Transformers.
    norm: a key of NORMS: the normalizations of features are LayerNorm, or RMSNorm, which neither
      subtracts the mean nor has a bias (arXiv 1910.07467; AIMv2, arXiv 2411.14402).
  """

  dtype: Any = jnp.float32
  gelu: str = 'tanh'
  layer_norm_epsilon: float = 1e-6
  norm: str = 'layer'

  def layer_norm(self, name: str | None = None) -> nn.LayerNorm | nn.RMSNorm:
    """A LayerNorm, or an RMSNorm, with this epsilon and dtype."""
    return NORMS[self.norm](epsilon=self.layer_norm_epsilon, dtype=self.dtype, name=name)


class MlpBlock(nn.Module):
  """Dense, GELU, dense: (B, N, D) -> (B, N, D).

  A kind of MLPS: `swiglu` multiplies the hidden units by gates in place of the GELU (arXiv
  2002.05202), `swiglu_norm` also normalizes them (EVA-02, arXiv 2303.11331, Section 2.1).
  """

  mlp_dim: int
  dropout_rate: float = 0.0
  numerics: Numerics = Numerics()
  kind: str = 'gelu'
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Array, keys: Array | None = None) -> Array:
    width, (hidden_keys, output_keys) = x.shape[-1], split_keys(keys, 2)
    options = self.numerics.dtype, nn.initializers.normal(stddev=1e-6), self.use_bias
    y = Dense((width,), (self.mlp_dim,), *options)(x)  # (B, N, M)
    if self.kind == 'gelu':
      x = GELUS[self.numerics.gelu](y)
    else:
      gate = Dense((width,), (self.mlp_dim,), *options, name='gate')(x)
      x = nn.silu(gate) * y
      if self.kind == 'swiglu_norm':
        x = self.numerics.layer_norm()(x)
    x = dropout(x, self.dropout_rate, hidden_keys)
    x = Dense((self.mlp_dim,), (width,), *options)(x)  # (B, N, D)
    return dropout(x, self.dropout_rate, output_keys)


class LayerScale(nn.Module):
  """A learned factor of each feature of a branch (arXiv 2103.17239, Section 3)."""

  initial_value: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param('scale', nn.initializers.constant(self.initial_value), x.shape[-1:])
    return x * jnp.expand_dims(scale.astype(x.dtype), range(x.ndim - 1))


class MultiHeadDotProductAttention(nn.Module):
  """Attention of `queries` (B, N, D) to `inputs` (B, L, D): (B, N, D) (Appendix A).

  The values are those of `values` (B, L, D), or of `inputs`, as the keys are.
  With a table of relative embeddings (`PositionEmbedding`; then N = L) they are further keys,
  whose logits are added to those of the content (Appendix D.4). A rotation applies to queries and
  keys.
  """

  num_heads: int
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  attention: Attend = einsum_attention
  rotation: Rotation | None = None
  use_bias: bool = True
  qkv_bias: str = 'all'

  @nn.compact
  def __call__(
    self,
    queries: Array,
    inputs: Array,
    keys: Array | None = None,
    table: Array | None = None,
    values: Array | None = None,
  ) -> Array:
    width = queries.shape[-1]
    head_shape = self.num_heads, width // self.num_heads

    def project(x: Array, name: str) -> Array:  # -> (B, N, K, D/K)
      use_bias = self.use_bias and name in QKV_BIASES[self.qkv_bias]
      x = Dense((width,), head_shape, self.dtype, use_bias=use_bias, name=name)(x)
      return x.reshape(*x.shape[:2], *head_shape)

    query, key = project(queries, 'query'), project(inputs, 'key')
    if self.rotation is not None:
      query, key = self.rotation(query), self.rotation(key)
    is_dropped = keys is not None and self.dropout_rate > 0
    x = self.attention(
      query,
      key,
      project(inputs if values is None else values, 'value'),
      (lambda weights: dropout(weights, self.dropout_rate, keys)) if is_dropped else None,
      None if table is None else relative_logits(query * query.shape[-1] ** -0.5, table),
    )
    x = x.reshape(*x.shape[:2], width)
    return Dense(head_shape, (width,), self.dtype, use_bias=self.use_bias, name='out')(x)


class EncoderBlock(nn.Module):
  """Pre-norm attention and MLP, each with a residual (Equations 2 and 3): (B, N, D) -> same.

  Stochastic depth (arXiv 1603.09382, Section 3) drops a branch of an example with probability
  `relative_depth * stochastic_depth_rate`; `relative_depth` is 0 for the first block and 1 for
  the last. Where an example is several sequences, it drops the branch of all of them.

  The other fields are those of `VisionTransformer`; `bias` is its `block_bias`.
  """

  mlp_dim: int
  num_heads: int
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  stochastic_depth_rate: float = 0.0
  numerics: Numerics = Numerics()
  attention: Attend = einsum_attention
  positions: Positions = Positions()  # that are learned in each block, or shared by them
  rotation: Rotation | None = None
  layer_scale: float = 0.0
  mlp: str = 'gelu'
  bias: bool = True
  qkv_bias: str = 'all'

  @nn.compact
  def __call__(
    self,
    x: Array,
    relative_depth: float | Array = 1.0,
    keys: Array | None = None,
    shared: Array | None = None,
  ) -> Array:
    weight_keys, output_keys, branch_keys, mlp_keys, mlp_branch_keys = split_keys(keys, 5)
    depth_rate = self.stochastic_depth_rate and self.stochastic_depth_rate * relative_depth

    def finish(branch: Array, keys: Array | None) -> Array:
      if self.layer_scale:
        branch = LayerScale(self.layer_scale)(branch)
      return dropout(branch, depth_rate, keys, broadcast_dims=(1, 2))

    x, table = enter_block(self.positions, self.num_heads, x, shared)
    y = self.numerics.layer_norm()(x)
    y = MultiHeadDotProductAttention(
      self.num_heads,
      self.attention_dropout_rate,
      self.numerics.dtype,
      self.attention,
      self.rotation,
      self.bias,
      self.qkv_bias,
    )(y, y, weight_keys, table)
    y = dropout(y, self.dropout_rate, output_keys)
    x = x + finish(y, branch_keys)

    y = self.numerics.layer_norm()(x)
    y = MlpBlock(self.mlp_dim, self.dropout_rate, self.numerics, self.mlp, self.bias)(y, mlp_keys)
    return x + finish(y, mlp_branch_keys)
