"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of a batch, on the devices."""

import jax
import jax.numpy as jnp

from vit_jax.models.losses import targets

Array = jax.Array


def _mixup_weights(alpha: float, height: int, width: int, key: Array) -> Array:
  """The weight of each pixel of an example's own image: one for all, (1, H, W, 1)."""
  return jnp.full((1, height, width, 1), jax.random.beta(key, alpha, alpha))


def _cutmix_weights(alpha: float, height: int, width: int, key: Array) -> Array:
  """The weight of each pixel of an example's own image: 0 in a box, 1 around it, (1, H, W, 1).

  The box covers 1 - Beta(alpha, alpha) of the image, less what lies beyond the border: its center
  may be anywhere.
  """
  share_key, center_key = jax.random.split(key)
  side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
  y, x = jax.random.uniform(center_key, (2,))

  def inside(length: int, center: Array) -> Array:
    position = (jnp.arange(length) + 0.5) / length
    return jnp.abs(position - center) < side / 2

  return 1.0 - (inside(height, y)[None, :, None, None] & inside(width, x)[None, None, :, None])


def mix(
  batch: dict[str, Array], num_classes: int, mixup_alpha: float, cutmix_alpha: float, key: Array
) -> dict[str, Array]:
  """Mixes each example with the one before it, by Mixup, CutMix, or either with probability 1/2.

  One draw serves the whole batch, as in the code that trained the AugReg models. It comes from
  the key alone, and partners are adjacent rows of the global batch: the result does not depend on
  how devices share the batch, and only the last row of each device has to travel.

  Mixing commutes with scaling the images and with smoothing the labels, which come later.

  Args:
    batch: {'image': (B, H, W, C) uint8, 'label': (B,) int32 or (B, num_classes)}
    num_classes: of the model.
    mixup_alpha, cutmix_alpha: of the Beta distributions; 0 turns one of them off, not both.
    key: all the randomness.

  Returns:
    {'image': (B, H, W, C) float32 in [0, 255], 'label': (B, num_classes) float32}
  """
  images = batch['image'].astype(jnp.float32)
  _, height, width, _ = images.shape
  mixup_key, cutmix_key, choice_key = jax.random.split(key, 3)
  choices = []
  if mixup_alpha:
    choices.append(_mixup_weights(mixup_alpha, height, width, mixup_key))
  if cutmix_alpha:
    choices.append(_cutmix_weights(cutmix_alpha, height, width, cutmix_key))
  weights = choices[0]
  if len(choices) == 2:
    weights = jnp.where(jax.random.bernoulli(choice_key), *choices)

  def combine(own: Array, weight: Array) -> Array:
    return weight * own + (1 - weight) * jnp.roll(own, 1, axis=0)

  labels = targets(batch['label'], num_classes)
  return {'image': combine(images, weights), 'label': combine(labels, weights.mean())}
