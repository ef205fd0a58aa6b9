"""What happens to one image on its way into a batch: crops, flips, colours, erased parts.

All takes and gives (H, W, C) uint8. Training images are resized without antialiasing, as those
the released models were trained with (google-research/vision_transformer, input_pipeline.py);
`AugmentConfig.antialias` chooses otherwise. Test images always are antialiased: the accuracies of
the released weights are reproduced so.
"""

import math
from collections.abc import Callable

import numpy as np

from vit_jax.config import AugmentConfig
from vit_jax.data.augmentation import image_ops as ops
from vit_jax.data.augmentation.randaugment import randaugment
from vit_jax.data.decoding.images import Box, LazyImage, of_pixels


def inception_box(
  height: int, width: int, area: tuple[float, float], rng: np.random.Generator
) -> Box:
  """A crop of random size, aspect ratio (3/4 to 4/3) and place; all of it if none is found.

  As `tf.image.sample_distorted_bounding_box` draws it: the ratio, then the height, evenly between
  the least and the most that area and image allow. So small crops are more frequent than if the
  area were drawn evenly: of a 500 x 375 image the mean is 34 %.
  """
  least, most = area[0] * height * width, area[1] * height * width
  for _ in range(100):
    ratio = rng.uniform(3 / 4, 4 / 3)
    tallest = min(round(math.sqrt(most / ratio)), height, int((width + 0.499) / ratio))
    h = int(rng.integers(min(round(math.sqrt(least / ratio)), tallest), tallest + 1))
    w = round(h * ratio)
    if least <= h * w <= most and 0 < h <= height and 0 < w <= width:
      left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
      return left, top, left + w, top + h
  return 0, 0, width, height


def _covering_crop(
  picture: LazyImage,
  size: tuple[int, int],
  cover: tuple[float, float],
  place: Callable[[int], int],
  antialias: bool,
  pad: int = 0,
) -> np.ndarray:
  """Resizes, keeping the aspect ratio, until `cover` is just covered; then cuts out `size`.

  `place` takes the number of pixels that are too many and says where to begin.
  """
  limit = 8 * min(picture.height, picture.width)  # of a long, thin image a part is enough
  height, width = min(picture.height, limit), min(picture.width, limit)
  top, left = place(picture.height - height), place(picture.width - width)
  image = picture.pixels((left, top, left + width, top + height))
  # With a border, or a smaller `cover`, no less than what is cut out.
  sides = [max(cover[i], size[i] - 2 * pad) for i in (0, 1)]
  zoom = max(sides[0] / height, sides[1] / width)
  image = ops.resize(
    image,
    (max(round(height * zoom), size[0] - 2 * pad), max(round(width * zoom), size[1] - 2 * pad)),
    antialias,
  )
  if pad:
    image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), constant_values=ops.FILL)
  top, left = place(image.shape[0] - size[0]), place(image.shape[1] - size[1])
  return image[top : top + size[0], left : left + size[1]]


def crop(
  picture: LazyImage, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
  """The part of a picture that `config.crop` says, as (*size, C); only that much is decoded."""
  if config.crop in ('inception', 'resize'):
    box = None
    if config.crop == 'inception':
      box = inception_box(picture.height, picture.width, config.area, rng)
    image = picture.pixels(box, size if config.reduced_decoding else None)
    return ops.resize(image, size, config.antialias)
  shorter = config.resize_small or min(size)
  cover = shorter * size[0] / min(size), shorter * size[1] / min(size)
  places = {'random': lambda free: int(rng.integers(free + 1)), 'central': lambda free: free // 2}
  return _covering_crop(picture, size, cover, places[config.crop], config.antialias, config.pad)


def random_affine(
  image: np.ndarray, shift: float, scale: float, rotate: float, rng: np.random.Generator
) -> np.ndarray:
  """A random translation, scaling and rotation about the centre; the border is repeated."""
  height, width = image.shape[:2]
  degrees = rng.uniform(-rotate, rotate)
  zoom = 1 + rng.uniform(-scale, scale)
  dx, dy = rng.uniform(-shift, shift) * width, rng.uniform(-shift, shift) * height
  return ops.warp(image, ops.turn(height, width, degrees, zoom, dx, dy), smooth=True, edge=True)


def color_jitter(
  image: np.ndarray, strengths: tuple[float, ...], rng: np.random.Generator
) -> np.ndarray:
  """Changes of brightness, contrast, saturation and hue, in random order, as torchvision has it."""
  changes = (ops.brightness, ops.contrast, ops.color)
  for i in rng.permutation(4):
    strength = strengths[i]
    if strength and i == 3:
      image = ops.hue(image, rng.uniform(-strength, strength))
    elif strength:
      image = changes[i](image, rng.uniform(max(1 - strength, 0), 1 + strength))
  return image


def random_erase(image: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
  """A random rectangle replaced by gray or noise; nothing if ten rectangles do not fit."""
  height, width, channels = image.shape
  for _ in range(10):
    target = height * width * rng.uniform(*config.erase_area)
    ratio = math.exp(rng.uniform(math.log(config.erase_ratio[0]), math.log(config.erase_ratio[1])))
    h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
    if 0 < h < height and 0 < w < width:
      top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
      image = image.copy()
      image[top : top + h, left : left + w] = (
        rng.integers(0, 256, (h, w, channels), np.uint8) if config.erase_noise else ops.FILL
      )
      return image
  return image


def augment(
  picture: LazyImage, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
  """A training example as (*size, C) uint8; all randomness comes from `rng`.

  Raises:
    BadExampleError: when the picture is damaged.
  """
  image = crop(picture, size, config, rng)
  if config.shift or config.scale or config.rotate:
    image = random_affine(image, config.shift, config.scale, config.rotate, rng)
  if config.flip and rng.random() < 0.5:
    image = ops.flip(image)
  if config.randaugment != 'none':
    image = randaugment(
      image,
      config.randaugment,
      config.randaugment_layers,
      config.randaugment_magnitude,
      config.randaugment_std,
      rng,
    )
  if any(config.jitter):
    image = color_jitter(image, config.jitter, rng)
  if rng.random() < config.erase_probability:
    image = random_erase(image, config, rng)
  return np.ascontiguousarray(image)


def central_crop(
  picture: LazyImage | np.ndarray, size: tuple[int, int], fraction: float
) -> np.ndarray:
  """A test example: the central part, `fraction` of what fits, as (*size, C) uint8.

  The image is resized until it covers `size / fraction`, then the centre of `size` is cut out
  (with 0.875 and 224 px: shorter side to 256, centre 224).
  """
  if isinstance(picture, np.ndarray):
    picture = of_pixels(picture)
  cover = round(size[0] / fraction), round(size[1] / fraction)
  image = _covering_crop(picture, size, cover, lambda free: free // 2, antialias=True)
  return np.ascontiguousarray(image)
