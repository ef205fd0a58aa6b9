"""What happens to one image: crops, flips and resizing, on (H, W, 3) uint8 arrays.

Resizing is bilinear and antialiased (Pillow), as in the pipelines the weights were trained with.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

from vit_jax.errors import UserError

CROPS = ('inception', 'resize')


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Random changes to a training image.

  Attributes:
    crop: 'inception' (a random area and aspect ratio, arXiv 1409.4842) or 'resize' (all of it).
    area: smallest and largest share of the image an inception crop covers.
    flip: mirror left and right with probability 1/2.
    shift: largest translation, as a share of height and width.
    scale: largest relative change of size.
    rotate: largest rotation, in degrees.
  """

  crop: str
  area: tuple[float, float]
  flip: bool
  shift: float
  scale: float
  rotate: float

  def __post_init__(self):
    if self.crop not in CROPS:
      raise UserError(
          f'config.data.augment.crop is {self.crop!r}; choose one of {", ".join(CROPS)}.'
      )
    if not (self.shift >= 0 and 0 <= self.scale < 1 and self.rotate >= 0):
      raise UserError(
          f'config.data.augment: shift is {self.shift}, scale {self.scale}, rotate {self.rotate}; '
          'none may be negative, and scale must be below 1.'
      )
    if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
      raise UserError(
          f'config.data.augment.area is {self.area}; it takes two shares, 0 < least <= most <= 1.'
      )


Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def resize(image: np.ndarray, size: tuple[int, int], box: Box | None = None) -> np.ndarray:
  """The part `box` of an image (all without one), resized to `size` = (height, width)."""
  height, width = size
  if box is None and image.shape[:2] == (height, width):
    return image
  return np.asarray(
      Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=box)
  )


def inception_box(
    height: int, width: int, area: tuple[float, float], rng: np.random.Generator
) -> Box:
  """A crop of random area, aspect ratio (3/4 to 4/3) and place; all of it after ten misses."""
  for _ in range(10):
    target = height * width * rng.uniform(*area)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
    if 0 < w <= width and 0 < h <= height:
      left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
      return int(left), int(top), int(left) + w, int(top) + h
  return 0, 0, width, height


def random_affine(
    image: np.ndarray, shift: float, scale: float, rotate: float, rng: np.random.Generator
) -> np.ndarray:
  """A random translation, scaling and rotation about the centre; the border is repeated."""
  height, width = image.shape[:2]
  angle = math.radians(rng.uniform(-rotate, rotate))
  zoom = 1 + rng.uniform(-scale, scale)
  dx, dy = rng.uniform(-shift, shift) * width, rng.uniform(-shift, shift) * height
  cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
  cx, cy = width / 2, height / 2
  # How far the corners of the output reach beyond the border of the input.
  half_width, half_height = cx + abs(dx), cy + abs(dy)
  reach = max(
      abs(cos) * half_width + abs(sin) * half_height - cx,
      abs(sin) * half_width + abs(cos) * half_height - cy,
  )
  margin = math.ceil(max(reach, 0)) + 1
  padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode='edge')
  # Pillow wants, for each output pixel, where it comes from in the (padded) input.
  x0 = cx + margin - cos * (cx + dx) - sin * (cy + dy)
  y0 = cy + margin + sin * (cx + dx) - cos * (cy + dy)
  return np.asarray(
      Image.fromarray(padded).transform(
          (width, height),
          Image.Transform.AFFINE,
          (cos, sin, x0, -sin, cos, y0),
          Image.Resampling.BILINEAR,
      )
  )


def augment(
    image: np.ndarray, size: tuple[int, int], how: Augmentation, rng: np.random.Generator
) -> np.ndarray:
  """A training example: (H, W, 3) uint8 -> (*size, 3) uint8; all randomness comes from `rng`."""
  box = None
  if how.crop == 'inception':
    box = inception_box(*image.shape[:2], how.area, rng)
  image = resize(image, size, box)
  if how.shift or how.scale or how.rotate:
    image = random_affine(image, how.shift, how.scale, how.rotate, rng)
  if how.flip and rng.random() < 0.5:
    image = np.asarray(Image.fromarray(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
  return image


def central_crop(image: np.ndarray, size: tuple[int, int], fraction: float) -> np.ndarray:
  """A test example: the central part, `fraction` of what fits, as (*size, 3) uint8.

  The image is resized until it covers `size / fraction`, then the centre of `size` is cut out
  (with 0.875 and 224 px: shorter side to 256, centre 224).
  """
  limit = 8 * min(image.shape[:2])  # of a long, thin image only the middle matters
  cut = [slice(max(side - limit, 0) // 2, max(side - limit, 0) // 2 + limit)
         for side in image.shape[:2]]  # fmt: skip
  image = image[cut[0], cut[1]]
  height, width = image.shape[:2]
  zoom = max(round(size[0] / fraction) / height, round(size[1] / fraction) / width)
  image = resize(image, (max(round(height * zoom), size[0]), max(round(width * zoom), size[1])))
  top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
  return np.ascontiguousarray(image[top : top + size[0], left : left + size[1]])
