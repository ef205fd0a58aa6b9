"""Which patches speak for a class: attention times its gradient, rolled out.

Shapes: B batch, C classes, M of them that are asked for, K heads, N tokens, h w grid of patches.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.analysis.attention_weights import (
  pooling_weights,
  recorded,
  token_attention_model,
  token_grid,
)
from vit_jax.classifier import Classifier
from vit_jax.errors import UserError
from vit_jax.models.precision import FULL_PRECISION
from vit_jax.models.vit import VisionTransformer

Array = jax.Array


def relevance(
  vit: Classifier,
  images: jax.typing.ArrayLike,
  classes: jax.typing.ArrayLike | Sequence[Sequence[int]],
) -> Array:
  """The relevance of each patch for classes (Chefer et al., arXiv 2103.15679, Equations 5 and 6).

  In each block, the gradient of the class's logit with respect to the attention weights times
  these weights is averaged over the heads, its positive part only: Ā. From R = I, each block makes
  it R + Ā R. The result is the row of the class token, the mean of the rows (pool gap), or the Ā of
  the query times R (pool map).

  Args:
    vit, images: as for `attention`; the memory is about three times that of its weights.
    classes: (B, M) integers in [0, C).

  Returns:
    (B, M, h, w) float32, not negative. Values of an image can be compared between classes, those
    of different images cannot.

  Raises:
    UserError: as `attention`; for a model without a head, or a class that it does not have.
    ValueError: for images or classes of another shape.
  """
  model, (prefix, grid) = token_attention_model(vit.model), token_grid(vit)
  pixels, classes = vit.check_images(images), np.asarray(classes)
  if classes.ndim != 2 or len(classes) != len(pixels) or classes.dtype.kind not in 'iu':
    raise ValueError(
      f'classes are {classes.dtype}{list(classes.shape)}; pass integers, a row for each of the '
      f'{len(pixels)} images.'
    )
  if not model.num_classes:
    raise UserError('The model has no head, so nothing speaks for a class; load one that has.')
  if classes.size and not (0 <= classes.min() and classes.max() < model.num_classes):
    wrong = classes[(classes < 0) | (classes >= model.num_classes)][0]
    raise UserError(f'There is no class {wrong}; the model has {model.num_classes:,} classes.')
  # pyright takes linen modules for unhashable, because they are not declared frozen.
  rows = _relevance(model, vit.params, pixels, classes)  # pyright: ignore[reportArgumentType]
  return rows[..., prefix:].reshape(*rows.shape[:2], *grid)


@functools.partial(jax.jit, static_argnames='model')
def _relevance(model: VisionTransformer, params: Any, images: Array, classes: Array) -> Array:
  shapes = jax.eval_shape(lambda x: recorded(model, params, x)[1], images)
  zeros = [jnp.zeros(shape.shape) for shape in shapes]
  _, gradient, weights = jax.vjp(
    lambda offsets: recorded(model, params, images, offsets), zeros, has_aux=True
  )

  def of_class(index: Array) -> Array:  # (B,) -> (B, N)
    (gradients,) = gradient(jax.nn.one_hot(index, model.num_classes))
    parts = [jnp.maximum(w * g, 0).mean(axis=1) for w, g in zip(weights, gradients, strict=True)]
    matrix = jnp.eye(weights[0].shape[-1])[None].repeat(len(images), axis=0)
    for part in parts[: model.depth]:
      matrix = matrix + jnp.matmul(part, matrix, precision=FULL_PRECISION)
    pooled = pooling_weights(model, weights, lambda _: parts[-1])
    return jnp.einsum('bn,bnm->bm', pooled, matrix, precision=FULL_PRECISION)

  return jax.lax.map(of_class, classes.T).swapaxes(0, 1)  # one at a time, for memory
