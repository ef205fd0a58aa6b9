"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of a batch, on the devices."""

import jax
import jax.numpy as jnp

from vit_jax.models.losses import targets

Array = jax.Array


def _blend(alpha: float, height: int, width: int, key: Array) -> Array:
  """Mixup: the same share of its own image in all pixels: (1, H, W, 1)."""
  return jnp.full((1, height, width, 1), jax.random.beta(key, alpha, alpha))


def _cut(alpha: float, height: int, width: int, key: Array) -> Array:
  """CutMix: 0 in a rectangle, 1 around it: (1, H, W, 1).

  It covers 1 - Beta(alpha, alpha) of the image, less what lies beyond the border: its centre may
  be anywhere.
  """
  share_key, place_key = jax.random.split(key)
  side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
  y, x = jax.random.uniform(place_key, (2,))

  def inside(length: int, centre: Array) -> Array:
    at = (jnp.arange(length) + 0.5) / length
    return jnp.abs(at - centre) < side / 2

  return 1.0 - (inside(height, y)[None, :, None, None] & inside(width, x)[None, None, :, None])


def mix(
  batch: dict[str, Array], num_classes: int, mixup_alpha: float, cutmix_alpha: float, key: Array
) -> dict[str, Array]:
  """Each example mixed with the one before it; an alpha of 0 leaves that way of mixing out.

  One draw serves the whole batch, as in the code the AugReg models were trained with, and if both
  ways are on it also chooses one of them, evenly. It comes from the key alone, and partners are
  fallback_configs in the global batch: the result does not depend on how devices share the batch, and
  of a device's rows only the last one has to travel.

  Mixing commutes with scaling the images and with smoothing the labels, which come later.

  Args:
    batch: {'image': (B, H, W, C) uint8, 'label': (B,) int32 or (B, num_classes)}
    num_classes: of the model.
    mixup_alpha, cutmix_alpha: of the Beta distributions; not both 0.
    key: all the randomness.

  Returns:
    {'image': (B, H, W, C) float32 in [0, 255], 'label': (B, num_classes) float32}
  """
  images = batch['image'].astype(jnp.float32)
  labels = targets(batch['label'], num_classes)
  mixup_key, cutmix_key, choice_key = jax.random.split(key, 3)
  ways = []
  if mixup_alpha:
    ways.append(_blend(mixup_alpha, *images.shape[1:3], mixup_key))
  if cutmix_alpha:
    ways.append(_cut(cutmix_alpha, *images.shape[1:3], cutmix_key))
  own = ways[0]
  if len(ways) == 2:
    own = jnp.where(jax.random.bernoulli(choice_key), *ways)

  def combine(mine: Array, share: Array) -> Array:
    return share * mine + (1 - share) * jnp.roll(mine, 1, axis=0)

  return {'image': combine(images, own), 'label': combine(labels, own.mean())}
