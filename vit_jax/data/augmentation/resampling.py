"""Resizes an image, (H, W, C) uint8, as TensorFlow, Pillow and torchvision do."""

import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from vit_jax.data.decoding.box import Box, crop_pixels

_PILLOW_FILTERS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
  'nearest': Image.Resampling.NEAREST,
}
_MAX_PIXELS = 2**26  # of a resized image; of a larger one only the part that is asked for is made
_MAX_VALUES = 2**24  # that are converted to floats at a time
Weights = tuple[np.ndarray, np.ndarray]  # first pixel of each sum, (new,); of pixels, (new, taps)


def resize(
  image: np.ndarray,
  size: tuple[int, int],
  antialias: bool,
  interpolation: str = 'bilinear',
  as_tensorflow: bool = False,
  box: Box | None = None,
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
    box: the part of the resized image to return; None: all of it.
  """
  height, width = size
  if image.shape[:2] == (height, width):
    return crop_pixels(image, box)
  part = box or Box(0, 0, width, height)
  is_moderate = height * width <= _MAX_PIXELS
  if interpolation == 'bilinear' and not antialias and is_moderate:
    return crop_pixels(per_channel(lambda x: cv2.resize(x, (width, height)), image), box)
  if interpolation == 'area' and height < image.shape[0] and width < image.shape[1]:
    area = cv2.INTER_AREA
    whole = per_channel(lambda x: cv2.resize(x, (width, height), interpolation=area), image)
    return crop_pixels(whole, box)
  overshoots = interpolation in ('bicubic', 'lanczos')
  is_plain = interpolation == 'bilinear' and not antialias  # of an image too large for OpenCV
  if interpolation == 'area' or is_plain or (overshoots and (as_tensorflow or not antialias)):
    return _resample(image, size, antialias, interpolation, part)
  if is_moderate:  # the order of Pillow's axes, and so its rounding, depends on the sizes
    return crop_pixels(_resize_with_pillow(image, size, interpolation), box)
  return _resize_with_pillow(image, size, interpolation, part)


def _resize_with_pillow(
  image: np.ndarray, size: tuple[int, int], interpolation: str, part: Box | None = None
) -> np.ndarray:
  part = part or Box(0, 0, size[1], size[0])
  y, x = (old / new for old, new in zip(image.shape, size, strict=False))
  box = part.left * x, part.top * y, part.right * x, part.bottom * y

  def pillow_resize(x: np.ndarray) -> np.ndarray:
    resample = _PILLOW_FILTERS[interpolation]
    return np.asarray(Image.fromarray(x).resize((part.width, part.height), resample, box))

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
  image: np.ndarray, size: tuple[int, int], antialias: bool, interpolation: str, part: Box
) -> np.ndarray:
  """Resizes by weighted sums, and returns a part of the resized image."""
  ranges, pixels = ((part.top, part.bottom), (part.left, part.right)), image
  for axis in np.argsort(image.shape[:2])[::-1]:  # the longer side first, so that less is left
    old, new = image.shape[axis], size[axis]
    weights = make_weights(old, new, interpolation, antialias, *ranges[axis])
    pixels = np.moveaxis(sum_rows(np.moveaxis(pixels, axis, 0), *weights, np.float32), 0, axis)
  return np.ascontiguousarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def sum_rows(
  image: np.ndarray, first: np.ndarray, values: np.ndarray, dtype: type[np.floating]
) -> np.ndarray:
  """Weighted sums of rows: (old, …) to (new, …) of `dtype`; the weights as in `Weights`."""
  start, stop = int(first.min()), min(int(first.max()) + values.shape[1], image.shape[0])
  rows = image[start:stop].reshape(stop - start, -1)
  sums = np.empty((len(first), rows.shape[1]), dtype)
  step = max(_MAX_VALUES // (stop - start), 1)
  for left in range(0, rows.shape[1], step):
    block = rows[:, left : left + step].astype(dtype)
    for i, (row, weights) in enumerate(zip(first - start, values.astype(dtype), strict=True)):
      taps = block[row : row + len(weights)]
      sums[i, left : left + step] = weights[: len(taps)] @ taps
  return sums.reshape(len(first), *image.shape[1:])


def make_weights(
  old: int, new: int, interpolation: str, antialias: bool, start: int, stop: int
) -> Weights:
  """The weights of `old` pixels in those of `new` from `start` to `stop`; their sums are 1."""
  scale = old / new
  if interpolation == 'area':  # the share of each old pixel in the area of each new one
    edges = np.arange(start, stop + 1) * scale
    first = np.floor(edges[:-1]).astype(int)
    pixel = first[:, None] + np.arange(math.ceil(scale) + 1)
    values = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    values = np.where(pixel < old, np.clip(values, 0, None), 0)
  else:
    kernel, radius = KERNELS[interpolation]
    width = max(scale, 1) if antialias else 1
    center = (np.arange(start, stop) + 0.5) * scale
    first = np.clip(np.floor(center - radius * width + 0.5), 0, None).astype(int)
    pixel = first[:, None] + np.arange(math.ceil(2 * radius * width) + 1)
    x = np.abs(pixel + 0.5 - center[:, None]) / width
    values = np.where((x < radius) & (pixel < old), kernel(x), 0)
  return first, values / values.sum(axis=1, keepdims=True)


def _triangle(x: np.ndarray) -> np.ndarray:
  return 1 - x


def _cubic(x: np.ndarray) -> np.ndarray:
  """The cubic kernel of Keys with a = -1/2."""
  near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
  return np.where(x <= 1, near, far)


def _lanczos(x: np.ndarray) -> np.ndarray:
  return np.sinc(x) * np.sinc(x / 3)


# Functions of the distance, up to a radius in pixels.
KERNELS = {'bilinear': (_triangle, 1), 'bicubic': (_cubic, 2), 'lanczos': (_lanczos, 3)}
