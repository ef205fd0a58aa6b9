"""Operations on one image, (H, W, C) uint8, without randomness; the input stays as it is.

All take any number of channels, but for what is about colours: `gray`, `color` and `hue` take
three. Geometry is OpenCV's, which is several times faster than Pillow and lets other threads run.
"""

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

cv2.setNumThreads(0)  # examples are processed in parallel; a pool inside each would only disturb
_LEVELS = np.arange(256, dtype=np.float32)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's SMOOTH
_CUT_OFF = -0.499  # OpenCV rounds where Pillow and TensorFlow cut the fraction off
FILL = 128  # what geometric operations bring in: the middle gray, zero for the model


def _by_channels(operation: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
  """Three or four channels at once, others one by one: OpenCV computes two less exactly than
  others, takes 128 at most, and drops the axis of a single one."""
  if image.shape[2] in (3, 4):
    return operation(image)
  return np.stack([operation(image[..., i]) for i in range(image.shape[2])], axis=2)


def resize(image: np.ndarray, size: tuple[int, int], antialias: bool) -> np.ndarray:
  """Bilinear, with half-pixel centres, to `size` = (height, width).

  Without antialiasing (OpenCV) it is `tf.image.resize(image, size)`, with which the released
  models were trained; with it (Pillow: the filter grows with the reduction) it is
  `tf.image.resize(image, size, antialias=True)`. Both within one gray level.
  """
  height, width = size
  if image.shape[:2] == (height, width):
    return image
  if not antialias:
    return _by_channels(lambda x: cv2.resize(x, (width, height)), image)
  if image.shape[2] != 3:  # Pillow would take two or four for transparency
    bands = [Image.fromarray(image[..., i]) for i in range(image.shape[2])]
    bands = [band.resize((width, height), Image.Resampling.BILINEAR) for band in bands]
    return np.stack([np.asarray(band) for band in bands], axis=2)
  resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(resized)


def flip(image: np.ndarray) -> np.ndarray:
  """Left and right exchanged."""
  return _by_channels(lambda x: cv2.flip(x, 1), image)


def warp(image: np.ndarray, matrix: list[list[float]], smooth: bool, edge: bool) -> np.ndarray:
  """An affine map of the same size.

  Args:
    image: (H, W, C) uint8.
    matrix: two rows (a, b, c): the pixel (x, y) comes from (a x + b y + c, …), where the centre
      of the first pixel is (0, 0).
    smooth: bilinear rather than the nearest pixel.
    edge: what is beyond the image is its border repeated rather than gray.
  """
  size = image.shape[1::-1]
  interpolation = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
  border = cv2.BORDER_REPLICATE if edge else cv2.BORDER_CONSTANT
  return _by_channels(
    lambda x: cv2.warpAffine(
      x,
      np.float64(matrix),
      size,
      flags=interpolation | cv2.WARP_INVERSE_MAP,
      borderMode=border,
      borderValue=(FILL,) * 4,
    ),
    image,
  )


def turn(
  height: int, width: int, degrees: float, zoom: float = 1.0, dx: float = 0.0, dy: float = 0.0
) -> list[list[float]]:
  """The matrix for `warp` that turns about the centre, then enlarges, then shifts."""
  angle = np.deg2rad(degrees)
  cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
  cx, cy = (width - 1) / 2, (height - 1) / 2
  return [
    [cos, sin, cx - cos * (cx + dx) - sin * (cy + dy)],
    [-sin, cos, cy + sin * (cx + dx) - cos * (cy + dy)],
  ]


def rotate(image: np.ndarray, degrees: float, smooth: bool) -> np.ndarray:
  return warp(image, turn(*image.shape[:2], degrees), smooth, edge=False)


def shear_x(image: np.ndarray, factor: float, smooth: bool) -> np.ndarray:
  return warp(image, [[1, factor, 0], [0, 1, 0]], smooth, edge=False)


def shear_y(image: np.ndarray, factor: float, smooth: bool) -> np.ndarray:
  return warp(image, [[1, 0, 0], [factor, 1, 0]], smooth, edge=False)


def translate_x(image: np.ndarray, pixels: float, smooth: bool) -> np.ndarray:
  return warp(image, [[1, 0, pixels], [0, 1, 0]], smooth, edge=False)


def translate_y(image: np.ndarray, pixels: float, smooth: bool) -> np.ndarray:
  return warp(image, [[1, 0, 0], [0, 1, pixels]], smooth, edge=False)


def _look_up(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
  """Each gray level replaced by that in a table of 256, which is cut to [0, 255]."""
  table = np.clip(levels, 0, 255).astype(np.uint8)
  flat = np.ascontiguousarray(image).reshape(image.shape[0], -1)
  return cv2.LUT(flat, table).reshape(image.shape)


def _each_channel(image: np.ndarray, levels: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """`_look_up` in a table that `levels` makes of the channel's histogram."""
  found = np.empty(image.shape, np.uint8)
  for i in range(image.shape[2]):
    channel = np.ascontiguousarray(image[..., i])
    histogram = cv2.calcHist([channel], [0], None, [256], [0, 256]).reshape(-1).astype(np.int64)
    found[..., i] = _look_up(channel, levels(histogram))
  return found


def autocontrast(image: np.ndarray) -> np.ndarray:
  """Each channel stretched to [0, 255]."""

  def levels(histogram: np.ndarray) -> np.ndarray:
    low, high = np.flatnonzero(histogram)[[0, -1]]
    if high == low:
      return _LEVELS
    scale = np.float32(255.0 / (high - low))
    return _LEVELS * scale - low * scale

  return _each_channel(image, levels)


def equalize(image: np.ndarray) -> np.ndarray:
  """Each channel with a flat histogram, as Pillow and TensorFlow's AutoAugment compute it."""

  def levels(histogram: np.ndarray) -> np.ndarray:
    last = histogram[np.flatnonzero(histogram)[-1]]
    step = (histogram.sum() - last) // 255
    if step == 0:
      return _LEVELS
    return (np.cumsum(histogram) - histogram + step // 2) // step

  return _each_channel(image, levels)


def invert(image: np.ndarray) -> np.ndarray:
  return 255 - image


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
  """Inverts what is at least as bright as the threshold."""
  return _look_up(image, np.where(_LEVELS < threshold, _LEVELS, 255 - _LEVELS))


def solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
  """Brightens the darker half."""
  return _look_up(image, np.where(_LEVELS < 128, _LEVELS + addition, _LEVELS))


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
  """Keeps the highest bits of each channel, 0 to 8."""
  return _look_up(image, _LEVELS - _LEVELS % 2 ** (8 - bits))


def gray(image: np.ndarray) -> np.ndarray:
  """The brightness of an RGB image: (H, W) uint8."""
  return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
  """From black (0) over the image (1) to beyond it."""
  return _look_up(image, _LEVELS * factor)


def contrast(image: np.ndarray, factor: float, middle: float | None = None) -> np.ndarray:
  """From one gray (0; the mean brightness if it is not given) over the image (1) to beyond it."""
  if middle is None:
    middle = round(float((gray(image) if image.shape[2] == 3 else image).mean()))
  return _look_up(image, middle + factor * (_LEVELS - middle))


def _blend(start: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
  """From `start` (0) over the image (1) to beyond it."""
  blended = cv2.addWeighted(image, factor, start, 1 - factor, _CUT_OFF)
  return blended.reshape(image.shape)


def color(image: np.ndarray, factor: float) -> np.ndarray:
  """From a gray image (0) over the image (1) to beyond it."""
  return _blend(cv2.cvtColor(gray(image), cv2.COLOR_GRAY2RGB), image, factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
  """From a smoothed image (0) over the image (1) to beyond it; the border stays."""
  smooth = _by_channels(lambda x: cv2.filter2D(x, -1, _SMOOTH, delta=_CUT_OFF), image)
  found = image.copy()
  found[1:-1, 1:-1] = _blend(smooth, image, factor)[1:-1, 1:-1]
  return found


def hue(image: np.ndarray, turns: float) -> np.ndarray:
  """All colours moved around the colour circle; 1 is a whole turn."""
  hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
  hsv[..., 0] += np.uint8(round(turns * 256) % 256)  # wraps
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def cutout(image: np.ndarray, half: int, down: float, right: float) -> np.ndarray:
  """A gray square of 2 x `half` pixels, its centre given as shares of height and width."""
  y, x = int(down * image.shape[0]), int(right * image.shape[1])
  found = image.copy()
  found[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = FILL
  return found
