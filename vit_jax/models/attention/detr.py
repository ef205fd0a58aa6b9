"""DETR's encoder (arXiv 2005.12872, Section 3.2 and Appendix A.3) as a classifier.

The features of a ResNet, projected to the width of the encoder, are the tokens of a Transformer
encoder with normalization after the residuals. Fixed sine positions in two dimensions are added to
the queries and keys of every layer, not to the values. DETR decodes boxes from the encoder's
output; here its mean goes to a classification head, because detection is outside of this project.
The ResNet is that of the hybrids, with group normalization (DETR's has batch normalization).

Parameters of one layer: 4 (D^2 + D) of the attention, 2 D M + M + D of the MLP, 4 D of the norms.

Shapes: B batch, N = H' W' positions, D width, M mlp_dim, C classes.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models.dot_product_attention import Attend, einsum_attention
from vit_jax.models.dropout import dropout, example_keys, split_keys
from vit_jax.models.encoder_block import MultiHeadDotProductAttention
from vit_jax.models.head import classify
from vit_jax.models.precision import with_full_precision
from vit_jax.models.resnet import hybrid_features, identity

Array = jax.Array


def sine_positions(height: int, width: int, dim: int) -> np.ndarray:
  """The fixed encoding of a grid's positions: (height, width, dim) float32, dim a multiple of 4.

  The first half of the features encodes the row, the second the column, counted from 1 and scaled
  so that the last is 2 pi, as sines and cosines in turn of frequencies 10000^(-4i / dim).
  """
  frequencies = 10_000.0 ** (-4 * np.arange(dim // 4) / dim)

  def encode(length: int) -> np.ndarray:  # -> (length, dim / 2)
    angles = 2 * math.pi * np.arange(1, length + 1)[:, None] / length * frequencies
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, -1)

  rows, columns = encode(height)[:, None], encode(width)[None]
  size = (height, width, dim // 2)
  both = [np.broadcast_to(rows, size), np.broadcast_to(columns, size)]
  return np.concatenate(both, axis=-1).astype(np.float32)


class DetrMlp(nn.Module):
  """Dense, ReLU, dense: (B, N, D) -> (B, N, D)."""

  mlp_dim: int
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, keys: Array | None = None) -> Array:
    width = x.shape[-1]
    dense = dict(dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
    x = nn.relu(nn.Dense(self.mlp_dim, name='Dense_0', **dense)(x))  # (B, N, M)
    return nn.Dense(width, name='Dense_1', **dense)(dropout(x, self.dropout_rate, keys))


class DetrEncoderLayer(nn.Module):
  """Attention and MLP, each with a residual and then a LayerNorm: (B, N, D) -> same."""

  mlp_dim: int
  num_heads: int
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  attention: Attend = einsum_attention

  @nn.compact
  def __call__(self, x: Array, positions: Array, keys: Array | None = None) -> Array:
    weight_keys, output_keys, hidden_keys, mlp_keys = split_keys(keys, 4)
    attend = MultiHeadDotProductAttention(
      self.num_heads, self.attention_dropout_rate, self.dtype, self.attention
    )
    positioned = x + positions
    y = attend(positioned, positioned, weight_keys, values=x)
    y = dropout(y, self.dropout_rate, output_keys)
    x = nn.LayerNorm(1e-5, dtype=self.dtype, name='LayerNorm_0')(x + y)
    mlp = DetrMlp(self.mlp_dim, self.dropout_rate, self.dtype, name='MlpBlock_0')
    y = dropout(mlp(x, hidden_keys), self.dropout_rate, mlp_keys)
    return nn.LayerNorm(1e-5, dtype=self.dtype, name='LayerNorm_1')(x + y)


class DetrEncoder(nn.Module):
  """`depth` layers: tokens (B, N, D), positions (1, N, D) -> (B, N, D)."""

  depth: int
  layer_fields: dict[str, Any]  # of every `DetrEncoderLayer`
  constrain: Callable[[Array], Array] = identity

  @nn.compact
  def __call__(self, x: Array, positions: Array, keys: Array | None = None) -> Array:
    layer_keys = split_keys(keys, self.depth)
    for i in range(self.depth):
      layer = DetrEncoderLayer(**self.layer_fields, name=f'encoderblock_{i}')
      x = self.constrain(layer(x, positions, layer_keys[i]))
    return x


class DETR(nn.Module):
  """Images (B, H, W, 3) float in [-1, 1] -> logits (B, C) float32, any H and W.

  Attributes:
    width, depth, mlp_dim, num_heads: of the encoder; the width is a multiple of 4.
    num_classes: C; 0: no head, and the result is the (B, D) before it.
    resnet_width, resnet_blocks: features of the ResNet's stem, units of each stage.
    dropout_rate, attention_dropout_rate: in [0, 1); for training.
    head_bias_init: initial value of the head's bias.
    dtype: of the matrix products; softmax, normalization statistics and the head stay float32.
    attention: of `choose_attention`.
    constrain: applied to the tokens (B, N, D) before and after each layer, to shard them.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_classes: int
  resnet_width: int
  resnet_blocks: tuple[int, ...]
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  head_bias_init: float = 0.0
  dtype: Any = jnp.float32
  attention: Attend = einsum_attention
  constrain: Callable[[Array], Array] = identity

  @nn.compact
  @with_full_precision
  def __call__(
    self, images: Array, *, deterministic: bool = True, examples: Array | None = None
  ) -> Array:
    x = hybrid_features(images, self.resnet_width, self.resnet_blocks, self.dtype)
    x = nn.Conv(self.width, (1, 1), dtype=self.dtype, name='input_projection')(x)
    batch, height, width, _ = x.shape  # (B, H', W', D)
    positions = sine_positions(height, width, self.width).reshape(1, height * width, self.width)
    layer_fields = dict(
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      dtype=self.dtype,
      attention=self.attention,
    )
    is_random = (self.dropout_rate or self.attention_dropout_rate) and not deterministic
    keys = example_keys(self.make_rng('dropout'), examples, batch) if is_random else None
    x = self.constrain(x.reshape(batch, height * width, self.width))  # (B, N, D)
    encoder = DetrEncoder(self.depth, layer_fields, self.constrain, name='Transformer')
    x = encoder(x, jnp.asarray(positions, self.dtype), keys)
    x = x.mean(axis=1, dtype=jnp.float32)  # (B, D)
    return classify(x, self.num_classes, self.head_bias_init)  # (B, C)
