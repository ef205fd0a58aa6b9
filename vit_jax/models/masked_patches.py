"""Masked patch prediction, the self-supervised pretraining of the paper (Appendix B.1.2).

Half of an image's patch embeddings are corrupted, and the colors of those patches are predicted
from the encoded tokens in their places; labels are not used.

Shapes: B batch, H W image, P patch size, N patches, K corrupted ones, D width, C channels.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.config.schema import MaskedTarget
from vit_jax.errors import UserError
from vit_jax.models.pixels import scale_pixels
from vit_jax.models.precision import FULL_PRECISION, with_full_precision
from vit_jax.models.vit import VisionTransformer

Array = jax.Array

CORRUPTED_SHARE = 0.5  # of an image's patches
# What replaces the embedding of a corrupted patch; otherwise it is left unchanged.
MASK_PROBABILITY = 0.8  # the learned mask token replaces it
OTHER_PATCH_PROBABILITY = 0.1  # that of another patch of the image does
COLOR_LEVELS = 8  # of a channel: 3 bits
_CELLS = {'mean_color': 1, 'downsized': 4}  # along a side of a patch, with one color each
_MAX_COLOR_CHANNELS = 4  # 4,096 colors
_MASK = -1  # in `Corruption.source`
_PARAMS = ('mask_token', 'prediction_head')  # of the predictor, but not of its encoder


class Corruption(NamedTuple):
  """Which patches of an image are corrupted, and how; row-major numbers of patches.

  Attributes:
    indices: (…, K) int32, the corrupted patches.
    source: (…, N) int32, whose embedding each patch has: its own, another one's, or -1, that of the
      mask token.
  """

  indices: Array
  source: Array


def num_corrupted(num_patches: int) -> int:
  """K: half of the patches, rounded down."""
  return int(num_patches * CORRUPTED_SHARE)


def draw_corruption(keys: Array, num_patches: int) -> Corruption:
  """Draws the corruption of each image, of at least two patches.

  Args:
    keys: (B,); an image's corruption is a pure function of its key.
    num_patches: N.
  """
  count = num_corrupted(num_patches)
  # Of the numbers of an image, N order its patches, and the others are for the first K of these.
  draws = jax.vmap(lambda key: jax.random.bits(key, (num_patches + 2 * count,)))(keys)
  order, kind, other = jnp.split(draws, (num_patches, num_patches + count), axis=1)
  indices = jnp.argsort(order, axis=1)[:, :count].astype(jnp.int32)  # (B, K)
  kind = kind.astype(jnp.float32) / 2.0**32  # in [0, 1]
  distance = 1 + (other % (num_patches - 1)).astype(jnp.int32)
  other = (indices + distance) % num_patches  # never the patch itself
  is_kept = kind >= MASK_PROBABILITY + OTHER_PATCH_PROBABILITY
  source = jnp.where(kind < MASK_PROBABILITY, _MASK, jnp.where(is_kept, indices, other))
  own = jnp.broadcast_to(jnp.arange(num_patches, dtype=jnp.int32), order.shape)
  return Corruption(indices, jnp.put_along_axis(own, indices, source, axis=1, inplace=False))


def draw_corruptions(images: Array, patch_size: int, key: Array | None) -> Corruption:
  """Draws a corruption for each image of a batch: (B, K) and (B, N).

  Args:
    images: (B, H, W, C) uint8.
    patch_size: P, in pixels.
    key: all the randomness. None: each image's corruption is a function of its pixels, for
      evaluations, which then depend neither on the run nor on the other images of the batch.
  """
  batch_size, height, width, _ = images.shape
  keys = _image_keys(images) if key is None else jax.random.split(key, batch_size)
  num_patches = height // patch_size * (width // patch_size)
  return draw_corruption(keys, num_patches)


def _image_keys(images: Array) -> Array:
  """A key for each image, (B,), from a hash of its pixels."""
  pixels = images.reshape(images.shape[0], -1).astype(jnp.uint32)
  factors = jnp.arange(1, pixels.shape[1] + 1, dtype=jnp.uint32) * jnp.uint32(2654435761)
  hashes = jnp.sum(pixels * factors[None], axis=1, dtype=jnp.uint32)  # mod 2^32: in any order
  return jax.vmap(lambda number: jax.random.fold_in(jax.random.key(0), number))(hashes)


def _cells(images: Array, patch_size: int, per_side: int) -> Array:
  """(B, H, W, C) -> (B, N, cells of a patch, pixels of a cell, C), all row by row."""
  batch, height, width, channels = images.shape
  rows, columns, side = height // patch_size, width // patch_size, patch_size // per_side
  x = images.reshape(batch, rows, per_side, side, columns, per_side, side, channels)
  x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
  return x.reshape(batch, rows * columns, per_side**2, side**2, channels)


def patch_targets(images: Array, patch_size: int, target: str) -> Array:
  """What is to be predicted of the patches of images (B, H, W, C) uint8.

  Returns:
    mean_color: (B, N, 1) int32, the number of the patch's mean color, each channel of which is
      quantized to 3 bits by rounding down: ((red * 8) + green) * 8 + blue, from 0 to 511.
    downsized: (B, N, 16) int32, such a number for each cell of a 4 x 4 grid.
    pixels: (B, N, P * P * C) float32 in [-1, 1].
  """
  if target == 'pixels':
    cells = scale_pixels(_cells(images, patch_size, 1))
    return cells.reshape(*cells.shape[:2], -1)
  cells = _cells(images, patch_size, _CELLS[target]).astype(jnp.int32)
  pixels, channels = cells.shape[3:]
  # In integers, so that no mean is rounded to another color.
  levels = cells.sum(axis=3) // (pixels * 256 // COLOR_LEVELS)
  colors = levels[..., 0]
  for channel in range(1, channels):
    colors = colors * COLOR_LEVELS + levels[..., channel]
  return colors


class MaskedPatchPredictor(VisionTransformer):
  """Images (B, H, W, C) float in [-1, 1] -> predictions for patches (B, K, outputs) float32.

  The encoder's parameters have the names that they have in a `VisionTransformer`; `mask_token` and
  `prediction_head` are added to them.

  Attributes:
    target: what is predicted of a patch, as in `patch_targets`: the logits of 8^C colors for each
      number there, or the pixels.
  """

  target: MaskedTarget = 'mean_color'

  def num_outputs(self, channels: int) -> int:
    """The number of outputs for a patch."""
    if self.target == 'pixels':
      return self.patch_size**2 * channels
    return _CELLS[self.target] ** 2 * COLOR_LEVELS**channels

  @nn.compact
  @with_full_precision
  def __call__(
    self,
    images: Array,
    corruption: Corruption | None = None,
    *,
    deterministic: bool = True,
    examples: Array | None = None,
  ) -> Array:
    """Without a corruption, no patch is corrupted, and the predictions are for all N of them."""
    embeddings = self.embed_patches(images)  # (B, H/P, W/P, D)
    x = embeddings.reshape(embeddings.shape[0], -1, self.width)  # (B, N, D)
    mask = self.param('mask_token', nn.initializers.normal(stddev=0.02), (1, 1, self.width))
    if corruption is not None:
      source = corruption.source[..., None]  # (B, N, 1)
      others = jnp.take_along_axis(x, jnp.maximum(source, 0), axis=1)
      x = jnp.where(source == _MASK, mask.astype(x.dtype), others)
    num_patches = x.shape[1]
    x = self.encode(x.reshape(embeddings.shape), deterministic, examples)[:, -num_patches:]
    if corruption is not None:
      x = jnp.take_along_axis(x, corruption.indices[..., None], axis=1)  # (B, K, D)
    head = nn.Dense(
      self.num_outputs(images.shape[-1]),
      kernel_init=nn.initializers.zeros,
      precision=FULL_PRECISION,
      name='prediction_head',
    )
    return head(x.astype(jnp.float32))


def with_prediction_head(
  model: VisionTransformer, target: MaskedTarget, image_shape: tuple[int, int, int]
) -> MaskedPatchPredictor:
  """The predictor whose encoder is `model`, for images of (H, W, C).

  Raises:
    UserError: for a model, or images, of which the target cannot be predicted.
  """
  patch, channels = model.patch_size, image_shape[2]
  if image_shape[0] * image_shape[1] < 2 * patch**2:
    raise UserError(
      'objective=masked_patches needs images of at least two patches; use a smaller '
      'model.patch_size.'
    )
  if target == 'downsized' and patch % _CELLS[target]:
    raise UserError(
      f'model.patch_size is {patch}; masked_target=downsized needs a multiple of {_CELLS[target]}.'
    )
  if target in _CELLS and channels > _MAX_COLOR_CHANNELS:
    raise UserError(
      f'data.channels is {channels}; masked_target={target} takes up to {_MAX_COLOR_CHANNELS}, set '
      'masked_target to pixels.'
    )
  headless = model.clone(num_classes=0, pre_logits=0)
  return MaskedPatchPredictor(**_fields(headless), target=target)


def encoder(model: MaskedPatchPredictor) -> VisionTransformer:
  """The model without its prediction head: its outputs are features."""
  return VisionTransformer(**_fields(model))


def _fields(model: VisionTransformer) -> dict[str, Any]:
  names = {each.name for each in dataclasses.fields(VisionTransformer)} - {'parent', 'name'}
  return {name: getattr(model, name) for name in names}


def encoder_params(params: Any) -> Any:
  """The parameters of the encoder, of the predictor's: of a tree, or by names 'cls', 'a/b', …."""
  return {name: x for name, x in params.items() if name.split('/')[0] not in _PARAMS}


def score_patches(
  model: MaskedPatchPredictor, predictions: Array, images: Array, corruption: Corruption
) -> tuple[Array, Array | None]:
  """Compares predictions (B, K, outputs) with the images (B, H, W, C) uint8.

  Returns:
    (loss, accuracy), (B,) float32, means over the corrupted patches of each image: of the
    cross-entropy of a color and the share of colors that are predicted; of pixels the squared
    error of a value in [-1, 1], and None.
  """
  targets = patch_targets(images, model.patch_size, model.target)
  targets = jnp.take_along_axis(targets, corruption.indices[..., None], axis=1)
  if model.target == 'pixels':
    return jnp.square(predictions - targets).mean(axis=(1, 2)), None
  logits = predictions.reshape(*targets.shape, -1)  # (B, K, cells, colors)
  loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
  is_correct = logits.argmax(axis=-1) == targets
  return loss.mean(axis=(1, 2, 3)), is_correct.mean(axis=(1, 2), dtype=jnp.float32)
