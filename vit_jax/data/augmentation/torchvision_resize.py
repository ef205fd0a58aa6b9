"""Resizes uint8 as torchvision resizes tensors, which Transformers' image processors do.

Rows before columns, rounded to uint8 in between. The order of Pillow 13 depends on the sizes,
and where it is the other one, what overshoots [0, 255] is clipped elsewhere: two
bicubic or Lanczos results then differ by up to four gray levels.
"""

import numpy as np

from vit_jax.data.augmentation.resampling import resize


def resize_as_torchvision(
  image: np.ndarray, size: tuple[int, int], interpolation: str
) -> np.ndarray:
  """Equals `torchvision.transforms.v2.functional.resize(…, antialias=True)` within a gray level.

  Args:
    image: (H, W, C) uint8.
    size: (height, width), pixels.
    interpolation: 'bilinear', 'bicubic', 'lanczos', or another one of `resize`.
  """
  (old_height, old_width), (height, width) = image.shape[:2], size
  if interpolation == 'bicubic' and (height > old_height or width > old_width):
    rows = _resize_rows(image, width)
    return _resize_rows(rows.transpose(1, 0, 2), height).transpose(1, 0, 2)
  rows = resize(image, (old_height, width), True, interpolation)
  return resize(rows, size, True, interpolation)


def _resize_rows(image: np.ndarray, new: int) -> np.ndarray:
  """(H, old, C) to (H, new, C) uint8, in the fixed-point arithmetic of PyTorch.

  Its weights are 16-bit integers (aten/src/ATen/native/cpu/UpSampleKernel.cpp), whose errors show
  when an image is enlarged.
  """
  old = image.shape[1]
  if old == new:
    return image
  weights = _cubic_weights(old, new)
  precision = 0
  while precision < 22 and int(0.5 + weights.max() * 2 ** (precision + 1)) < 2**15:
    precision += 1
  fixed_point = np.trunc(weights * 2**precision + np.where(weights < 0, -0.5, 0.5))
  sums = np.einsum('nx,hxc->hnc', fixed_point, image.astype(np.float64), optimize=True)
  return np.clip(np.floor(sums / 2**precision + 0.5), 0, 255).astype(np.uint8)


def _cubic_weights(old: int, new: int) -> np.ndarray:
  """(new, old): the antialiased cubic kernel of Keys with a = -1/2; sums are 1."""
  center = (np.arange(new)[:, None] + 0.5) * (old / new)
  scale = max(old / new, 1)
  first, last = (np.floor(center + sign * 2 * scale + 0.5) for sign in (-1, 1))
  pixel = np.arange(old)
  x = np.abs(pixel + 0.5 - center) / scale
  near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
  weights = np.where(x < 1, near, np.where(x < 2, far, 0))
  weights = np.where((pixel >= first) & (pixel < last), weights, 0)
  return weights / weights.sum(axis=1, keepdims=True)
