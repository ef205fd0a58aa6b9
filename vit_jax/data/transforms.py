"""What happens to one image on its way into a batch: crops, flips, colours, erased parts.

All takes and gives (H, W, C) uint8. Training images are resized without antialiasing, as those
the released models were trained with (google-research/vision_transformer, input_pipeline.py);
`Augmentation.antialias` chooses otherwise. Test images always are antialiased: the accuracies of
the released weights are reproduced so.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from vit_jax.data import image_ops as ops
from vit_jax.data.images import Box, Picture, of_pixels
from vit_jax.data.randaugment import POLICIES, randaugment
from vit_jax.errors import UserError

CROPS = ('inception', 'resize', 'random', 'central')


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Random changes to a training image, in the order in which they are made.

  Attributes:
    crop: 'inception' (a random area and aspect ratio, arXiv 1409.4842), 'resize' (all of it,
      whatever its ratio), 'random' or 'central' (resized to `resize_small`, padded by `pad`, then
      cut out at whole pixels).
    area: smallest and largest share of the image an inception crop covers.
    resize_small: the shorter side before a random or central crop; 0: what just covers the crop.
    pad: gray pixels on each side before a random or central crop.
    antialias: when shrinking, average over all pixels.
    reduced_decoding: JPEGs of which at least twice as many pixels (in height and width) would be
      decoded as are needed are decoded at 1/2, 1/4 or 1/8 of their size: large photos several
      times as fast, and smoother than by picking pixels.
    shift: largest translation, as a share of height and width.
    scale: largest relative change of size.
    rotate: largest rotation, in degrees.
    flip: mirror left and right with probability 1/2.
    randaugment: 'none' or one of `randaugment.POLICIES`.
    randaugment_layers, randaugment_magnitude, randaugment_std: its arguments.
    jitter: largest relative changes of brightness, contrast and saturation, and of the hue (0.5:
      half the colour circle).
    erase_probability: of erasing a rectangle (arXiv 1708.04896).
    erase_area: smallest and largest share of the image it covers.
    erase_ratio: smallest and largest height by width.
    erase_noise: random pixels in its place rather than gray.
  """

  crop: str
  area: tuple[float, float]
  resize_small: int
  pad: int
  antialias: bool
  reduced_decoding: bool
  shift: float
  scale: float
  rotate: float
  flip: bool
  randaugment: str
  randaugment_layers: int
  randaugment_magnitude: float
  randaugment_std: float
  jitter: tuple[float, float, float, float]
  erase_probability: float
  erase_area: tuple[float, float]
  erase_ratio: tuple[float, float]
  erase_noise: bool

  def __post_init__(self):
    def check(name: str, fine: Callable[[object], bool], rule: str) -> None:
      try:
        is_fine = fine(getattr(self, name))
      except TypeError:
        is_fine = False
      if not is_fine:
        raise UserError(f'config.data.augment.{name} is {getattr(self, name)!r}; {rule}.')

    policies = ('none', *POLICIES)
    check('crop', lambda x: x in CROPS, f'choose one of {", ".join(CROPS)}')
    check('randaugment', lambda x: x in policies, f'choose one of {", ".join(policies)}')
    for name, most in {'resize_small': 2**16, 'pad': 2**12, 'shift': 1, 'rotate': 360,
                       'randaugment_layers': 100, 'randaugment_magnitude': 2**10,
                       'randaugment_std': 2**10}.items():  # fmt: skip
      check(name, lambda x, most=most: 0 <= x <= most, f'it must be at least 0 and at most {most}')
    check('scale', lambda x: 0 <= x < 1, 'it must be at least 0 and less than 1')
    check('erase_probability', lambda x: 0 <= x <= 1, 'it must be at least 0 and at most 1')
    for name in ('area', 'erase_area'):
      check(name, lambda x: len(x) == 2 and 0 < x[0] <= x[1] <= 1,
            'it takes two shares, 0 < least <= most <= 1')  # fmt: skip
    check('erase_ratio', lambda x: len(x) == 2 and 0 < x[0] <= x[1],
          'it takes two ratios, 0 < least <= most')  # fmt: skip
    check('jitter', lambda x: len(x) == 4 and min(x) >= 0 and x[3] <= 0.5,
          'it takes four changes, none negative; that of the hue is at most 0.5')  # fmt: skip

  def check_channels(self, channels: int) -> None:
    """Raises `UserError` if images with so many channels cannot be changed like this."""
    if channels == 3:
      return
    needs = {'randaugment': self.randaugment != 'none', 'jitter': any(self.jitter[2:])}
    for name, needed in needs.items():
      if needed:
        raise UserError(
            f'config.data.augment.{name} is {getattr(self, name)!r}, which changes colours, but '
            f'the images have {channels} channel{"s"[: channels != 1]}, not the 3 of RGB.'
        )


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
    picture: Picture,
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
      image, (max(round(height * zoom), size[0] - 2 * pad), max(round(width * zoom),
              size[1] - 2 * pad)), antialias
  )  # fmt: skip
  if pad:
    image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), constant_values=ops.FILL)
  top, left = place(image.shape[0] - size[0]), place(image.shape[1] - size[1])
  return image[top : top + size[0], left : left + size[1]]


