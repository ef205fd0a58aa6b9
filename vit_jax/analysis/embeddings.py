"""What the embeddings of patches and positions learned (Figure 7).

Shapes: P patch size, D width, h w grid of patches.
"""

import numpy as np

from vit_jax.classifier import Classifier
from vit_jax.errors import UserError
from vit_jax.models.build import input_kernel, patch_grid
from vit_jax.models.positions import ADDED, PositionEmbedding, Positions
from vit_jax.models.resnet import BiTResNet
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.layouts.released import flatten


def filters(vit: Classifier, n: int = 28) -> np.ndarray:
  """The first principal components of the filters that are applied to pixels (Figure 7, left).

  These are the filters of the patch embedding; of a hybrid or a ResNet, those of its first
  convolution, as they are applied, standardized.

  Args:
    vit: any model.
    n: components to return, all of them if there are fewer; at least 1, else `ValueError`.

  Returns:
    (n, P, P, channels) float32 of norm 1, the one with the largest variance first; the value of
    the largest magnitude is positive.
  """
  if n < 1:
    raise ValueError(f'n is {n}; it must be positive.')
  tensors = flatten(vit.params)
  kernel = np.asarray(tensors[input_kernel(tensors)], np.float64)
  matrix = kernel.reshape(-1, kernel.shape[-1]).T  # (D, P P channels)
  if isinstance(vit.model, BiTResNet) or getattr(vit.model, 'resnet_width', 0):
    matrix = matrix - matrix.mean(axis=1, keepdims=True)
    matrix = matrix / (matrix.std(axis=1, keepdims=True) + 1e-5)
  _, _, components = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
  components = components[:n]
  largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], axis=1)
  return (components * np.sign(largest)).reshape(-1, *kernel.shape[:3]).astype(np.float32)


def position_similarity(vit: Classifier) -> np.ndarray:
  """Cosine similarities of the position embeddings of all patches (Figure 7, center).

  Returns:
    (h, w, h, w) float32 in [-1, 1]: at [i, j] the map of the patch in row i and column j. Where
    each block has its own embeddings, they are those of the first block.

  Raises:
    UserError: for a model without position embeddings that are added to its tokens.
  """
  model, params = vit.model, vit.params
  if not isinstance(model, VisionTransformer) or model.position_embedding not in ADDED:
    raise UserError(
      'The model has no position embeddings that are added to tokens, so there are no similarities '
      'of them.'
    )
  prefix, grid = len(model.prefix_names), patch_grid(vit.image_size, model)
  assert grid is not None
  tokens = params['Transformer']
  if model.position_entry == 'layers':
    tokens = tokens['encoderblock_0']
  table = tokens['posembed_layers' if model.position_entry == 'layers_shared' else 'posembed_input']
  module = PositionEmbedding(Positions(model.position_embedding, grid), model.num_heads)
  like = np.zeros((1, prefix + grid[0] * grid[1], model.width), np.float32)
  embedding = np.asarray(module.apply({'params': table}, like), np.float64)[0, prefix:]
  embedding /= np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)
  similarity = np.clip(embedding @ embedding.T, -1, 1)
  return similarity.reshape(*grid, *grid).astype(np.float32)
