"""Makes the input of a model from an image in tests and predictions: `preprocess`."""

import math

import numpy as np

from vit_jax.config import Preprocessing
from vit_jax.data.augmentation.image_ops import FILL
from vit_jax.data.augmentation.resampling import resize
from vit_jax.data.augmentation.torchvision_resize import resize_as_torchvision
from vit_jax.data.decoding.box import Box


def preprocess(
  image: np.ndarray, size: tuple[int, int], preprocessing: Preprocessing
) -> np.ndarray:
  """Resizes, then crops or pads an image, following `preprocessing`.

  Args:
    image: (H, W, C) uint8.
    size: (height, width), pixels.
    preprocessing: resize rule, crop fraction, interpolation and rounding.

  Returns:
    (*size, C) uint8.

  Raises:
    UserError: when `preprocessing.fill` has another number of channels.
  """
  resized = _resized_size((image.shape[0], image.shape[1]), size, preprocessing)
  image = _resize(image, resized, preprocessing, _central_box(resized, size, preprocessing))
  if preprocessing.resize == 'border':
    image = _pad(image, size, preprocessing)
  return np.ascontiguousarray(image)


def _resize(
  image: np.ndarray, size: tuple[int, int], preprocessing: Preprocessing, box: Box
) -> np.ndarray:
  """The part of the resized image in a box."""
  interpolation, antialias = preprocessing.interpolation, preprocessing.antialias
  if preprocessing.rounding == 'transformers' and antialias:
    return resize_as_torchvision(image, size, interpolation, box)
  as_tensorflow = preprocessing.rounding == 'tensorflow'
  return resize(image, size, antialias, interpolation, as_tensorflow, box)


def _resized_size(
  old: tuple[int, int], size: tuple[int, int], preprocessing: Preprocessing
) -> tuple[int, int]:
  """The (height, width) to which an image of `old` = (height, width) is resized."""
  keep, is_tensorflow = preprocessing.resize, preprocessing.rounding == 'tensorflow'
  to_integer = round if is_tensorflow else math.floor
  target = [max(to_integer(side / preprocessing.crop_fraction), side) for side in size]
  if keep == 'squash':
    return target[0], target[1]
  pairs = list(zip(old, target, strict=True))
  if is_tensorflow:  # in float32: resize_small in big_vision/pp/ops_image.py
    ratios = [np.float32(new) / np.float32(side) for side, new in pairs]
    factor = max(ratios) if keep == 'crop' else min(ratios)
    resized = [round(float(np.float32(side) * factor)) for side in old]
  elif keep == 'crop' and target[0] == target[1]:  # torchvision's Resize(shorter side)
    resized = [target[0] * side // min(old) for side in old]
  else:  # timm's ResizeKeepRatio, which rounds
    ratios = [side / new for side, new in pairs]
    ratio = min(ratios) if keep == 'crop' else max(ratios)
    resized = [round(side / ratio) for side in old]
  least = target if keep == 'crop' else (1, 1)
  return max(resized[0], least[0]), max(resized[1], least[1])


def _central_box(old: tuple[int, int], size: tuple[int, int], preprocessing: Preprocessing) -> Box:
  """The central `size` of an image of `old`, both (height, width), or as much as there is."""
  excess = [max(side - new, 0) for side, new in zip(old, size, strict=True)]
  is_torchvision = preprocessing.rounding == 'torchvision'
  top, left = (round(each / 2) if is_torchvision else each // 2 for each in excess)
  return Box(left, top, min(left + size[1], old[1]), min(top + size[0], old[0]))


def _pad(image: np.ndarray, size: tuple[int, int], preprocessing: Preprocessing) -> np.ndarray:
  """Surrounds an image by a border where it is smaller than `size`."""
  channels, fill = image.shape[2], preprocessing.fill or (FILL,)
  if len(fill) not in (1, channels):
    preprocessing.refuse('fill', f'the image has {channels} channels')
  height, width = (max(new, side) for new, side in zip(size, image.shape, strict=False))
  padded = np.empty((height, width, channels), np.uint8)
  padded[...] = fill
  top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
  padded[top : top + image.shape[0], left : left + image.shape[1]] = image
  return padded
