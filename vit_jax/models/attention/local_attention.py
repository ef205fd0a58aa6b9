"""Stand-alone self-attention in place of a convolution (arXiv 1906.05909, Section 3).

A pixel attends to the k x k window around it. Positions of the window outside the image have no
part in the softmax. Where the convolution has a stride, average pooling follows the attention.
Unlike the paper's Equation 3, logits are scaled by 1 / sqrt(head dimension).

Parameters: 3 F_in F_out of the projections, whatever k, and k F_out of the relative positions.

Shapes: B batch, H W feature map, K heads, D features of a head, k window.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

LOCAL_WINDOW = 7  # of the paper


class LocalAttention(nn.Module):
  """Attention of each pixel to a window: (B, H, W, F) -> (B, H/stride, W/stride, features).

  Attributes:
    features: a multiple of 2 num_heads.
    window: k, odd.
  """

  features: int
  num_heads: int
  window: int = LOCAL_WINDOW
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    head_dim, window = self.features // self.num_heads, self.window

    def project(name: str) -> Array:  # -> (B, H, W, K, D)
      heads = (self.num_heads, head_dim)
      return nn.DenseGeneral(heads, use_bias=False, dtype=self.dtype, name=name)(x)

    def offsets(name: str) -> Array:  # embeddings of the offsets along one axis, (K, k, D/2)
      shape = (self.num_heads, window, head_dim // 2)
      return self.param(name, nn.initializers.normal(1.0), shape).astype(self.dtype)

    query = project('query') * head_dim**-0.5
    key, value = (_windows(project(name), window) for name in ('key', 'value'))
    logits = (query[:, :, :, None, None] * key).sum(-1)  # (B, H, W, k, k, K)
    # The embedding of an offset is that of its rows beside that of its columns.
    of_rows, of_columns = jnp.split(query, 2, axis=-1)
    logits += jnp.einsum('bhwnd,nkd->bhwkn', of_rows, offsets('rows'))[:, :, :, :, None]
    logits += jnp.einsum('bhwnd,nkd->bhwkn', of_columns, offsets('columns'))[:, :, :, None]
    inside = _inside(x.shape[1], window)[:, None, :, None] & _inside(x.shape[2], window)[:, None]
    logits = jnp.where(inside[..., None], logits.astype(jnp.float32), -jnp.inf)
    weights = jax.nn.softmax(logits, axis=(3, 4)).astype(self.dtype)
    x = (weights[..., None] * value).sum((3, 4))  # (B, H, W, K, D)
    x = x.reshape(*x.shape[:3], self.features)
    return average_pool(x, self.stride)


def average_pool(x: Array, stride: int) -> Array:
  """The means of blocks of stride x stride pixels, smaller ones at the lower and right border."""
  if stride == 1:
    return x
  size = (stride, stride)
  return nn.avg_pool(x, size, size, padding='SAME', count_include_pad=False)


def _windows(x: Array, window: int) -> Array:
  """(B, H, W, K, D) -> the window around each pixel, zeros outside: (B, H, W, k, k, K, D)."""
  height, width, pad = x.shape[1], x.shape[2], window // 2
  x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0), (0, 0)))
  x = jnp.stack([x[:, i : i + height] for i in range(window)], axis=3)  # (B, H, W + k - 1, k, …)
  return jnp.stack([x[:, :, i : i + width] for i in range(window)], axis=4)


def _inside(length: int, window: int) -> np.ndarray:
  """Whether each position of the window around each pixel of a line exists: (length, k) bool."""
  positions = np.arange(length)[:, None] + np.arange(window) - window // 2
  return (positions >= 0) & (positions < length)
