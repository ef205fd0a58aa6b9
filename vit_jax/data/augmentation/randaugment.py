"""RandAugment (arXiv 1909.13719): a few operations drawn from a table, all of one strength.

Two published variants. 'augreg' is what the released AugReg models were trained with (arXiv
2106.10270; google-research/big_vision, pp/autoaugment.py): always that many operations, magnitudes
beyond 10 allowed, nearest pixels. 'timm' (huggingface/pytorch-image-models,
data/auto_augment.py) skips each operation half of the time, draws the magnitude from a normal
distribution and cuts it to [0, 10], moves by shares of the image and interpolates;
'timm_increasing' (its inc1) turns around those operations that weaken with the magnitude.
"""

import functools
from collections.abc import Callable

import numpy as np

from vit_jax.data.augmentation import image_ops as ops

# The argument of an operation: (magnitude, image, rng) -> what follows the image.
Argument = Callable[[float, np.ndarray, np.random.Generator], tuple]
Policy = tuple[tuple[Callable[..., np.ndarray], Argument], ...]


def _sign(rng: np.random.Generator) -> int:
  return 1 if rng.random() < 0.5 else -1


def _nothing(level: float, image: np.ndarray, rng: np.random.Generator) -> tuple:
  return ()


def _either_way(most: float) -> Argument:
  """At magnitude 10: `most` or its negative."""
  return lambda level, image, rng: (_sign(rng) * level / 10 * most,)


def _share_of(axis: int, most: float) -> Argument:
  """At magnitude 10: that share of the height (0) or width (1), either way."""
  return lambda level, image, rng: (_sign(rng) * level / 10 * most * image.shape[axis],)


def _factor(level: float, image: np.ndarray, rng: np.random.Generator) -> tuple:
  """0.1 to 1.9: at magnitude 5 nothing changes."""
  return (level / 10 * 1.8 + 0.1,)


def _growing_factor(level: float, image: np.ndarray, rng: np.random.Generator) -> tuple:
  """1 at magnitude 0; 0.1 or 1.9 at magnitude 10."""
  return (max(0.1, 1 + _sign(rng) * level / 10 * 0.9),)


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """The published code divides the number of pixels by 256 where it means to take their mean."""
  return ops.contrast(image, factor, middle=min(image.shape[0] * image.shape[1] // 256, 255))


def _geometry(smooth: bool, x: Argument, y: Argument) -> Policy:
  turn, *others = (
    functools.partial(op, smooth=smooth)
    for op in (ops.rotate, ops.shear_x, ops.shear_y, ops.translate_x, ops.translate_y)
  )
  arguments = (_either_way(0.3), _either_way(0.3), x, y)
  return ((turn, _either_way(30)), *zip(others, arguments, strict=True))


_AUGREG: Policy = (
  (ops.autocontrast, _nothing),
  (ops.equalize, _nothing),
  (ops.invert, _nothing),
  # The published shifts by eight bits are shifts by seven.
  (ops.posterize, lambda level, *_: (min(max(int(level / 10 * 4), 1), 8),)),
  # The published threshold is an 8-bit number: that of magnitude 10 is 0, that of 15 is 128.
  (ops.solarize, lambda level, *_: (int(level / 10 * 256) % 256,)),
  (ops.color, _factor),
  (_contrast, _factor),
  (ops.brightness, _factor),
  (ops.sharpness, _factor),
  *_geometry(smooth=False, x=_either_way(100), y=_either_way(100)),  # pixels
  (ops.cutout, lambda level, image, rng: (int(level / 10 * 40), rng.random(), rng.random())),
  (ops.solarize_add, lambda level, *_: (int(level / 10 * 110),)),
)
_TIMM_BOTH: Policy = (
  (ops.autocontrast, _nothing),
  (ops.equalize, _nothing),
  (ops.invert, _nothing),
  (ops.solarize_add, lambda level, *_: (int(level / 10 * 110),)),
  *_geometry(smooth=True, x=_share_of(1, 0.45), y=_share_of(0, 0.45)),
)
_ENHANCE = (ops.color, ops.contrast, ops.brightness, ops.sharpness)
_TIMM: Policy = (
  *_TIMM_BOTH,
  (ops.posterize, lambda level, *_: (int(level / 10 * 4),)),
  (ops.solarize, lambda level, *_: (int(level / 10 * 256),)),
  *((op, _factor) for op in _ENHANCE),
)
_TIMM_INCREASING: Policy = (
  *_TIMM_BOTH,
  (ops.posterize, lambda level, *_: (4 - int(level / 10 * 4),)),
  (ops.solarize, lambda level, *_: (256 - int(level / 10 * 256),)),
  *((op, _growing_factor) for op in _ENHANCE),
)
POLICIES: dict[str, Policy] = {
  'augreg': _AUGREG,
  'timm': _TIMM,
  'timm_increasing': _TIMM_INCREASING,
}


def randaugment(
  image: np.ndarray,
  policy: str,
  layers: int,
  magnitude: float,
  std: float,
  rng: np.random.Generator,
) -> np.ndarray:
  """`layers` operations, one after the other, on (H, W, 3) uint8.

  Args:
    image: stays as it is.
    policy: a key of `POLICIES`.
    layers: how many operations.
    magnitude: of each; 10 is the strongest of timm, AugReg goes up to 20.
    std: timm's: of the normal distribution around `magnitude`.
    rng: all the randomness.
  """
  table = POLICIES[policy]
  for _ in range(layers):
    op, argument = table[rng.integers(len(table))]
    level = magnitude
    if policy != 'augreg':
      if rng.random() < 0.5:
        continue
      level = min(max(rng.normal(magnitude, std), 0), 10)
    image = op(image, *argument(level, image, rng))
  return image
