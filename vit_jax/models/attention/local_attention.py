"""Stand-alone self-attention in place of a convolution (arXiv 1906.05909, Section 3).

A pixel attends to the k x k window around it. Positions of the window outside the image have no
part in the softmax. Where the convolution has a stride, average pooling follows the attention.
Unlike the paper's Equation 3, logits are scaled by 1 / sqrt(head dimension).

Parameters: 3 F_in F_out of the projections, whatever k, and k F_out of the relative positions.

Matrix units like blocks: the map is cut into blocks, each of which computes the logits of all of
its pixels with all that any of them attends to (arXiv 2103.12731, Section 2.2); what is outside of
a pixel's own window is masked.

Shapes: B batch, H W feature map, K heads, D features of a head, k window.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

LOCAL_WINDOW = 7  # of the paper
_BLOCK = 8  # pixels; changes no result


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
    head_dim = self.features // self.num_heads
    height, width = x.shape[1:3]
    rows, columns = (_Blocks.of_line(length, self.window) for length in (height, width))

    def project(name: str) -> Array:  # -> (B, H, W, K, D)
      heads = (self.num_heads, head_dim)
      return nn.DenseGeneral(heads, use_bias=False, dtype=self.dtype, name=name)(x)

    def positions(name: str, blocks: _Blocks) -> Array:  # of the offsets, (K, i, a, D/2)
      shape = (self.num_heads, self.window, head_dim // 2)
      table = self.param(name, nn.initializers.normal(1.0), shape).astype(self.dtype)
      return table[:, np.clip(blocks.offsets, 0, self.window - 1)]

    # Indices: b image, n head; x y block; i j pixel in it; a c pixel that it attends to.
    query = columns.split(rows.split(project('query') * head_dim**-0.5, 1), 3)  # b x i y j n d
    key, value = (
      columns.split_padded(rows.split_padded(project(name), 1), 3) for name in ('key', 'value')
    )  # b x a y c n d
    logits = jnp.einsum('bxiyjnd,bxaycnd->bnxyijac', query, key)
    # The embedding of an offset is that of its rows beside that of its columns.
    of_rows, of_columns = jnp.split(query, 2, axis=-1)
    row_logits = jnp.einsum('bxiyjnd,niad->bnxyija', of_rows, positions('rows', rows))
    column_logits = jnp.einsum('bxiyjnd,njcd->bnxyijc', of_columns, positions('columns', columns))
    logits += row_logits[..., None] + column_logits[..., None, :]
    allowed = rows.allowed[:, None, :, None, :, None] & columns.allowed[:, None, :, None]
    logits = jnp.where(allowed, logits.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=(-2, -1)).astype(self.dtype)
    y = jnp.einsum('bnxyijac,bxaycnd->bxiyjnd', weights, value)
    y = y.reshape(x.shape[0], rows.padded_length, columns.padded_length, self.features)
    return average_pool(y[:, :height, :width], self.stride)


@dataclasses.dataclass(frozen=True)
class _Blocks:
  """How a line of pixels is cut into blocks."""

  length: int  # of the line
  window: int
  count: int
  size: int  # pixels of a block
  margin: int  # pixels before and after a block that it attends to; 0: there is no other block

  @classmethod
  def of_line(cls, length: int, window: int) -> '_Blocks':
    count = -(-length // _BLOCK)
    if count == 1:
      return cls(length, window, 1, length, 0)
    return cls(length, window, count, _BLOCK, window // 2)

  @property
  def padded_length(self) -> int:
    return self.count * self.size

  @property
  def offsets(self) -> np.ndarray:
    """From each pixel of a block to each that the block attends to, from the window's start."""
    attended = np.arange(self.size + 2 * self.margin) - self.margin
    return attended - np.arange(self.size)[:, None] + self.window // 2

  @property
  def allowed(self) -> np.ndarray:
    """Whether a pixel of a block attends to one: (count, size, size + 2 margin) bool."""
    in_window = (self.offsets >= 0) & (self.offsets < self.window)
    attended = np.arange(self.size + 2 * self.margin) - self.margin
    attended = attended + self.size * np.arange(self.count)[:, None]
    return in_window & ((attended >= 0) & (attended < self.length))[:, None]

  def split(self, x: Array, axis: int) -> Array:
    """Replaces an axis of the line's length by two: blocks, their pixels."""
    x = self._pad(x, axis, 0)
    return x.reshape(*x.shape[:axis], self.count, self.size, *x.shape[axis + 1 :])

  def split_padded(self, x: Array, axis: int) -> Array:
    """As `split`, with the pixels around each block."""
    x, width = self._pad(x, axis, self.margin), self.size + 2 * self.margin
    starts = range(0, self.padded_length, self.size)
    blocks = [jax.lax.slice_in_dim(x, start, start + width, axis=axis) for start in starts]
    return jnp.stack(blocks, axis=axis)

  def _pad(self, x: Array, axis: int, margin: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (margin, margin + self.padded_length - self.length)
    return jnp.pad(x, widths)


def average_pool(x: Array, stride: int) -> Array:
  """The means of blocks of stride x stride pixels, smaller ones at the lower and right border."""
  if stride == 1:
    return x
  size = (stride, stride)
  return nn.avg_pool(x, size, size, padding='SAME', count_include_pad=False)
