"""A picture of 40 x 24 pixels, and how it becomes a file."""

import io

import numpy as np
from PIL import Image

ORIENTATIONS = {  # what a viewer does with the stored pixels
  1: lambda x: x,
  2: np.fliplr,
  3: lambda x: np.rot90(x, 2),
  4: np.flipud,
  5: lambda x: x.transpose(1, 0, 2),
  6: lambda x: np.rot90(x, -1),
  7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
  8: np.rot90,
}


# Smooth, so that JPEG preserves it; not square, so that rotations are noticed.
_rows, COLUMNS = np.meshgrid(np.linspace(0, 1, 24), np.linspace(0, 1, 40), indexing='ij')
GRAY = np.rint(40 + 180 * COLUMNS).astype(np.uint8)
RGB = np.rint(255 * np.stack([COLUMNS, _rows, 1 - COLUMNS], axis=-1)).astype(np.uint8)
ORIENTATION = 0x0112


def encode(image: Image.Image | np.ndarray, image_format: str, **options) -> bytes:
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  file = io.BytesIO()
  image.save(file, image_format, **options)
  return file.getvalue()


def gray_to_rgb(gray: np.ndarray) -> np.ndarray:
  return np.repeat(gray[..., None], 3, axis=-1)


def jpeg(image: Image.Image | np.ndarray, **options) -> bytes:
  return encode(image, 'JPEG', quality=95, subsampling=0, **options)
