"""RandAugment (arXiv 1909.13719): a few random operations, all of one magnitude.

Two published variants. 'augreg' trained the released AugReg models (arXiv 2106.10270;
google-research/big_vision, pp/autoaugment.py): every operation is applied, magnitudes above 10 are
allowed, pixels are the nearest ones; translations and cutouts are in pixels of 224-px images, so a
small image can leave the frame. 'timm' (huggingface/pytorch-image-models,
data/auto_augment.py) skips each operation with probability 1/2, draws the magnitude from a normal
distribution clipped to [0, 10], translates by a share of the image and interpolates;
'timm_increasing' (its inc1) reverses the operations that weaken with the magnitude.
"""

import functools
from collections.abc import Callable

import numpy as np

from vit_jax.data.augmentation import image_ops as ops

# (magnitude, image, rng) -> the arguments of an operation after the image.
DrawArguments = Callable[[float, np.ndarray, np.random.Generator], tuple]
Policy = tuple[tuple[Callable[..., np.ndarray], DrawArguments], ...]


def _sign(rng: np.random.Generator) -> int:
  return 1 if rng.random() < 0.5 else -1


def _no_arguments(magnitude: float, image: np.ndarray, rng: np.random.Generator) -> tuple:
  return ()


def _signed(maximum: float) -> DrawArguments:
  """At magnitude 10: `maximum` or its negative."""
  return lambda magnitude, image, rng: (_sign(rng) * magnitude / 10 * maximum,)


def _signed_share(axis: int, maximum: float) -> DrawArguments:
  """At magnitude 10: that share of the height (axis 0) or width (1) or its negative, in pixels."""
  return lambda magnitude, image, rng: (_sign(rng) * magnitude / 10 * maximum * image.shape[axis],)


def _factor(magnitude: float, image: np.ndarray, rng: np.random.Generator) -> tuple:
  """0.1 to 1.9; 1, which changes nothing, at magnitude 5."""
  return (magnitude / 10 * 1.8 + 0.1,)


def _increasing_factor(magnitude: float, image: np.ndarray, rng: np.random.Generator) -> tuple:
  """1 at magnitude 0; 0.1 or 1.9 at magnitude 10."""
  return (max(0.1, 1 + _sign(rng) * magnitude / 10 * 0.9),)


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """AugReg's contrast: for the mean brightness, the published code takes num_pixels // 256."""
  return ops.contrast(image, factor, middle=min(image.shape[0] * image.shape[1] // 256, 255))


def _geometry(bilinear: bool, x: DrawArguments, y: DrawArguments) -> Policy:
  """Rotation, shears, and translations by `x` and `y`."""
  operations = (ops.rotate, ops.shear_x, ops.shear_y, ops.translate_x, ops.translate_y)
  arguments = (_signed(30), _signed(0.3), _signed(0.3), x, y)
  interpolated = (functools.partial(op, bilinear=bilinear) for op in operations)
  return tuple(zip(interpolated, arguments, strict=True))


_AUGREG: Policy = (
  (ops.autocontrast, _no_arguments),
  (ops.equalize, _no_arguments),
  (ops.invert, _no_arguments),
  # At least one bit: a shift by eight bits acts as one by seven in the published code.
  (ops.posterize, lambda magnitude, *_: (min(max(int(magnitude / 10 * 4), 1), 8),)),
  # The published threshold wraps at 8 bits: 0 at magnitude 10, 128 at magnitude 15.
  (ops.solarize, lambda magnitude, *_: (int(magnitude / 10 * 256) % 256,)),
  (ops.color, _factor),
  (_contrast, _factor),
  (ops.brightness, _factor),
  (ops.sharpness, _factor),
  *_geometry(bilinear=False, x=_signed(100), y=_signed(100)),  # pixels
  (ops.cutout, lambda magnitude, _, rng: (int(magnitude / 10 * 40), rng.random(), rng.random())),
  (ops.solarize_add, lambda magnitude, *_: (int(magnitude / 10 * 110),)),
)
_TIMM_BOTH: Policy = (
  (ops.autocontrast, _no_arguments),
  (ops.equalize, _no_arguments),
  (ops.invert, _no_arguments),
  (ops.solarize_add, lambda magnitude, *_: (int(magnitude / 10 * 110),)),
  *_geometry(bilinear=True, x=_signed_share(1, 0.45), y=_signed_share(0, 0.45)),
)
_ENHANCE = (ops.color, ops.contrast, ops.brightness, ops.sharpness)
_TIMM: Policy = (
  *_TIMM_BOTH,
  (ops.posterize, lambda magnitude, *_: (int(magnitude / 10 * 4),)),
  (ops.solarize, lambda magnitude, *_: (int(magnitude / 10 * 256),)),
  *((op, _factor) for op in _ENHANCE),
)
_TIMM_INCREASING: Policy = (
  *_TIMM_BOTH,
  (ops.posterize, lambda magnitude, *_: (4 - int(magnitude / 10 * 4),)),
  (ops.solarize, lambda magnitude, *_: (256 - int(magnitude / 10 * 256),)),
  *((op, _increasing_factor) for op in _ENHANCE),
)
POLICIES = {'augreg': _AUGREG, 'timm': _TIMM, 'timm_increasing': _TIMM_INCREASING}


def randaugment(
  image: np.ndarray,
  policy: str,
  layers: int,
  magnitude: float,
  std: float,
  rng: np.random.Generator,
) -> np.ndarray:
  """Applies `layers` random operations in turn to (H, W, 3) uint8.

  Args:
    image: is not modified.
    policy: a key of `POLICIES`.
    layers: number of operations.
    magnitude: of each, up to 10 for timm's and 20 for AugReg's.
    std: timm: of the normal distribution around `magnitude`.
    rng: the only source of randomness.
  """
  table = POLICIES[policy]
  for _ in range(layers):
    op, draw_arguments = table[rng.integers(len(table))]
    drawn = magnitude
    if policy != 'augreg':
      if rng.random() < 0.5:
        continue
      drawn = min(max(rng.normal(magnitude, std), 0), 10)
    image = op(image, *draw_arguments(drawn, image, rng))
  return image
