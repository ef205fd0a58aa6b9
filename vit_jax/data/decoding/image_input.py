"""Whatever a user calls an image, as pixels: a path, bytes, a Pillow image, an array, a tensor."""

import os
from typing import Any, TypeAlias

import numpy as np
from etils import epath
from PIL import Image

from vit_jax.data.decoding.images import decode_image, open_image, pillow_to_array
from vit_jax.errors import BadExampleError, first_line
from vit_jax.files import read_bytes, user_path

# Also anything that `numpy.asarray` accepts, such as a tensor of PyTorch on the CPU.
ImageInput: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Any


def is_single(images: Any) -> bool:
  """Whether it is one image rather than several."""
  if isinstance(images, (str, bytes, bytearray, os.PathLike, Image.Image)):
    return True
  return hasattr(images, 'shape') and len(images.shape) < 4


def read_pixels(image: ImageInput, channels: int = 3, name: str = '') -> np.ndarray:
  """Decodes an image, upright by its EXIF orientation.

  Args:
    image: the path of a file, its bytes, a Pillow image, or an array: (H, W) or (H, W, C), or
      (C, H, W) as torchvision has it; uint8, or float in [0, 1].
    channels: of the result: 1 (gray), 3 (RGB), 4 (RGBA); any number for an array that has it.
    name: of the image, for error messages; by default its path.

  Returns:
    (H, W, channels) uint8.

  Raises:
    BadExampleError: for a file that cannot be read, or bytes that are not an image.
    ValueError: for an array of another shape, dtype or range.
  """
  if isinstance(image, (str, os.PathLike)):
    return decode_image(read_image_file(user_path(image)), name or str(image), channels)
  name = name or 'the image'
  if isinstance(image, (bytes, bytearray)):
    return decode_image(bytes(image), name, channels)
  if isinstance(image, Image.Image):
    return pillow_to_array(image, channels)
  return open_image(_array_to_pixels(image, channels, name), name, channels).pixels()


def read_image_file(path: epath.Path) -> bytes:
  """The content of an image file; raises `BadExampleError` if it cannot be read."""
  try:
    return read_bytes(path)
  except OSError as error:
    reason = error.strerror or first_line(error)
    raise BadExampleError(f'{path} cannot be read: {reason}.') from None


def _array_to_pixels(image: Any, channels: int, name: str) -> np.ndarray:
  """(H, W) or (H, W, C) uint8 of an array or tensor."""
  try:
    array = np.asarray(image)
  except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, or with a gradient
    raise ValueError(f'{name} is a {type(image).__name__}: {first_line(error)}') from None
  if array.ndim == 3 and array.shape[2] not in (1, 3, 4, channels):
    if array.shape[0] in (1, 3, 4, channels):
      array = array.transpose(1, 2, 0)
  if array.dtype.kind == 'f' and array.size and 0 <= array.min() and array.max() <= 1:
    array = np.rint(255 * array.astype(np.float32)).astype(np.uint8)
  if array.ndim not in (2, 3) or array.dtype != np.uint8 or 0 in array.shape:
    raise ValueError(
      f'{name} is a {type(image).__name__} of {array.dtype}{list(array.shape)}; images are paths, '
      f'bytes, Pillow images, or arrays (H, W, {channels}) of uint8 or of floats in [0, 1].'
    )
  return array
