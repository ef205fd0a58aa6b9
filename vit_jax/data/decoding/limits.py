"""What is asked of every image: not more pixels than a limit, and errors that name it."""

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from vit_jax.errors import BadExampleError, UserError, first_line

MAX_PIXELS = 'VIT_JAX_MAX_PIXELS'  # environment variable
_DEFAULT_MAX_PIXELS = 178_956_970  # Pillow's limit: a quarter of a gigabyte in 24 bits, times 2
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)  # `max_pixels` instead
warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.')  # of harmless flaws


@functools.cache
def max_pixels() -> int:
  """The largest number of pixels of an image: a file of a few kilobytes can claim gigabytes.

  Pillow's default, or the environment variable VIT_JAX_MAX_PIXELS, of which Pillow is told, too.

  Raises:
    UserError: if the variable is not a positive number.
  """
  text = os.environ.get(MAX_PIXELS)
  if not text:
    return _DEFAULT_MAX_PIXELS
  if not text.isdecimal() or not 0 < len(text) < 19 or not int(text):
    raise UserError(
      f'The environment variable {MAX_PIXELS} is {text[:40]!r}; it must be a number of pixels, '
      f'such as {_DEFAULT_MAX_PIXELS}.'
    )
  Image.MAX_IMAGE_PIXELS = int(text)  # Pillow warns above, and refuses twice as many
  return int(text)


def check_size(height: int, width: int, name: object) -> None:
  """Raises `BadExampleError` for an image without pixels or with too many."""
  if not 0 < height * width <= max_pixels():
    raise BadExampleError(
      f'{name} has {width:,} x {height:,} pixels; the limit is {max_pixels():,} ({MAX_PIXELS}).'
      if height * width
      else f'{name} has no pixels ({width:,} x {height:,}).'
    )


def check_canvas(height: int, width: int, name: object) -> None:
  """Raises `BadExampleError` for a large animated WebP, of which a frame of any size takes memory.

  Its decoder holds four copies of the canvas, 16 bytes a pixel: an eighth of the limit of pixels.
  """
  limit = max_pixels() // 8
  if height * width > limit:
    raise BadExampleError(
      f'{name} is an animation of {width:,} x {height:,} pixels; the limit is {limit:,}, an eighth '
      f'of that of other images ({MAX_PIXELS}).'
    )


@contextlib.contextmanager
def errors_named(name: object) -> Iterator[None]:
  """Turns what Pillow raises for damaged images, nearly any exception, into `BadExampleError`."""
  max_pixels()  # now Pillow has the same limit
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # noqa: BLE001
    reason = first_line(error).rstrip('.')
    if isinstance(error, UnidentifiedImageError):
      reason = 'not a known image format'
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
      reason = f'it claims more pixels than the limit of {max_pixels():,} ({MAX_PIXELS})'
    raise BadExampleError(f'{name} cannot be read as an image: {reason}.') from None
