"""Deterministic operations on one image, (H, W, C) uint8; the input is not modified.

They take any number of channels, except `gray`, `color` and `hue`, which need RGB. OpenCV does the
geometry: it is several times faster than Pillow and releases the interpreter's lock.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from vit_jax.data.augmentation.resampling import per_channel

# Examples are processed in parallel: threads inside an operation would compete with each other.
cv2.setNumThreads(0)
Matrix = Sequence[Sequence[float]]  # (2, 3)
_LEVELS = np.arange(256, dtype=np.float32)
_SMOOTHING_KERNEL = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's SMOOTH
_TRUNCATE = -0.499  # added, because OpenCV rounds where Pillow and TensorFlow truncate
FILL = 128  # pixels from beyond the image: middle gray, which the model sees as zero


def flip(image: np.ndarray) -> np.ndarray:
  """Mirrors left and right."""
  return per_channel(lambda x: cv2.flip(x, 1), image)


def warp_affine(
  image: np.ndarray, matrix: Matrix, *, bilinear: bool, replicate_border: bool = False
) -> np.ndarray:
  """Applies an affine transformation; the size stays the same.

  Args:
    image: (H, W, C) uint8.
    matrix: two rows (a, b, c): pixel (x, y) is read from (a x + b y + c, …), where (0, 0) is the
      center of the first pixel.
    bilinear: interpolate, rather than take the nearest pixel.
    replicate_border: beyond the image repeat its border, rather than fill with gray.
  """
  size, coefficients = image.shape[1::-1], np.array(matrix, np.float64)
  flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_LINEAR if bilinear else cv2.INTER_NEAREST)
  border = cv2.BORDER_REPLICATE if replicate_border else cv2.BORDER_CONSTANT
  return per_channel(
    lambda x: cv2.warpAffine(x, coefficients, size, None, flags, border, (FILL,) * 4), image
  )


def affine_matrix(
  height: int, width: int, degrees: float, zoom: float = 1.0, dx: float = 0.0, dy: float = 0.0
) -> Matrix:
  """The matrix for `warp_affine` that rotates about the center, enlarges, then translates.

  `degrees` are clockwise; `dx` and `dy` are pixels to the right and down.
  """
  angle = np.deg2rad(degrees)
  cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
  cx, cy = (width - 1) / 2, (height - 1) / 2
  return [
    [cos, sin, cx - cos * (cx + dx) - sin * (cy + dy)],
    [-sin, cos, cy + sin * (cx + dx) - cos * (cy + dy)],
  ]


def rotate(image: np.ndarray, degrees: float, bilinear: bool) -> np.ndarray:
  matrix = affine_matrix(image.shape[0], image.shape[1], degrees)
  return warp_affine(image, matrix, bilinear=bilinear)


def shear_x(image: np.ndarray, factor: float, bilinear: bool) -> np.ndarray:
  return warp_affine(image, [[1, factor, 0], [0, 1, 0]], bilinear=bilinear)


def shear_y(image: np.ndarray, factor: float, bilinear: bool) -> np.ndarray:
  return warp_affine(image, [[1, 0, 0], [factor, 1, 0]], bilinear=bilinear)


def translate_x(image: np.ndarray, pixels: float, bilinear: bool) -> np.ndarray:
  return warp_affine(image, [[1, 0, pixels], [0, 1, 0]], bilinear=bilinear)


def translate_y(image: np.ndarray, pixels: float, bilinear: bool) -> np.ndarray:
  return warp_affine(image, [[1, 0, 0], [0, 1, pixels]], bilinear=bilinear)


def _look_up(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
  """Replaces each level by its entry in a table of 256, clipped to [0, 255]."""
  table = np.clip(levels, 0, 255).astype(np.uint8)
  flat = np.ascontiguousarray(image).reshape(image.shape[0], -1)
  return cv2.LUT(flat, table).reshape(image.shape)


def _map_levels(image: np.ndarray, make_levels: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """Applies to each channel the table that `make_levels` computes from its histogram."""
  mapped = np.empty(image.shape, np.uint8)
  for i in range(image.shape[2]):
    channel = np.ascontiguousarray(image[..., i])
    histogram = cv2.calcHist([channel], [0], None, [256], [0, 256]).reshape(-1).astype(np.int64)
    mapped[..., i] = _look_up(channel, make_levels(histogram))
  return mapped


def autocontrast(image: np.ndarray) -> np.ndarray:
  """Stretches each channel to [0, 255]."""

  def levels(histogram: np.ndarray) -> np.ndarray:
    low, high = np.flatnonzero(histogram)[[0, -1]]
    if high == low:
      return _LEVELS
    scale = np.float32(255.0 / (high - low))
    return _LEVELS * scale - low * scale

  return _map_levels(image, levels)


def equalize(image: np.ndarray) -> np.ndarray:
  """Flattens the histogram of each channel, as Pillow and TensorFlow's AutoAugment do."""

  def levels(histogram: np.ndarray) -> np.ndarray:
    last = histogram[np.flatnonzero(histogram)[-1]]
    step = (histogram.sum() - last) // 255
    if step == 0:
      return _LEVELS
    return (np.cumsum(histogram) - histogram + step // 2) // step

  return _map_levels(image, levels)


def invert(image: np.ndarray) -> np.ndarray:
  return 255 - image


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
  """Inverts all levels from `threshold` on."""
  return _look_up(image, np.where(_LEVELS < threshold, _LEVELS, 255 - _LEVELS))


def solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
  """Adds to all levels below 128."""
  return _look_up(image, np.where(_LEVELS < 128, _LEVELS + addition, _LEVELS))


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
  """Keeps the highest `bits` of each channel, 0 to 8."""
  return _look_up(image, _LEVELS - _LEVELS % 2 ** (8 - bits))


def gray(image: np.ndarray) -> np.ndarray:
  """Converts RGB to grayscale: (H, W) uint8."""
  return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
  """Scales brightness: factor 0 is black, 1 the image, above 1 brighter."""
  return _look_up(image, _LEVELS * factor)


def contrast(image: np.ndarray, factor: float, middle: float | None = None) -> np.ndarray:
  """Scales contrast around `middle`, by default the mean brightness: factor 0 is flat gray."""
  if middle is None:
    middle = round(float((gray(image) if image.shape[2] == 3 else image).mean()))
  return _look_up(image, middle + factor * (_LEVELS - middle))


def _blend(start: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
  """Interpolates from `start` (factor 0) to the image (1), or extrapolates beyond it."""
  blended = cv2.addWeighted(image, factor, start, 1 - factor, _TRUNCATE)
  return blended.reshape(image.shape)


def color(image: np.ndarray, factor: float) -> np.ndarray:
  """Scales saturation: factor 0 is grayscale, 1 the image, above 1 more colorful."""
  return _blend(cv2.cvtColor(gray(image), cv2.COLOR_GRAY2RGB), image, factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
  """Scales sharpness: factor 0 is smoothed, 1 the image, above 1 sharper; the border is kept."""
  smooth = per_channel(lambda x: cv2.filter2D(x, -1, _SMOOTHING_KERNEL, delta=_TRUNCATE), image)
  sharpened = image.copy()
  sharpened[1:-1, 1:-1] = _blend(smooth, image, factor)[1:-1, 1:-1]
  return sharpened


def hue(image: np.ndarray, turns: float) -> np.ndarray:
  """Rotates all colors around the color wheel; 1 is a full turn."""
  hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
  hsv[..., 0] += np.uint8(round(turns * 256) % 256)  # wraps
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def cutout(image: np.ndarray, half_side: int, y: float, x: float) -> np.ndarray:
  """Fills a square with gray; its center (y, x) is given as shares of height and width."""
  row, column = int(y * image.shape[0]), int(x * image.shape[1])
  filled = image.copy()
  top, left = max(row - half_side, 0), max(column - half_side, 0)
  filled[top : row + half_side, left : column + half_side] = FILL
  return filled
