"""Attention weights small enough for a page: a coarser grid of patches, one byte for each weight.

Shapes: L layers (blocks), K heads, N tokens, h w grid of patches, T tokens of a coarser grid.
"""

import base64
import dataclasses
import math

import numpy as np

from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class CompactAttention:
  """The attention weights of an image.

  Attributes:
    levels: (L, K, T, T) uint8, each row in units of 1/255 of its largest weight.
    largest: (L, K, T) float32, these weights.
    num_prefix: tokens before those of the patches.
    grid: (rows, columns) of cells.
    factor: a cell is a square of factor x factor patches; smaller at the lower and right edges.
  """

  levels: np.ndarray
  largest: np.ndarray
  num_prefix: int
  grid: tuple[int, int]
  factor: int

  def as_base64(self) -> tuple[str, str]:
    """The levels, and the largest weights as little-endian float32."""
    parts = self.levels.tobytes(), self.largest.astype('<f4').tobytes()
    return base64.b64encode(parts[0]).decode(), base64.b64encode(parts[1]).decode()


def choose_factor(
  num_layers: int, num_heads: int, num_prefix: int, grid: tuple[int, int], max_bytes: int
) -> int:
  """The smallest factor with which `compact` needs at most `max_bytes` on a page.

  Raises:
    UserError: if no grid of at least two rows or columns is small enough.
  """
  for factor in range(1, max(grid)):
    tokens = num_prefix + math.prod(-(-side // factor) for side in grid)
    rows = num_layers * num_heads * tokens
    if sum(4 * -(-size // 3) for size in (rows * tokens, 4 * rows)) <= max_bytes:  # in base64
      return factor
  raise UserError(
    f'{max_bytes / 1e6:.3g} MB for each image are too few for the attention of {num_layers} blocks '
    f'with {num_heads} heads; name fewer images, choose --layers, or raise --max_mb.'
  )


def compact(
  weights: np.ndarray, num_prefix: int, grid: tuple[int, int], factor: int
) -> CompactAttention:
  """Adds the weights to the patches of a cell, averages those of its queries, rounds to a byte.

  Args:
    weights: (L, K, N, N), rows sum to 1, as do those of the cells before they are rounded.
    num_prefix: tokens before those of the patches; they remain.
    grid: (h, w).
    factor: patches along the side of a cell.
  """
  starts, counts, cells = _cells(num_prefix, grid, factor)
  order = starts[0]
  if factor > 1:
    weights = np.add.reduceat(weights[..., order], starts[1], axis=-1)
    weights = np.add.reduceat(weights[..., order, :], starts[1], axis=-2) / counts[:, None]
  largest = weights.max(axis=-1)
  levels = np.rint(weights / np.where(largest == 0, 1, largest)[..., None] * 255)
  return CompactAttention(
    levels.astype(np.uint8), largest.astype(np.float32), num_prefix, cells, factor
  )


def _cells(
  num_prefix: int, grid: tuple[int, int], factor: int
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, tuple[int, int]]:
  """((tokens in the order of cells, where each cell starts), tokens in each, grid of cells)."""
  rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  cells = -(-grid[0] // factor), -(-grid[1] // factor)
  cell = np.concatenate(
    [np.arange(num_prefix), num_prefix + rows // factor * cells[1] + columns // factor]
  )
  order = np.argsort(cell, kind='stable')
  _, starts, counts = np.unique(cell[order], return_index=True, return_counts=True)
  return (order, starts), counts, cells
