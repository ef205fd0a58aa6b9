"""The Vision Transformer (arXiv 2010.11929, Section 3.1) as linen modules.

Parameter names and shapes are the released ones, under the names current linen gives them.

Shapes: B batch, H W image, P patch size, N tokens, D width, K heads, M mlp_dim, C classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.head import classify
from vit_jax.models.resnet import hybrid_features, hybrid_stride

Array = jax.Array


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


class MlpBlock(nn.Module):
  """Dense, GELU, dense: (B, N, D) -> (B, N, D)."""

  mlp_dim: int
  dropout_rate: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x: Array, *, deterministic: bool) -> Array:
    width = x.shape[-1]
    dense = dict(
        dtype=self.numerics.dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=nn.initializers.normal(stddev=1e-6),
    )
    x = nn.Dense(self.mlp_dim, **dense)(x)  # (B, N, M)
    x = nn.gelu(x, approximate=self.numerics.approximate_gelu)
    x = nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)
    x = nn.Dense(width, **dense)(x)  # (B, N, D)
    return nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)


class MultiHeadDotProductAttention(nn.Module):
  """Attention of `queries` (B, N, D) to `keys` (B, L, D) (Appendix A); the softmax is float32.

  Heads come before tokens in the products, which is the faster order on a CPU.
  """

  num_heads: int
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, queries: Array, keys: Array, *, deterministic: bool) -> Array:
    width = queries.shape[-1]
    head_dim = width // self.num_heads
    xavier = dict(dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())

    def project(x: Array, name: str) -> Array:  # -> (B, K, N, D/K)
      x = nn.DenseGeneral((self.num_heads, head_dim), name=name, **xavier)(x)
      return jnp.swapaxes(x, 1, 2)

    query, key, value = project(queries, 'query'), project(keys, 'key'), project(keys, 'value')
    logits = jnp.einsum('bknd,bkld->bknl', query * head_dim**-0.5, key)
    weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(self.dtype)  # (B, K, N, L)
    weights = nn.Dropout(self.dropout_rate)(weights, deterministic=deterministic)
    x = jnp.einsum('bknl,bkld->bnkd', weights, value)  # (B, N, K, D/K)
    return nn.DenseGeneral(width, axis=(-2, -1), name='out', **xavier)(x)


class EncoderBlock(nn.Module):
  """Pre-norm attention and MLP, each with a residual (Equations 2 and 3): (B, N, D) -> same."""

  mlp_dim: int
  num_heads: int
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  stochastic_depth_rate: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x: Array, deterministic: bool) -> Array:
    def drop_branch(branch: Array) -> Array:  # whole examples at a time (arXiv 1603.09382)
      drop = nn.Dropout(self.stochastic_depth_rate, broadcast_dims=(1, 2))
      return drop(branch, deterministic=deterministic)

    y = self.numerics.layer_norm()(x)
    y = MultiHeadDotProductAttention(
        self.num_heads, self.attention_dropout_rate, self.numerics.dtype
    )(y, y, deterministic=deterministic)
    y = nn.Dropout(self.dropout_rate)(y, deterministic=deterministic)
    x = x + drop_branch(y)

    y = self.numerics.layer_norm()(x)
    y = MlpBlock(self.mlp_dim, self.dropout_rate, self.numerics)(y, deterministic=deterministic)
    return x + drop_branch(y)


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
  mlp_dim: int
  num_heads: int
  dropout_rate: float
  attention_dropout_rate: float
  stochastic_depth_rate: float
  numerics: Numerics
  remat: str
  constrain: Callable[[Array], Array]

  @nn.compact
  def __call__(self, x: Array, *, deterministic: bool) -> Array:
    block, policy = EncoderBlock, REMAT[self.remat]
    if policy is not None:
      block = nn.remat(EncoderBlock, static_argnums=(2,), policy=policy)
    x = PositionEmbedding(name='posembed_input')(x)
    x = nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)
    x = self.constrain(x)
    for i in range(self.depth):
      x = block(
          self.mlp_dim,
          self.num_heads,
          self.dropout_rate,
          self.attention_dropout_rate,
          # Linear in depth, none in the first block, all of it in the last.
          self.stochastic_depth_rate * i / max(self.depth - 1, 1),
          self.numerics,
          name=f'encoderblock_{i}',
      )(x, deterministic)
      x = self.constrain(x)
    return self.numerics.layer_norm('encoder_norm')(x)


class MAPHead(nn.Module):
  """Multihead attention pooling (arXiv 2106.04560, Section 3.3): (B, N, D) -> (B, D)."""

  mlp_dim: int
  num_heads: int
  numerics: Numerics

  @nn.compact
  def __call__(self, x: Array, *, deterministic: bool) -> Array:
    shape = (1, 1, x.shape[-1])
    probe = self.param('probe', nn.initializers.xavier_uniform(), shape).astype(self.numerics.dtype)
    probe = jnp.tile(probe, (x.shape[0], 1, 1))
    attention = MultiHeadDotProductAttention(self.num_heads, dtype=self.numerics.dtype)
    x = attention(probe, x, deterministic=deterministic)  # (B, 1, D)
    y = self.numerics.layer_norm()(x)
    x = x + MlpBlock(self.mlp_dim, numerics=self.numerics)(y, deterministic=deterministic)
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
    remat: a key of REMAT; changes memory and time, no number but by rounding.
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
  remat: str = 'none'
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
    x = Encoder(
        self.depth,
        self.mlp_dim,
        self.num_heads,
        self.dropout_rate,
        self.attention_dropout_rate,
        self.stochastic_depth_rate,
        self.numerics,
        self.remat,
        self.constrain,
        name='Transformer',
    )(x, deterministic=deterministic)
    if self.pool == 'token':
      x = x[:, 0]
    elif self.pool == 'gap':
      x = x.mean(axis=1, dtype=jnp.float32)
    else:
      x = MAPHead(self.mlp_dim, self.num_heads, self.numerics, name='MAPHead_0')(
          x, deterministic=deterministic
      )
    x = x.astype(jnp.float32)  # (B, D)
    if self.pre_logits:
      x = nn.tanh(nn.Dense(self.pre_logits, name='pre_logits')(x))
    return classify(x, self.num_classes, self.head_bias_init)  # (B, C)
