"""Random changes to a training image, (H, W, C) uint8.

It is resized without antialiasing unless `AugmentConfig.antialias` is set, as in the training of
the released models (google-research/vision_transformer, input_pipeline.py).
"""

import math
from collections.abc import Callable

import numpy as np

from vit_jax.config import AugmentConfig
from vit_jax.data.augmentation import image_ops as ops
from vit_jax.data.augmentation.randaugment import randaugment
from vit_jax.data.augmentation.resampling import resize
from vit_jax.data.decoding.box import Box
from vit_jax.data.decoding.images import LazyImage


def inception_box(
  height: int, width: int, area: tuple[float, float], rng: np.random.Generator
) -> Box:
  """Draws a crop of random area (shares of the image), aspect ratio (3/4 to 4/3) and position.

  Like `tf.image.sample_distorted_bounding_box`, it draws the ratio, then the height uniformly from
  those that the area and the image allow. So small crops are more frequent than with a uniform
  area: of a 500 x 375 image the mean is 34 %. After 100 draws that do not fit, it returns the whole
  image.
  """
  min_area, max_area = area[0] * height * width, area[1] * height * width
  for _ in range(100):
    ratio = rng.uniform(3 / 4, 4 / 3)
    max_height = min(round(math.sqrt(max_area / ratio)), height, int((width + 0.499) / ratio))
    min_height = min(round(math.sqrt(min_area / ratio)), max_height)
    h = int(rng.integers(min_height, max_height + 1))
    w = round(h * ratio)
    if min_area <= h * w <= max_area and 0 < h <= height and 0 < w <= width:
      left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
      return Box(left, top, left + w, top + h)
  return Box(0, 0, width, height)


def _crop_resized(
  image: LazyImage,
  size: tuple[int, int],
  cover: tuple[float, float],
  choose_offset: Callable[[int], int],
  antialias: bool,
  pad: int = 0,
) -> np.ndarray:
  """Resizes an image, keeping its aspect ratio, until it just covers `cover`; crops it to `size`.

  `choose_offset` maps the number of excess pixels to how many of them lie before the crop; `pad`
  gray pixels are added on each side first.
  """
  max_side = 8 * min(image.height, image.width)  # some of a long, thin image is enough
  height, width = min(image.height, max_side), min(image.width, max_side)
  top, left = choose_offset(image.height - height), choose_offset(image.width - width)
  pixels = image.pixels(Box(left, top, left + width, top + height))
  # With padding, or a smaller `cover`, at least as much as is cropped.
  min_height, min_width = size[0] - 2 * pad, size[1] - 2 * pad
  zoom = max(max(cover[0], min_height) / height, max(cover[1], min_width) / width)
  resized = max(round(height * zoom), min_height), max(round(width * zoom), min_width)
  pixels = resize(pixels, resized, antialias)
  if pad:
    pixels = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), constant_values=ops.FILL)
  top, left = choose_offset(pixels.shape[0] - size[0]), choose_offset(pixels.shape[1] - size[1])
  return pixels[top : top + size[0], left : left + size[1]]


def _crop_squashed(
  image: LazyImage,
  size: tuple[int, int],
  cover: tuple[float, float],
  config: AugmentConfig,
  rng: np.random.Generator,
) -> np.ndarray:
  """Resizes the whole image to `cover`, changing its aspect ratio; crops it to `size` at random."""
  height, width = max(round(cover[0]), size[0]), max(round(cover[1]), size[1])
  pixels = image.pixels(None, (height, width) if config.reduced_decoding else None)
  pixels = resize(pixels, (height, width), config.antialias)
  top, left = int(rng.integers(height - size[0] + 1)), int(rng.integers(width - size[1] + 1))
  return pixels[top : top + size[0], left : left + size[1]]


def crop(
  image: LazyImage, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
  """Crops and resizes an image by `config.crop` to (*size, C); decodes only what is needed."""
  if config.crop in ('inception', 'resize'):
    box = None
    if config.crop == 'inception':
      box = inception_box(image.height, image.width, config.area, rng)
    pixels = image.pixels(box, size if config.reduced_decoding else None)
    return resize(pixels, size, config.antialias)
  shorter = config.resize_small or min(size)
  cover = shorter * size[0] / min(size), shorter * size[1] / min(size)
  if config.crop == 'squash':
    return _crop_squashed(image, size, cover, config, rng)
  offsets = {'random': lambda excess: int(rng.integers(excess + 1)), 'central': _half}
  return _crop_resized(image, size, cover, offsets[config.crop], config.antialias, config.pad)


def _half(excess: int) -> int:
  return excess // 2


def random_affine(
  image: np.ndarray, shift: float, scale: float, rotate: float, rng: np.random.Generator
) -> np.ndarray:
  """Translates, scales and rotates at random about the center; the border is repeated.

  By at most a share `shift` of height and width, a relative change `scale` of the size, and
  `rotate` degrees.
  """
  height, width = image.shape[:2]
  degrees = rng.uniform(-rotate, rotate)
  zoom = 1 + rng.uniform(-scale, scale)
  dx, dy = rng.uniform(-shift, shift) * width, rng.uniform(-shift, shift) * height
  matrix = ops.affine_matrix(height, width, degrees, zoom, dx, dy)
  return ops.warp_affine(image, matrix, bilinear=True, replicate_border=True)


def color_jitter(
  image: np.ndarray, strengths: tuple[float, ...], rng: np.random.Generator
) -> np.ndarray:
  """Changes brightness, contrast, saturation and hue in random order, like torchvision."""
  operations = (ops.brightness, ops.contrast, ops.color, ops.hue)
  for i in rng.permutation(4):
    if strength := strengths[i]:
      low, high = (-strength, strength) if i == 3 else (max(1 - strength, 0), 1 + strength)
      image = operations[i](image, rng.uniform(low, high))
  return image


def random_erase(image: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
  """Fills a random rectangle with gray or noise; nothing after ten draws that do not fit."""
  height, width, channels = image.shape
  for _ in range(10):
    target = height * width * rng.uniform(*config.erase_area)
    ratio = math.exp(rng.uniform(math.log(config.erase_ratio[0]), math.log(config.erase_ratio[1])))
    h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
    if 0 < h < height and 0 < w < width:
      top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
      fill = rng.integers(0, 256, (h, w, channels), np.uint8) if config.erase_noise else ops.FILL
      image = image.copy()
      image[top : top + h, left : left + w] = fill
      return image
  return image


def augment(
  image: LazyImage, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
  """Makes a training example, (*size, C) uint8; `rng` is its only source of randomness.

  Raises:
    BadExampleError: for a damaged image.
  """
  pixels = crop(image, size, config, rng)
  if config.shift or config.scale or config.rotate:
    pixels = random_affine(pixels, config.shift, config.scale, config.rotate, rng)
  if config.flip and rng.random() < 0.5:
    pixels = ops.flip(pixels)
  if config.randaugment != 'none':
    layers, magnitude = config.randaugment_layers, config.randaugment_magnitude
    pixels = randaugment(pixels, config.randaugment, layers, magnitude, config.randaugment_std, rng)
  if any(config.jitter):
    pixels = color_jitter(pixels, config.jitter, rng)
  if rng.random() < config.erase_probability:
    pixels = random_erase(pixels, config, rng)
  return np.ascontiguousarray(pixels)
