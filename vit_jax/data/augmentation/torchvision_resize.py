"""Resizes uint8 as torchvision resizes tensors, which Transformers' image processors do.

Rows before columns, rounded to uint8 in between, with weights of 16 bits. Pillow has weights of
more bits, and an order that depends on the sizes: two bicubic results may then differ by several
gray levels.
"""

import numpy as np

from vit_jax.data.augmentation.resampling import KERNELS, Weights, make_weights, resize, sum_rows
from vit_jax.data.decoding.box import Box

_MANY = 2**16  # pixels along a side, of which the weights are not all computed


def resize_as_torchvision(
  image: np.ndarray, size: tuple[int, int], interpolation: str, box: Box | None = None
) -> np.ndarray:
  """Equals `torchvision.transforms.v2.functional.resize(…, antialias=True)`.

  Args:
    image: (H, W, C) uint8.
    size: (height, width), pixels.
    interpolation: 'bilinear', 'bicubic', 'lanczos', or another one of `resize`.
    box: the part of the resized image to return; None: all of it.
  """
  if interpolation not in KERNELS:
    return resize(image, size, True, interpolation, box=box)
  part = box or Box(0, 0, size[1], size[0])
  first, values = _make_weights(image.shape[0], size[0], interpolation, part.top, part.bottom)
  needed = image[first[0] : first[-1] + values.shape[1]]
  columns = _make_weights(image.shape[1], size[1], interpolation, part.left, part.right)
  rows = _sum_rows(needed.transpose(1, 0, 2), *columns).transpose(1, 0, 2)
  return _sum_rows(rows, first - first[0], values)


def _make_weights(old: int, new: int, interpolation: str, start: int, stop: int) -> Weights:
  """The weights of 16 bits, from aten/src/ATen/native/cpu/UpSampleKernel.cpp, of some rows."""
  first, values = make_weights(old, new, interpolation, True, start, stop)
  every = make_weights(old, new, interpolation, True, 0, new)[1] if new <= _MANY else values
  precision = 0
  while precision < 22 and int(0.5 + every.max() * 2 ** (precision + 1)) < 2**15:
    precision += 1
  values = np.trunc(values * 2**precision + np.where(values < 0, -0.5, 0.5)) / 2**precision
  return first, values


def _sum_rows(image: np.ndarray, first: np.ndarray, values: np.ndarray) -> np.ndarray:
  """(old, …) to (new, …) uint8."""
  sums = sum_rows(image, first, values, np.float64)
  return np.clip(np.floor(sums + 0.5), 0, 255).astype(np.uint8)
