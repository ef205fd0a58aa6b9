"""What attention adds up to over all blocks, and how far it reaches.

Shapes: B batch, L layers (blocks), K heads, N tokens, h w grid of patches.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.analysis.attention_weights import attention_and_pooling, token_grid
from vit_jax.classifier import Classifier
from vit_jax.models.precision import FULL_PRECISION

Array = jax.Array


@jax.jit
def rollout(weights: jax.typing.ArrayLike) -> Array:
  """Attention rollout (arXiv 2005.00928, Section 3; Appendix D.7 of the ViT paper).

  The weights of all heads are averaged, the identity is added for the residual, rows are
  normalized, and the matrices of all blocks are multiplied, the first block on the right.

  Args:
    weights: (B, L, K, N, N), of `attention`.

  Returns:
    (B, N, N) float32: the share of each input token (column) in each output token (row); rows sum
    to 1.
  """
  mean = jnp.asarray(weights, jnp.float32).mean(axis=2)  # (B, L, N, N)
  mixing = mean + jnp.eye(mean.shape[-1])[None, None]
  mixing = mixing / mixing.sum(axis=-1, keepdims=True)
  rolled = mixing[:, 0]
  for layer in range(1, mixing.shape[1]):
    rolled = jnp.matmul(mixing[:, layer], rolled, precision=FULL_PRECISION)
  return rolled


def attention_map(vit: Classifier, images: jax.typing.ArrayLike) -> Array:
  """Where the model looks, by `rollout`: what reaches its head from each patch (Figure 6).

  That is what the class token sees; without one, what the mean of the tokens sees (pool gap) or
  the query of the attention pooling (pool map). The share of the class token itself is left out.

  Args:
    vit, images: as for `attention`.

  Returns:
    (B, h, w) float32, not negative, with the sum 1.

  Raises:
    UserError, ValueError: as `attention`.
  """
  weights, pooled = attention_and_pooling(vit, images)
  return pooled_map(rollout(weights), pooled, *token_grid(vit))


@functools.partial(jax.jit, static_argnums=(2, 3))
def pooled_map(matrix: Array, pooled: Array, num_prefix: int, grid: tuple[int, int]) -> Array:
  """The rows of (B, N, N) weighted by (B, N), for the patches, with the sum 1: (B, h, w)."""
  row = jnp.einsum('bn,bnm->bm', pooled, matrix, precision=FULL_PRECISION)
  patches = row[:, num_prefix:].reshape(-1, *grid)
  total = patches.sum(axis=(1, 2), keepdims=True)
  return patches / jnp.where(total == 0, 1, total)


def attention_distance(
  weights: jax.typing.ArrayLike, grid: tuple[int, int], patch_size: int
) -> np.ndarray:
  """The mean distance between a patch and those it attends to (Figure 7, right).

  Distances are those of the patches' centers, weighted by the attention; the mean is over all
  images and patches. The class token, as query or key, is left out.

  Args:
    weights: (B, L, K, N, N), of `attention`.
    grid: (h, w); the last h w tokens are the patches, row by row.
    patch_size: pixels.

  Returns:
    (L, K) float32, pixels.
  """
  rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  distances = np.hypot(rows[:, None] - rows, columns[:, None] - columns) * patch_size
  array = np.asarray(weights)
  prefix = array.shape[-1] - len(distances)
  patches = array[..., prefix:, prefix:]
  weighted = np.einsum('blkqp,qp->blkq', patches, distances.astype(np.float32))
  return (weighted / patches.sum(axis=-1)).mean(axis=(0, 3))
