"""The pixel scaling of all models."""

from typing import TypeVar

import jax
import numpy as np

PixelArray = TypeVar('PixelArray', np.ndarray, jax.Array)


def scale_pixels(images: PixelArray) -> PixelArray:
  """Scales pixels of any shape and dtype from [0, 255] to float32 in [-1, 1].

  NumPy arrays stay NumPy arrays.
  """
  return images.astype(np.float32) / 127.5 - 1.0