def crop(
    picture: Picture, size: tuple[int, int], how: Augmentation, rng: np.random.Generator
) -> np.ndarray:
  """The part of a picture that `how.crop` says, as (*size, C); only that much is decoded."""
  if how.crop in ('inception', 'resize'):
    box = None
    if how.crop == 'inception':
      box = inception_box(picture.height, picture.width, how.area, rng)
    image = picture.pixels(box, size if how.reduced_decoding else None)
    return ops.resize(image, size, how.antialias)
  shorter = how.resize_small or min(size)
  cover = shorter * size[0] / min(size), shorter * size[1] / min(size)
  places = {'random': lambda free: int(rng.integers(free + 1)), 'central': lambda free: free // 2}
  return _covering_crop(picture, size, cover, places[how.crop], how.antialias, how.pad)


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


def random_erase(image: np.ndarray, how: Augmentation, rng: np.random.Generator) -> np.ndarray:
  """A random rectangle replaced by gray or noise; nothing if ten rectangles do not fit."""
  height, width, channels = image.shape
  for _ in range(10):
    target = height * width * rng.uniform(*how.erase_area)
    ratio = math.exp(rng.uniform(math.log(how.erase_ratio[0]), math.log(how.erase_ratio[1])))
    h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
    if 0 < h < height and 0 < w < width:
      top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
      image = image.copy()
      image[top : top + h, left : left + w] = (
          rng.integers(0, 256, (h, w, channels), np.uint8) if how.erase_noise else ops.FILL
      )
      return image
  return image


def augment(
    picture: Picture, size: tuple[int, int], how: Augmentation, rng: np.random.Generator
) -> np.ndarray:
  """A training example as (*size, C) uint8; all randomness comes from `rng`.

  Raises:
    BadExampleError: when the picture is damaged.
  """
  image = crop(picture, size, how, rng)
  if how.shift or how.scale or how.rotate:
    image = random_affine(image, how.shift, how.scale, how.rotate, rng)
  if how.flip and rng.random() < 0.5:
    image = ops.flip(image)
  if how.randaugment != 'none':
    image = randaugment(
        image, how.randaugment, how.randaugment_layers, how.randaugment_magnitude,
        how.randaugment_std, rng,
    )  # fmt: skip
  if any(how.jitter):
    image = color_jitter(image, how.jitter, rng)
  if rng.random() < how.erase_probability:
    image = random_erase(image, how, rng)
  return np.ascontiguousarray(image)


def central_crop(
    picture: Picture | np.ndarray, size: tuple[int, int], fraction: float
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
