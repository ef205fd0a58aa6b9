"""Position-sensitive axial attention in place of a convolution (arXiv 2003.07853, Section 3.2).

One layer attends along one axis: a pixel to those of its column, or of its row, at most half a
window away. Two of them, along the height and then the width, replace a 3x3 convolution; this is
the ResNet of arXiv 2010.11929, Appendix D.6. Queries, keys and values have relative positions,
which the heads share (Equation 4); queries and keys have half as many features as values.
Axial-DeepLab normalizes projections, logits and results by batches; here the products of queries
and keys are scaled by 1 / sqrt(their features) instead.

Parameters of one layer: 2 F_in F of the projections, 2 w F / K of the relative positions.

Shapes: B batch, H W feature map, L the length of a line, K heads, D features of a head, w window.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

AXIAL_WINDOW = 111  # the paper's 2 * 56 - 1: all of a line in the first stage at 224 pixels


class AxialAttention(nn.Module):
  """Attention along one axis: (B, H, W, F) -> (B, H, W, features).

  Attributes:
    axis: 1: each column by itself; 2: each row.
    features: a multiple of 2 num_heads.
    window: w, odd; from 2 L - 1 a pixel attends to all of its line.
  """

  axis: int
  features: int
  num_heads: int
  window: int = AXIAL_WINDOW
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if self.axis == 1:
      x = jnp.swapaxes(x, 1, 2)
    head_dim = self.features // self.num_heads

    def project(name: str, dim: int) -> Array:  # (B, lines, L, F) -> (B, lines, L, K, dim)
      layer = nn.DenseGeneral((self.num_heads, dim), use_bias=False, dtype=self.dtype, name=name)
      return layer(x)

    length = x.shape[2]
    offset = np.arange(length) - np.arange(length)[:, None] + self.window // 2  # from i to j
    inside = (offset >= 0) & (offset < self.window)
    offset = np.clip(offset, 0, self.window - 1)

    def positions(name: str, dim: int) -> Array:  # of the offset from i to j: (L, L, dim)
      shape = (self.window, dim)
      table = self.param(name, nn.initializers.normal(head_dim**-0.5), shape)
      return table.astype(self.dtype)[offset]

    query, key = project('query', head_dim // 2), project('key', head_dim // 2)
    value = project('value', head_dim)
    logits = jnp.einsum('blind,bljnd->blnij', query * (head_dim // 2) ** -0.5, key)
    logits += jnp.einsum('blind,ijd->blnij', query, positions('query_positions', head_dim // 2))
    logits += jnp.einsum('bljnd,ijd->blnij', key, positions('key_positions', head_dim // 2))
    logits = jnp.where(inside, logits.astype(jnp.float32), -jnp.inf)
    weights = jax.nn.softmax(logits).astype(self.dtype)  # (B, lines, K, L, L)
    y = jnp.einsum('blnij,bljnd->blind', weights, value)
    y += jnp.einsum('blnij,ijd->blind', weights, positions('value_positions', head_dim))
    y = y.reshape(*x.shape[:3], self.features)
    return jnp.swapaxes(y, 1, 2) if self.axis == 1 else y
