"""The range of pixels that all models take."""

from typing import TypeVar

import jax
import numpy as np

PixelArray = TypeVar('PixelArray', np.ndarray, jax.Array)


def scale_pixels(images: PixelArray) -> PixelArray:
  """Any shape, [0, 255] -> float32 in [-1, 1]; NumPy stays NumPy."""
  return images.astype(np.float32) / 127.5 - 1.0
