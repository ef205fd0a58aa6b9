"""Position embeddings of a file: the grid of patches that they are of, and resized to another one.

Shapes: N patches, D width, K heads.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts.released import POSITIONS

Grid = tuple[int, int]  # (rows, columns) of patches

_NAMES = ('pos_embedding', 'x_embedding', 'y_embedding', 'relative_embedding')


def is_position_table(name: str) -> bool:
  """Whether a tensor of that name is one of `PositionEmbedding`."""
  return name.rpartition('/')[2] in _NAMES


def _part(name: str, grid: Grid) -> Grid:
  """The part of the grid that a table is of: all, or one row or column."""
  rows, columns = grid
  if name.endswith('/x_embedding') or '/row/' in name:
    return 1, columns
  if name.endswith('/y_embedding') or '/column/' in name:
    return rows, 1
  return grid


def trained_grid(
  tensors: Mapping[str, Any],
  model: VisionTransformer,
  stored_size: tuple[int, int] | None,
  requested_size: tuple[int, int] | None,
  source: str,
) -> tuple[tuple[int, int] | None, Grid | None]:
  """The (image size, grid) of position embeddings; without any, (the known size, None).

  Args:
    tensors, model: {linen name: tensor}, and the model read off them.
    stored_size: the image size in pixels that is stored beside them; None: unknown.
    requested_size: tells the grid of embeddings whose number is not a square.
    source: of the tensors, for error messages.

  Raises:
    UserError: if the embeddings do not form a grid, or not that of `stored_size`.
  """
  counts = {
    _part(name, (2, 2)): _count(name, tensors[name].shape, model, source)
    for name in sorted(filter(is_position_table, tensors), reverse=True)
  }
  if not counts:
    return stored_size or requested_size, None
  if (2, 2) in counts:
    beginning = f'{source} has position embeddings'
    return grid_of_patches(counts[2, 2], model, stored_size, requested_size, beginning)
  if len(counts) == 1:
    raise UserError(f'{source} has position embeddings for only one side of its grid of patches.')
  rows, columns = counts[2, 1], counts[1, 2]
  size = (rows * model.patch_size, columns * model.patch_size)
  if stored_size not in (None, size):
    raise UserError(
      f'{source} has position embeddings for {rows}x{columns} patches, which does not match its '
      f'image_size {stored_size}.'
    )
  return size, (rows, columns)


def _count(name: str, shape: tuple[int, ...], model: VisionTransformer, source: str) -> int:
  """The number of patches that a table of that shape is for."""
  if name.endswith('/relative_embedding'):
    if len(shape) == 3 and shape[0] % 2:
      return (shape[0] + 1) // 2
    raise UserError(f'{source} has relative embeddings of shape {shape}, not (2 N - 1, K, D/K).')
  if len(shape) != 3 or shape[0] != 1:
    raise UserError(f'{source} has position embeddings of shape {shape}, not (1, N, D).')
  return shape[1] - (len(model.prefix_names) if name.endswith('/pos_embedding') else 0)


def grid_of_patches(
  patches: int,
  model: VisionTransformer | MlpMixer,
  stored_size: tuple[int, int] | None,
  requested_size: tuple[int, int] | None,
  beginning: str,
) -> tuple[tuple[int, int], Grid]:
  """The (image size, grid) of that many patches.

  Args:
    patches: that a file has parameters for.
    model, stored_size, requested_size: as in `trained_grid`.
    beginning: of the error message, '<source> has <parameters>'.

  Raises:
    UserError: if that many patches do not form a grid, or not that of `stored_size`.
  """
  side = math.isqrt(max(patches, 0))
  is_square = side * side == patches  # as in all published models
  for size in (stored_size, None if is_square else requested_size):
    grid = size and build.patch_grid(size, model)
    if size and grid and grid[0] * grid[1] == patches:
      return size, grid
  if is_square and side and stored_size is None:
    return (side * model.patch_size, side * model.patch_size), (side, side)
  mismatch = 'is not a square; pass the image size that they were trained at'
  if stored_size is not None:
    mismatch = f'does not match its image_size {stored_size}'
  raise UserError(f'{beginning} for {patches} patches, which {mismatch}.')


def with_prefix_positions(
  tensors: Mapping[str, Tensor], model: VisionTransformer, image_size: tuple[int, int] | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """The tensors with a position for each token before the patches but the registers, and notes.

  In big_vision (but for files from before 2022) and in timm's `no_embed_class` models the tokens
  before the patches are concatenated after positions are added; in other models of timm registers
  have positions, too. Without an image size, the number of patches is taken for a square.
  """
  table = tensors.get(POSITIONS)
  if table is None or len(table.shape) != 3 or model.position_entry != 'stem':
    return dict(tensors), ()
  count, prefix = table.shape[1], len(model.prefix_names)
  grid = image_size and build.patch_grid(image_size, model)

  def is_grid(patches: int) -> bool:
    if grid:
      return patches == math.prod(grid)
    return patches > 0 and math.isqrt(patches) ** 2 == patches

  changed, registers = dict(tensors), tensors.get('registers')
  if (
    is_grid(count - prefix)
    and (grid or not (prefix and is_grid(count)))
    or not model.num_prefix_tokens
  ):
    return changed, ()
  if prefix and is_grid(count):
    changed[POSITIONS] = _prepend_zeros(table, prefix)
    return changed, ('the class token had no position embedding and was given zeros',)
  if registers is not None and is_grid(count - prefix - model.registers):
    end = prefix + model.registers
    changed['registers'] = registers.map(
      registers.shape, lambda x: _float32(x) + _float32(table.read()[:, prefix:end])
    )
    changed[POSITIONS] = table.map(
      (1, count - model.registers, table.shape[2]),
      lambda x: np.concatenate([x[:, :prefix], x[:, end:]], axis=1),
    )
    return changed, ('the positions of the registers are added to them',)
  return changed, ()


def _float32(x: np.ndarray) -> np.ndarray:
  return np.asarray(x, np.float32)


def _prepend_zeros(positions: Tensor, number: int) -> Tensor:
  batch, count, width = positions.shape
  return positions.map(
    (batch, count + number, width),
    lambda x: np.concatenate([np.zeros_like(x[:, :1])] * number + [x], axis=1),
  )


def _interpolation(old: int, new: int, method: str) -> np.ndarray:
  """The (new, old) matrix of an interpolation along one side."""
  if method.startswith('bicubic') or method.endswith('antialias'):
    return _convolution(old, new, *method.split('_'))
  if method == 'corners':
    position = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
  else:
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
  low = np.minimum(position.astype(int), max(old - 2, 0))
  weights = np.zeros((new, old))
  weights[np.arange(new), low] = 1 - (position - low)
  weights[np.arange(new), np.minimum(low + 1, old - 1)] += position - low
  return weights


def _convolution(old: int, new: int, kernel: str, option: str = '') -> np.ndarray:
  """The (new, old) matrix of PyTorch's interpolation with `align_corners=False`.

  aten/src/ATen/native/cpu/UpSampleKernel.cpp: with antialiasing it has another cubic kernel, and
  what is beyond the border is left out; otherwise the entry at the border is repeated. With an
  offset the new side is taken for 0.1 longer: `interpolate_offset` of DINOv2's hub/backbones.py.
  """
  antialias = option == 'antialias'
  scale = max(old / new, 1) if antialias else 1.0
  center = (np.arange(new) + 0.5) * old / (new + 0.1 * (option == 'offset')) - 0.5
  reach = math.ceil(2 * scale) + 1
  taps = np.floor(center)[:, None] + np.arange(-reach, reach + 1)
  distances = np.abs(taps - center[:, None]) / scale
  if kernel == 'bilinear':
    values = np.maximum(1 - distances, 0)
  else:
    values = _cubic(distances, -0.5 if antialias else -0.75)
  if antialias:
    values = np.where((taps >= 0) & (taps < old), values, 0)
    values /= values.sum(axis=1, keepdims=True)
  weights = np.zeros((new, old))
  rows = np.broadcast_to(np.arange(new)[:, None], taps.shape)
  np.add.at(weights, (rows, np.clip(taps, 0, old - 1).astype(int)), values)
  return weights


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
  """The cubic convolution kernel (Keys, 1981) of distances, 0 from a distance of 2 on."""
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = ((x - 5) * x + 8) * x * a - 4 * a
  return np.where(x <= 1, near, np.where(x < 2, far, 0))


def resize_position_embedding(
  embedding: np.ndarray,
  old_grid: tuple[int, int],
  new_grid: tuple[int, int],
  method: str = 'corners',
) -> np.ndarray:
  """Resizes position embeddings by interpolation of their grid (Section 3.2).

  Args:
    embedding: (1, N, D), or (1, N + 1, D) with an entry for the class token, which is kept.
    old_grid, new_grid: (rows, columns) of patches.
    method: 'corners' aligns the corner entries, as the released code does
      (`scipy.ndimage.zoom`); 'half_pixel' aligns the centers of patches, without antialiasing,
      as `jax.image.resize` and PyTorch do; both are bilinear. 'bicubic', 'bicubic_antialias' and
      'bilinear_antialias' align centers, too, as `torch.nn.functional.interpolate` does;
      'bicubic_offset' nearly does, as the code of DINOv2 without registers.

  Returns:
    (1, N', D) or (1, N' + 1, D) in the same dtype.
  """
  tokens = embedding.shape[1] - old_grid[0] * old_grid[1]  # 1 with a class token, else 0
  token, grid = np.split(np.asarray(embedding), [tokens], axis=1)
  grid = grid.reshape(*old_grid, -1)
  rows, columns = (_interpolation(*pair, method) for pair in zip(old_grid, new_grid, strict=True))
  grid = np.einsum('ah,bw,hwd->abd', rows, columns, grid, optimize=True)
  grid = grid.reshape(1, new_grid[0] * new_grid[1], -1)
  return np.concatenate([token, grid.astype(embedding.dtype)], axis=1)


def resize_table(name: str, table: np.ndarray, old: Grid, new: Grid, method: str) -> np.ndarray:
  """Resizes the table of that name as `resize_position_embedding` does, along its own axes."""
  old, new = _part(name, old), _part(name, new)
  if name.endswith('/relative_embedding'):
    return _resize_offsets(table, old, new, method)
  return resize_position_embedding(table, old, new, method)


def _resize_offsets(table: np.ndarray, old: Grid, new: Grid, method: str) -> np.ndarray:
  """Interpolates embeddings of offsets, (2 N - 1, K, D/K), as those of pairs (rows, columns).

  An offset along the rows of a grid stands for several pairs; the one with the fewest columns is
  taken, and is as far in the old grid as in the new one, relative to their sizes.
  """
  offsets, reach = np.arange(1 - math.prod(new), math.prod(new)), math.prod(old) - 1
  rows = np.clip(np.rint(offsets / new[1]), 1 - new[0], new[0] - 1)
  y = _scaled(rows, old[0], new[0], method)
  x = _scaled(offsets - rows * new[1], old[1], new[1], method)
  resized = np.zeros((len(offsets), *table.shape[1:]))
  for next_row in (0, 1):
    for next_column in (0, 1):  # of the four neighbors
      row, column = np.floor(y) + next_row, np.floor(x) + next_column
      weights = (1 - np.abs(y - row)) * (1 - np.abs(x - column))
      indices = np.clip(row * old[1] + column, -reach, reach).astype(int) + reach
      resized += weights[:, None, None] * table[indices]
  return resized.astype(table.dtype)


def _scaled(steps: np.ndarray, old: int, new: int, method: str) -> np.ndarray:
  """Steps between patches of the new grid as steps of the old one, along one side."""
  scale = (old - 1) / max(new - 1, 1) if method == 'corners' else old / new
  return np.clip(steps * scale, 1 - old, old - 1)
