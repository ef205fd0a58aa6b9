"""The Vision Transformer (arXiv 2010.11929, Section 3.1) as linen modules.

Parameter names and shapes are the released ones, under the names current linen gives them.

Shapes: B batch, H W image, P patch size, N tokens, D width, K heads, M mlp_dim, C classes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models.head import classify
from vit_jax.models.resnet import hybrid_features, hybrid_stride

Array = jax.Array
DropWeights = Callable[[Array], Array]  # dropout of attention weights (B, K, N, L)


@dataclasses.dataclass(frozen=True)
class Numerics:
  """What changes the numbers but no parameter.

  Attributes:
    dtype: of the matrix products; softmax, LayerNorm statistics and the head stay float32.
    approximate_gelu: the tanh approximation, as the released JAX weights were trained with;
      PyTorch's are mostly trained with the exact GELU.
    layer_norm_epsilon: 1e-6 in the released JAX code and in timm, 1e-12 in Transformers.
  """

  dtype: Any = jnp.float32
  approximate_gelu: bool = True
  layer_norm_epsilon: float = 1e-6

  def layer_norm(self, name: str | None = None) -> nn.LayerNorm:
    """A LayerNorm of these numerics."""
    return nn.LayerNorm(epsilon=self.layer_norm_epsilon, dtype=self.dtype, name=name)


def dropout(
  x: Array, rate: float | Array, key: Array | None, broadcast_dims: Sequence[int] = ()
) -> Array:
  """Zeroes a share `rate` of `x` and scales the rest up; without a key nothing happens.

  The key is an argument so that blocks draw the same numbers however they are executed.
  """
  if key is None or (isinstance(rate, float) and rate == 0):
    return x
  shape = [1 if i in broadcast_dims else size for i, size in enumerate(x.shape)]
  keep = 1 - jnp.float32(rate)
  return jnp.where(jax.random.bernoulli(key, keep, shape), x / keep, 0).astype(x.dtype)


def _split(key: Array | None, parts: int) -> Sequence[Array | None]:
  return [None] * parts if key is None else jax.random.split(key, parts)


class MlpBlock(nn.Module):
  """Dense, GELU, dense: (B, N, D) -> (B, N, D)."""

  mlp_dim: int
  dropout_rate: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x: Array, key: Array | None = None) -> Array:
    width, keys = x.shape[-1], _split(key, 2)
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


def _einsum_attention(query: Array, keys: Array, value: Array, drop: DropWeights) -> Array:
  """The softmax in float32; heads before tokens, which is the faster order on a CPU."""
  query, keys, value = (jnp.swapaxes(x, 1, 2) for x in (query, keys, value))  # (B, K, N, D/K)
  logits = jnp.einsum('bknd,bkld->bknl', query * query.shape[-1] ** -0.5, keys)
  weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(value.dtype)  # (B, K, N, L)
  return jnp.einsum('bknl,bkld->bnkd', drop(weights), value)


def _xla_attention(query: Array, keys: Array, value: Array, drop: DropWeights) -> Array:
  """That of jax.nn, which has no dropout."""
  del drop
  return jax.nn.dot_product_attention(query, keys, value, implementation='xla')


# (B, N, K, D/K) queries, keys and values -> (B, N, K, D/K).
ATTENTION = {'einsum': _einsum_attention, 'xla': _xla_attention}


class MultiHeadDotProductAttention(nn.Module):
  """Attention of `queries` (B, N, D) to `inputs` (B, L, D) (Appendix A)."""

  num_heads: int
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  attention: str = 'einsum'

  @nn.compact
  def __call__(self, queries: Array, inputs: Array, key: Array | None = None) -> Array:
    width = queries.shape[-1]
    xavier = dict(dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())

    def project(x: Array, name: str) -> Array:  # -> (B, N, K, D/K)
      return nn.DenseGeneral((self.num_heads, width // self.num_heads), name=name, **xavier)(x)

    x = ATTENTION[self.attention](
      project(queries, 'query'),
      project(inputs, 'key'),
      project(inputs, 'value'),
      lambda weights: dropout(weights, self.dropout_rate, key),
    )
    return nn.DenseGeneral(width, axis=(-2, -1), name='out', **xavier)(x)


class EncoderBlock(nn.Module):
  """Pre-norm attention and MLP, each with a residual (Equations 2 and 3): (B, N, D) -> same.

  `relative_depth` is 0 for the first block and 1 for the last. With probability
  `relative_depth * stochastic_depth_rate` a branch is dropped for a whole example (arXiv
  1603.09382, Section 3).
  """

  mlp_dim: int
  num_heads: int
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  stochastic_depth_rate: float = 0.0
  numerics: Numerics = Numerics()
  attention: str = 'einsum'

  @nn.compact
  def __call__(
    self, x: Array, relative_depth: float | Array = 1.0, key: Array | None = None
  ) -> Array:
    keys = _split(key, 5)

    def drop_branch(branch: Array, key: Array | None) -> Array:
      rate = self.stochastic_depth_rate and self.stochastic_depth_rate * relative_depth
      return dropout(branch, rate, key, broadcast_dims=(1, 2))

    y = self.numerics.layer_norm()(x)
    y = MultiHeadDotProductAttention(
      self.num_heads, self.attention_dropout_rate, self.numerics.dtype, self.attention
    )(y, y, keys[0])
    y = dropout(y, self.dropout_rate, keys[1])
    x = x + drop_branch(y, keys[2])

    y = self.numerics.layer_norm()(x)
    y = MlpBlock(self.mlp_dim, self.dropout_rate, self.numerics)(y, keys[3])
    return x + drop_branch(y, keys[4])


# What the backward pass keeps of a block's forward pass (None: all of it); the rest is computed
# again.
REMAT = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # of the dense layers
  'full': jax.checkpoint_policies.nothing_saveable,
}


class PositionEmbedding(nn.Module):
  """Adds learned 1-D position embeddings (Section 3.1): (B, N, D) -> same."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (1, *x.shape[1:])
    embedding = self.param('pos_embedding', nn.initializers.normal(stddev=0.02), shape)
    return x + embedding.astype(x.dtype)


