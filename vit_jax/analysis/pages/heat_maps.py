"""Small pictures for a page, as data URIs: images, maps of patches, filters, similarities."""

import math

import numpy as np
from PIL import Image

from vit_jax.data_uri import picture_uri

_MAX_TILES = 16  # along a side of the similarities
# From dark to bright, also for those who do not see all colors: [position, red, green, blue].
_COLORS = np.array(
  [
    [0.0, 13, 8, 40],
    [0.2, 72, 16, 106],
    [0.4, 144, 38, 111],
    [0.6, 217, 70, 78],
    [0.8, 250, 143, 46],
    [1.0, 252, 240, 150],
  ]
)


def color_ramp() -> np.ndarray:
  """(256, 4) uint8: red, green, blue and opacity of a value from 0 to 255, over an image."""
  values = np.linspace(0, 1, 256)
  colors = [np.interp(values, _COLORS[:, 0], _COLORS[:, channel]) for channel in (1, 2, 3)]
  opacity = 255 * 0.85 * values**0.85
  return np.rint(np.stack([*colors, opacity], axis=-1)).astype(np.uint8)


def image_uri(image: np.ndarray) -> str:
  """An image (H, W, C) in [-1, 1]; of another number of channels than three, their mean."""
  pixels = np.clip(np.rint((np.asarray(image, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)
  if pixels.shape[-1] != 3:
    pixels = np.rint(pixels.mean(axis=-1)).astype(np.uint8)
  return picture_uri(Image.fromarray(pixels))


def overlay_uri(patch_map: np.ndarray) -> str:
  """A map (h, w) in [0, 1] as (h, w) pixels in the colors of `color_ramp`, with opacity."""
  values = np.rint(np.clip(patch_map, 0, 1) * 255).astype(np.uint8)
  return picture_uri(Image.fromarray(color_ramp()[values]))


def filter_uri(component: np.ndarray) -> str:
  """A filter (P, P, C), in which 0 is gray."""
  return image_uri(component / max(np.abs(component).max(), 1e-12))


def similarity_uri(similarity: np.ndarray) -> tuple[str, int]:
  """A map for each patch of (h, w, h, w) in [-1, 1], at its place; or for every second one, ….

  Returns:
    The picture, one pixel for a value, and the step between patches that have a map.
  """
  step = math.ceil(max(similarity.shape) / _MAX_TILES)
  tiles = similarity[step // 2 :: step, step // 2 :: step]
  shades = color_ramp()[np.rint((tiles + 1) * 127.5).astype(np.uint8)]
  shades[..., 3] = 255
  shades = np.pad(shades, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)))  # transparent lines
  rows, columns, height, width, _ = shades.shape
  pixels = shades.swapaxes(1, 2).reshape(rows * height, columns * width, 4)[:-1, :-1]
  return picture_uri(Image.fromarray(np.ascontiguousarray(pixels))), step
