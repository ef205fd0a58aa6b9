"""The Vision Transformer (arXiv 2010.11929, Section 3.1) as linen modules.

Parameters have the released shapes, and the names that current linen gives the released tree.

Shapes: B batch, H W image, P patch size, N tokens, D width, K heads, M mlp_dim, C classes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models.head import classify
from vit_jax.models.resnet import hybrid_features, hybrid_stride, identity

Array = jax.Array
DropWeights = Callable[[Array], Array]  # dropout of attention weights (B, K, N, L)


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


def _split_key(key: Array | None, count: int) -> Array | list[None]:
  return [None] * count if key is None else jax.random.split(key, count)


class MlpBlock(nn.Module):
  """Dense, GELU, dense: (B, N, D) -> (B, N, D)."""

  mlp_dim: int
  dropout_rate: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x: Array, key: Array | None = None) -> Array:
    width, keys = x.shape[-1], _split_key(key, 2)
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


def _einsum_attention(query: Array, key: Array, value: Array, drop: DropWeights) -> Array:
  """Softmax in float32; heads before tokens, which is the faster order on a CPU."""
  query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))  # (B, K, N, D/K)
  logits = jnp.einsum('bknd,bkld->bknl', query * query.shape[-1] ** -0.5, key)
  weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(value.dtype)  # (B, K, N, L)
  return jnp.einsum('bknl,bkld->bnkd', drop(weights), value)


def _xla_attention(query: Array, key: Array, value: Array, drop: DropWeights) -> Array:
  """The attention of jax.nn, which has no dropout."""
  del drop
  return jax.nn.dot_product_attention(query, key, value, implementation='xla')


# Query, key, value (B, N, K, D/K) -> (B, N, K, D/K).
ATTENTION = {'einsum': _einsum_attention, 'xla': _xla_attention}


class MultiHeadDotProductAttention(nn.Module):
  """Attention of `queries` (B, N, D) to `inputs` (B, L, D): (B, N, D) (Appendix A)."""

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

  Stochastic depth (arXiv 1603.09382, Section 3) drops a branch of an example with probability
  `relative_depth * stochastic_depth_rate`; `relative_depth` is 0 for the first block and 1 for
  the last.
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
    keys = _split_key(key, 5)

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


# The results of a block's forward pass that are saved for the backward pass (None: all); the others
# are recomputed.
REMAT = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # the dense layers
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
  """Position embeddings, `depth` blocks and a final LayerNorm: (B, N, D) -> same."""

  depth: int
  block_fields: dict[str, Any]  # of every `EncoderBlock`
  dropout_rate: float
  numerics: Numerics
  remat: str
  scan_blocks: bool
  constrain: Callable[[Array], Array]

  @nn.compact
  def __call__(self, x: Array, key: Array | None = None) -> Array:
    embedding_key, block_key = _split_key(key, 2)
    x = PositionEmbedding(name='posembed_input')(x)
    x = self.constrain(dropout(x, self.dropout_rate, embedding_key))
    keys = _split_key(block_key, self.depth)
    depths = np.linspace(0, 1, self.depth, dtype=np.float32)  # relative
    if self.scan_blocks and not self.is_initializing():
      x = self._scan(x, depths, keys)
    else:
      block, policy = EncoderBlock, REMAT[self.remat]
      if policy is not None:
        block = nn.remat(EncoderBlock, policy=policy)
      for i in range(self.depth):
        x = block(**self.block_fields, name=f'encoderblock_{i}')(x, depths[i], keys[i])
        x = self.constrain(x)
    return self.numerics.layer_norm('encoder_norm')(x)

  def _scan(self, x: Array, depths: np.ndarray, keys: Array | list[None]) -> Array:
    """Runs the blocks as one loop; stacks their parameters here, not in the state."""
    block, policy = EncoderBlock(**self.block_fields, parent=None), REMAT[self.remat]
    params = [self.variables['params'][f'encoderblock_{i}'] for i in range(self.depth)]

    def body(x: Array, layer: tuple[Any, Any, Array | None]) -> tuple[Array, None]:
      params, *arguments = layer
      x = cast(Array, block.apply({'params': params}, x, *arguments))
      return self.constrain(x), None

    if policy is not None:
      body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    return jax.lax.scan(body, x, (stacked, depths, None if isinstance(keys, list) else keys))[0]


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

  Attributes:
    patch_size: P, the side of a patch in pixels; must divide H and W.
    width, depth, mlp_dim, num_heads: the size (Table 1 of the paper).
    num_classes: C; 0: no head, and the result is the features before it, (B, D) or
      (B, pre_logits) float32.
    pool: 'token' (class token), 'gap' (global average pooling) or 'map' (attention pooling).
    pre_logits: width of the tanh layer before the head (Section 3.1); 0: no layer.
    dropout_rate, attention_dropout_rate, stochastic_depth_rate: in [0, 1); for training.
    head_bias_init: initial value of the head's bias; about -log(C) suits sigmoid losses.
    resnet_width: features of the stem of a hybrid's ResNet; 0: patches of pixels.
    resnet_blocks: units of each ResNet stage; (): only the stem (R+Ti/16).
    numerics: dtype, GELU and LayerNorm epsilon.
    attention: a key of ATTENTION. Like remat and scan_blocks, it changes memory and time, and
      results only by rounding.
    remat: a key of REMAT.
    scan_blocks: run the blocks as a loop, which compiles one block instead of all.
    constrain: applied to the tokens (B, N, D) at block boundaries, to shard them.
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
  constrain: Callable[[Array], Array] = identity

  @nn.compact
  def __call__(self, images: Array, *, deterministic: bool = True) -> Array:
    x = self.embed_patches(images)  # (B, H/P, W/P, D)
    x = self.encode(x.reshape(x.shape[0], -1, self.width), deterministic)
    x = self.pool_tokens(x)  # (B, D)
    if self.pre_logits:
      x = nn.tanh(nn.Dense(self.pre_logits, name='pre_logits')(x))
    return classify(x, self.num_classes, self.head_bias_init)  # (B, C)

  # Parts of a compact method, which others can be made of.

  def embed_patches(self, images: Array) -> Array:
    """Images (B, H, W, 3) -> patch embeddings (B, H/P, W/P, D), of a hybrid's features."""
    dtype, patch, x = self.numerics.dtype, self.patch_size, images
    if self.resnet_width:
      x = hybrid_features(x, self.resnet_width, self.resnet_blocks, dtype)
      patch //= hybrid_stride(self.resnet_blocks)
    conv = nn.Conv(
      self.width, (patch, patch), (patch, patch), padding='VALID', dtype=dtype, name='embedding'
    )
    return conv(x)

  def encode(self, x: Array, deterministic: bool) -> Array:
    """Patch embeddings (B, N, D) -> encoded tokens (B, N, D), after the class token if any."""
    if self.pool == 'token':
      token = self.param('cls', nn.initializers.zeros, (1, 1, self.width)).astype(x.dtype)
      x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)  # (B, N + 1, D)
    block_fields = dict(
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      stochastic_depth_rate=self.stochastic_depth_rate,
      numerics=self.numerics,
      attention=self.attention,
    )
    is_random = self.dropout_rate or self.attention_dropout_rate or self.stochastic_depth_rate
    key = self.make_rng('dropout') if is_random and not deterministic else None
    execution = (self.remat, self.scan_blocks, self.constrain)
    return Encoder(
      self.depth, block_fields, self.dropout_rate, self.numerics, *execution, name='Transformer'
    )(x, key)

  def pool_tokens(self, x: Array) -> Array:
    """Encoded tokens (B, N, D) or (B, N + 1, D) -> one feature vector an image, (B, D) float32."""
    if self.pool == 'token':
      x = x[:, 0]
    elif self.pool == 'gap':
      x = x.mean(axis=1, dtype=jnp.float32)
    else:
      x = MAPHead(self.mlp_dim, self.num_heads, self.numerics, name='MAPHead_0')(x)
    return x.astype(jnp.float32)