class Encoder(nn.Module):
  """Position embeddings, `depth` blocks and a last LayerNorm: (B, N, D) -> same."""

  depth: int
  block: dict[str, Any]  # the fields of all blocks
  dropout_rate: float
  numerics: Numerics
  remat: str
  scan_blocks: bool
  constrain: Callable[[Array], Array]

  @nn.compact
  def __call__(self, x: Array, key: Array | None = None) -> Array:
    first_key, block_key = _split(key, 2)
    x = PositionEmbedding(name='posembed_input')(x)
    x = self.constrain(dropout(x, self.dropout_rate, first_key))
    keys, depths = _split(block_key, self.depth), np.linspace(0, 1, self.depth, dtype=np.float32)
    if self.scan_blocks and not self.is_initializing():
      x = self._scan(x, depths, keys)
    else:
      block, policy = EncoderBlock, REMAT[self.remat]
      if policy is not None:
        block = nn.remat(EncoderBlock, policy=policy)
      for i in range(self.depth):
        x = block(**self.block, name=f'encoderblock_{i}')(x, depths[i], keys[i])
        x = self.constrain(x)
    return self.numerics.layer_norm('encoder_norm')(x)

  def _scan(self, x: Array, depths: np.ndarray, keys: Any) -> Array:
    """The blocks as one loop over their parameters, which are stacked here, not in the state."""
    block, policy = EncoderBlock(**self.block, parent=None), REMAT[self.remat]
    params = [self.variables['params'][f'encoderblock_{i}'] for i in range(self.depth)]

    def body(x: Array, layer: tuple[Any, Array, Array | None]) -> tuple[Array, None]:
      params, *arguments = layer
      return self.constrain(block.apply({'params': params}, x, *arguments)), None

    if policy is not None:
      body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    return jax.lax.scan(body, x, (stacked, depths, None if keys[0] is None else keys))[0]


