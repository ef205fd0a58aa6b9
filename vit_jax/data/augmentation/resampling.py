"""Resizes an image, (H, W, C) uint8, as TensorFlow, Pillow and torchvision do."""

import functools
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

_PILLOW_FILTERS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
  'nearest': Image.Resampling.NEAREST,
}
_MAX_SIDE = 2**14  # pixels


def resize(
  image: np.ndarray,
  size: tuple[int, int],
  antialias: bool,
  interpolation: str = 'bilinear',
  as_tensorflow: bool = False,
) -> np.ndarray:
  """Resizes to `size` = (height, width), with half-pixel centers.

  Without antialiasing it equals `tf.image.resize(image, size, interpolation)`, with which the
  released models were trained and fine-tuned. With it (Pillow, whose filter widens
  with the reduction) it equals torchvision, and `tf.image.resize(…, antialias=True)`; all of them
  within one gray level. 'area' averages over the area of a pixel, as TensorFlow does.

  Args:
    image: (H, W, C) uint8.
    size: (height, width), pixels.
    antialias: average over more pixels when shrinking; 'area' and 'nearest' ignore it.
    interpolation: 'bilinear', 'bicubic', 'area', 'lanczos' (always antialiased) or 'nearest'.
    as_tensorflow: antialiased 'bicubic' and 'lanczos' keep what overshoots [0, 255] along one axis
      until the other is done, as TensorFlow does; Pillow clips in between.
  """
  height, width = size
  if image.shape[:2] == (height, width):
    return image
  if interpolation == 'area':
    if height < image.shape[0] and width < image.shape[1]:  # the same, faster
      area = cv2.INTER_AREA
      return per_channel(lambda x: cv2.resize(x, (width, height), interpolation=area), image)
    return _resample(image, size, _area_weights)
  if interpolation in _KERNELS and (as_tensorflow or not antialias):
    weights = functools.partial(_kernel_weights, *_KERNELS[interpolation], antialias)
    return _resample(image, size, weights)
  if interpolation == 'bilinear' and not antialias:
    return per_channel(lambda x: cv2.resize(x, (width, height)), image)

  def pillow_resize(x: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(x).resize((width, height), _PILLOW_FILTERS[interpolation]))

  if image.shape[2] == 3:
    return pillow_resize(image)
  # One by one, because Pillow would read two or four channels as transparency.
  return np.stack([pillow_resize(image[..., i]) for i in range(image.shape[2])], axis=2)


def per_channel(operation: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
  """Applies an operation of OpenCV to three or four channels at once, to others one by one.

  OpenCV computes two channels less exactly, takes at most 128, and drops the axis of a single one.
  """
  if image.shape[2] in (3, 4):
    return operation(image)
  return np.stack([operation(image[..., i]) for i in range(image.shape[2])], axis=2)


def _resample(
  image: np.ndarray, size: tuple[int, int], weights: Callable[[int, int], np.ndarray]
) -> np.ndarray:
  """Resizes by matrices of weights, (new, old) for each side."""
  if max(image.shape[:2]) > _MAX_SIDE:  # so that the matrices stay small
    width, height = (min(side, _MAX_SIDE) for side in image.shape[1::-1])
    image = per_channel(
      lambda x: cv2.resize(x, (width, height), interpolation=cv2.INTER_AREA), image
    )
  rows, columns = (weights(old, new) for old, new in zip(image.shape, size, strict=False))
  pixels = np.tensordot(rows, image.astype(np.float32), axes=1)  # (height, W, C)
  pixels = np.einsum('wx,hxc->hwc', columns, pixels, optimize=True)
  return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _area_weights(old: int, new: int) -> np.ndarray:
  """(new, old): the share of each old pixel in the area of each new one."""
  start = np.arange(new)[:, None] * (old / new)
  pixel = np.arange(old)
  overlap = np.minimum(start + old / new, pixel + 1) - np.maximum(start, pixel)
  weights = np.clip(overlap, 0, None).astype(np.float32)
  return weights / weights.sum(axis=1, keepdims=True)


def _kernel_weights(
  kernel: Callable[[np.ndarray], np.ndarray], radius: int, antialias: bool, old: int, new: int
) -> np.ndarray:
  """(new, old): a kernel at each old pixel, widened when it shrinks if `antialias`; sums are 1."""
  distance = (np.arange(new)[:, None] + 0.5) * (old / new) - 0.5 - np.arange(old)
  x = np.abs(distance) / (max(old / new, 1) if antialias else 1)
  weights = np.where(x < radius, kernel(x), 0).astype(np.float32)
  return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: np.ndarray) -> np.ndarray:
  """The cubic kernel of Keys with a = -1/2."""
  near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
  return np.where(x <= 1, near, far)


def _lanczos(x: np.ndarray) -> np.ndarray:
  return np.sinc(x) * np.sinc(x / 3)


_KERNELS = {'bicubic': (_cubic, 2), 'lanczos': (_lanczos, 3)}  # and their radii in pixels
