"""Rotary position embeddings of patches: queries and keys are rotated by rows and columns.

arXiv 2104.09864 (Section 3.2.2), in two dimensions as in EVA-02 (arXiv 2303.11331) and DINOv3
(arXiv 2508.10104, Section 3.2). Shapes: B batch, N tokens, K heads, F features of a head.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from vit_jax.config import ModelConfig
from vit_jax.errors import UserError

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Rotary:
  """How the features of a head are rotated: pairs of them, by angles that grow with the place.

  A quarter of the frequencies, F / 4 of them from high to low, serves the rows and, with the same
  periods, the columns of the grid; so there are F / 2 pairs.

  Attributes:
    base: the periods are base^(4 i / F), i = 0, 1, …, F / 4 - 1.
    coordinates: 'centered': from -1 at one edge of the image to 1 at the other, of each axis, in
      units of half a turn by 2 pi (DINOv3); 'index': 0, 1, … of patches, in radians (EVA-02).
    offset: added to an index (1 in Perception Encoder).
    reference_grid: (rows, columns) to which an index is scaled, of pretraining; (): not scaled.
    columns_first: the first half of the pairs is rotated by columns (Perception Encoder).
    neighbors: features 2 i and 2 i + 1 are a pair; otherwise i and i + F / 2 (DINOv3).
    truncated_periods: the periods are rounded to bfloat16, as in the original files of DINOv3.
  """

  base: float = 100.0
  coordinates: str = 'centered'
  offset: float = 0.0
  reference_grid: tuple[int, ...] = ()
  columns_first: bool = False
  neighbors: bool = False
  truncated_periods: bool = False

  def __post_init__(self):
    grid = self.reference_grid
    if not (0 < self.base < math.inf and math.isfinite(self.offset)):
      raise ValueError(f'base {self.base} or offset {self.offset} is out of range')
    if self.coordinates not in ('centered', 'index'):
      raise ValueError(f'coordinates {self.coordinates!r} are unknown')
    if len(grid) not in (0, 2) or not all(type(x) is int and x > 0 for x in grid):
      raise ValueError(f'reference_grid {grid} is not (rows, columns)')


ROTARIES = {  # of published families, by the name of `config.model.rotary`
  'dinov3': Rotary(),
  'eva02': Rotary(base=10_000.0, coordinates='index', neighbors=True),
  'perception_encoder': Rotary(
    base=10_000.0, coordinates='index', offset=1.0, columns_first=True, neighbors=True
  ),
}


def rotary_from_config(config: ModelConfig) -> Rotary | None:
  """The rule that `config.rotary` names, on the grid of its pretraining; None: no rotation.

  Raises:
    UserError: for a grid that is not one.
  """
  if config.rotary == 'none':
    return None
  if len(config.rotary_grid) not in (0, 2):
    raise UserError(
      f'config.model.rotary_grid={config.rotary_grid} must be rows and columns, or ().'
    )
  return dataclasses.replace(ROTARIES[config.rotary], reference_grid=config.rotary_grid)


@dataclasses.dataclass(frozen=True)
class Rotation:
  """A `Rotary` on a grid; tokens before and after those of its patches are not rotated.

  Attributes:
    rotary: the rule.
    grid: (rows, columns) of patches.
    num_prefix: the number of tokens before them.
  """

  rotary: Rotary
  grid: tuple[int, ...]
  num_prefix: int

  def __call__(self, x: Array) -> Array:
    """Rotates queries or keys, (B, N, K, F), in float32."""
    num_tokens, features = x.shape[1], x.shape[-1]
    angles = _angles(self.rotary, self.grid, features)  # (patches, F / 2)
    after = num_tokens - self.num_prefix - len(angles)
    angles = np.pad(angles, ((self.num_prefix, after), (0, 0)))[None, :, None]  # (1, N, 1, F / 2)
    sin, cos = (jnp.asarray(f(angles), jnp.float32) for f in (np.sin, np.cos))
    y = x.astype(jnp.float32)
    axis = -1 if self.rotary.neighbors else -2  # of the two features of a pair
    shape = (features // 2, 2) if self.rotary.neighbors else (2, features // 2)
    first, second = jnp.moveaxis(y.reshape(*x.shape[:-1], *shape), axis, 0)
    pairs = (first * cos - second * sin, second * cos + first * sin)
    return jnp.stack(pairs, axis).reshape(x.shape).astype(x.dtype)


def _angles(rotary: Rotary, grid: tuple[int, ...], features: int) -> np.ndarray:
  """The angles of all patches in radians, row by row: (patches, F / 2) float32."""
  exponents = np.arange(features // 4, dtype=np.float32) / np.float32(features // 4)
  periods = np.float32(rotary.base) ** exponents
  if rotary.truncated_periods:
    periods = periods.astype(ml_dtypes.bfloat16).astype(np.float32)
  axes = []
  for i, side in enumerate(grid):
    if rotary.coordinates == 'centered':
      places = 2 * (np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side) - 1
      places = np.float32(2 * math.pi) * places
    else:
      places = np.arange(side, dtype=np.float32) + np.float32(rotary.offset)
      if rotary.reference_grid:
        places = places / np.float32(side) * np.float32(rotary.reference_grid[i])
    axes.append(places)
  rows, columns = np.meshgrid(*axes, indexing='ij')
  order = (columns, rows) if rotary.columns_first else (rows, columns)
  angles = [each.reshape(-1, 1) / periods for each in order]
  return np.concatenate(angles, axis=1)