class MAPHead(nn.Module):
  """Multihead attention pooling (arXiv 2106.04560, Section 3.3): (B, N, D) -> (B, D)."""

  mlp_dim: int
  num_heads: int
  numerics: Numerics

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (1, 1, x.shape[-1])
    probe = self.param('probe', nn.initializers.xavier_uniform(), shape).astype(self.numerics.dtype)
    probe = jnp.tile(probe, (x.shape[0], 1, 1))
    attention = MultiHeadDotProductAttention(self.num_heads, dtype=self.numerics.dtype)
    x = attention(probe, x)  # (B, 1, D)
    y = self.numerics.layer_norm()(x)
    x = x + MlpBlock(self.mlp_dim, numerics=self.numerics)(y)
    return x[:, 0]


class VisionTransformer(nn.Module):
  """Images (B, H, W, 3) float in [-1, 1] -> logits (B, C) float32.

  With `num_classes=0` the features before the head come out instead: (B, D), or
  (B, pre_logits) float32.

  Attributes:
    patch_size: P, the pixels of a token; it must divide H and W.
    width, depth, mlp_dim, num_heads: the size (Table 1 of the paper).
    num_classes: C; 0 leaves the head away.
    pool: 'token' (class token), 'gap' (global average pooling) or 'map' (attention pooling).
    pre_logits: width of the tanh layer before the head (Section 3.1); 0 leaves it away.
    dropout_rate, attention_dropout_rate, stochastic_depth_rate: in [0, 1), while training.
    head_bias_init: first value of the head's bias; about -log(C) suits sigmoid losses.
    resnet_width: features of the stem of a hybrid model's ResNet; 0: patches of pixels.
    resnet_blocks: units of each of its stages; none leaves only the stem (R+Ti/16).
    numerics: dtype, GELU and LayerNorm epsilon.
    attention: a key of ATTENTION; like the next two it changes memory and time, no number but
      by rounding.
    remat: a key of REMAT.
    scan_blocks: run the blocks as a loop that is compiled once.
    constrain: applied to the tokens at block boundaries; says how they are sharded.
  """

  patch_size: int
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_classes: int
  pool: str = 'token'
  pre_logits: int = 0
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  stochastic_depth_rate: float = 0.0
  head_bias_init: float = 0.0
  resnet_width: int = 0
  resnet_blocks: tuple[int, ...] = ()
  numerics: Numerics = Numerics()
  attention: str = 'einsum'
  remat: str = 'none'
  scan_blocks: bool = False
  constrain: Callable[[Array], Array] = lambda x: x

  @nn.compact
  def __call__(self, images: Array, *, deterministic: bool = True) -> Array:
    dtype, patch, x = self.numerics.dtype, self.patch_size, images
    if self.resnet_width:
      x = hybrid_features(x, self.resnet_width, self.resnet_blocks, dtype)
      patch //= hybrid_stride(self.resnet_blocks)
    x = nn.Conv(
      self.width, (patch, patch), (patch, patch), padding='VALID', dtype=dtype, name='embedding'
    )(x)  # (B, H/P, W/P, D)
    x = x.reshape(x.shape[0], x.shape[1] * x.shape[2], self.width)  # (B, N, D)
    if self.pool == 'token':
      token = self.param('cls', nn.initializers.zeros, (1, 1, self.width)).astype(x.dtype)
      x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)  # (B, N + 1, D)
    block = dict(
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      stochastic_depth_rate=self.stochastic_depth_rate,
      numerics=self.numerics,
      attention=self.attention,
    )
    is_random = self.dropout_rate or self.attention_dropout_rate or self.stochastic_depth_rate
    x = Encoder(
      self.depth,
      block,
      self.dropout_rate,
      self.numerics,
      self.remat,
      self.scan_blocks,
      self.constrain,
      name='Transformer',
    )(x, None if deterministic or not is_random else self.make_rng('dropout'))
    if self.pool == 'token':
      x = x[:, 0]
    elif self.pool == 'gap':
      x = x.mean(axis=1, dtype=jnp.float32)
    else:
      x = MAPHead(self.mlp_dim, self.num_heads, self.numerics, name='MAPHead_0')(x)
    x = x.astype(jnp.float32)  # (B, D)
    if self.pre_logits:
      x = nn.tanh(nn.Dense(self.pre_logits, name='pre_logits')(x))
    return classify(x, self.num_classes, self.head_bias_init)  # (B, C)
