"""The attention weights of every block, whatever computes the attention of the model.

Shapes: B batch, L layers (blocks), K heads, N tokens: the class token, if any, then the patches.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.classifier import Classifier
from vit_jax.errors import UserError
from vit_jax.models.attention.detr import DETR
from vit_jax.models.build import Model, patch_grid
from vit_jax.models.dot_product_attention import Attend, einsum_attention
from vit_jax.models.features import num_prefix_tokens
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.vit import VisionTransformer

Array = jax.Array


def attention(vit: Classifier, images: jax.typing.ArrayLike) -> Array:
  """The softmax weights of every block: how much each token (row) attends to each other one.

  They are computed by a plain softmax, also where the model uses a fused kernel. All of them are
  in memory at once: 4 B L K N^2 bytes.

  Args:
    vit: a Vision Transformer, with any head and position embeddings.
    images: (B, H, W, C) float in [-1, 1], as `vit.preprocess` returns them.

  Returns:
    (B, L, K, N, N) float32; rows sum to 1.

  Raises:
    UserError: for a model without such weights: MLP-Mixer, ResNet, DETR, axial attention.
    ValueError: for images of another shape.
  """
  return attention_and_pooling(vit, images)[0]


def pooling(vit: Classifier, images: jax.typing.ArrayLike) -> Array:
  """The share of each token in what the head reads: (B, N) float32, rows sum to 1.

  With pool token that is all of the class token, with pool gap each patch has the same share, with
  pool map that of the query's attention, averaged over its heads. The class token and the mean of
  the patches (pool token_gap), or the two tokens of a distilled DeiT, have one half each.

  Args, raises: as `attention`.
  """
  return attention_and_pooling(vit, images)[1]


def attention_and_pooling(vit: Classifier, images: jax.typing.ArrayLike) -> tuple[Array, Array]:
  """`attention` and `pooling`, from one pass."""
  model = token_attention_model(vit.model).clone(num_classes=0)
  # pyright takes linen modules for unhashable, because they are not declared frozen.
  return _weights(model, vit.params, vit.check_images(images))  # pyright: ignore[reportArgumentType]


def token_attention_model(model: Model) -> VisionTransformer:
  """The model with a plain attention and no loop over its blocks; `UserError` as `attention`."""
  if not isinstance(model, VisionTransformer):
    name = {MlpMixer: 'an MLP-Mixer', DETR: 'a DETR'}.get(type(model), 'a ResNet')
    raise UserError(
      f'The model is {name}, without the attention of a Vision Transformer; name another model.'
    )
  if model.axial:
    raise UserError(
      'The model attends along rows, then along columns, so that there are no weights from each '
      'patch to all others; name a model without axial attention.'
    )
  return model.clone(
    attention=einsum_attention, pool_attention=einsum_attention, remat='none', scan_blocks=False
  )


def token_grid(vit: Classifier) -> tuple[int, tuple[int, int]]:
  """(tokens before those of the patches, (rows, columns) of patches)."""
  model = token_attention_model(vit.model)
  grid = patch_grid(vit.image_size, model)
  assert grid is not None
  return num_prefix_tokens(model), grid


def recorded(
  model: VisionTransformer, params: Any, images: Array, offsets: list[Array] | None = None
) -> tuple[Array, list[Array]]:
  """The outputs (B, C), and the weights (B, K, N, N) of each block; with pool map those of its
  query (B, K, 1, N), too. `offsets` of the same shapes are added to the weights, as places to
  differentiate at.
  """
  weights: list[Array] = []

  def record(new: Array) -> Array:
    weights.append(new)
    return new if offsets is None else new + offsets[len(weights) - 1]

  outputs = model.clone(attention=_attend(record), pool_attention=_attend(record)).apply(
    {'params': params}, images
  )
  assert isinstance(outputs, Array)
  return outputs, weights


def _attend(record: Callable[[Array], Array]) -> Attend:
  def attend(query: Array, key: Array, value: Array, drop: Any, bias: Array | None) -> Array:
    del drop  # there is no dropout outside of training
    exact = value.astype(jnp.float32)  # else the weights are rounded to the dtype of the values
    return einsum_attention(query, key, exact, record, bias).astype(value.dtype)

  return attend


@functools.partial(jax.jit, static_argnames='model')
def _weights(model: VisionTransformer, params: Any, images: Array) -> tuple[Array, Array]:
  _, weights = recorded(model, params, images)
  blocks = jnp.stack(weights[: model.depth], axis=1)
  return blocks, pooling_weights(model, weights, lambda heads: heads.mean(1))


def pooling_weights(
  model: VisionTransformer, weights: list[Array], of_query: Callable[[Array], Array]
) -> Array:
  """(B, N): the share of each token in what is pooled; of pool map, `of_query` of (B, K, 1, N)."""
  if model.pool == 'map':
    return of_query(weights[-1])[:, 0]
  batch, _, _, num_tokens = weights[0].shape
  places, prefix = jnp.arange(num_tokens), num_prefix_tokens(model)
  tokens = places < (2 if model.pool == 'distilled' else 1)
  patches = places >= prefix
  shares = {'gap': (patches,), 'token_gap': (tokens, patches)}.get(model.pool, (tokens,))
  share = sum(each / each.sum() for each in shares) / len(shares)
  return jnp.tile(share, (batch, 1))
