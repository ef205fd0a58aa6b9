"""Decodes image files to (H, W, C) uint8: only the part, and only the resolution, that is needed.

JPEG, the bulk of all data, is decoded by libjpeg-turbo (simplejpeg); other formats, and files that
libjpeg-turbo rejects, by Pillow.
"""

import dataclasses
import functools
import io
import struct
import warnings
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from vit_jax.data.decoding import jpeg_tiles, turbojpeg
from vit_jax.data.decoding.box import Box, crop_pixels
from vit_jax.errors import BadExampleError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')  # of image files, in lower case
# Larger images are rejected: a file of a few kilobytes can claim gigabytes of pixels.
MAX_PIXELS = 178_956_970  # Pillow's limit: a quarter of a gigabyte in 24 bits, times 2
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)  # MAX_PIXELS instead
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF')
ORIENTATION = 0x0112  # EXIF tag
_SOS = b'\xda'  # start of scan: a JPEG has no metadata segments after this marker
_BombError = Image.DecompressionBombError
# What Pillow raises for bytes that are not an image.
_PILLOW_ERRORS = (_BombError, OSError, ValueError, TypeError, SyntaxError, EOFError, struct.error)
_LARGE_FILE = 2**20  # bytes
_PILLOW_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # by number of channels
_SIMPLEJPEG_COLORSPACES = {1: 'GRAY', 3: 'RGB'}


@dataclasses.dataclass(frozen=True)
class LazyImage:
  """An image that is decoded only once it is known which pixels are needed.

  Attributes:
    height, width: pixels, upright.
    decode: (box, reduction) -> (H, W, C) uint8; see `pixels`.
    can_reduce: whether decoding at 1/2, 1/4 or 1/8 of the size is faster.
  """

  height: int
  width: int
  decode: Callable[[Box | None, int], np.ndarray]
  can_reduce: bool = False

  @classmethod
  def from_array(cls, pixels: np.ndarray) -> 'LazyImage':
    """Wraps pixels that are already decoded: (H, W, C) uint8."""
    height, width = pixels.shape[:2]
    return cls(height, width, lambda box, reduction: crop_pixels(pixels, box))

  def pixels(self, box: Box | None = None, min_size: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes a box of the image, or all of it, to (H, W, C) uint8.

    Args:
      box: in pixels of the full-size image.
      min_size: (height, width) that is needed. A JPEG of at least twice that size is decoded at
        1/2, 1/4 or 1/8, but never below `min_size`: only the low frequencies of its blocks are
        computed, which is faster.

    Raises:
      BadExampleError: for a damaged image.
    """
    if min_size and self.can_reduce:
      full = box or Box(0, 0, self.width, self.height)
      for reduction in (8, 4, 2):
        if full.height // reduction >= min_size[0] and full.width // reduction >= min_size[1]:
          return self.decode(full.reduced(reduction), reduction)
    return self.decode(box, 1)


def pillow_to_array(image: Image.Image, channels: int = 3) -> np.ndarray:
  """Converts any Pillow image to (H, W, channels) uint8, with 1, 3 or 4 channels.

  16-bit images are scaled to 8 bits; transparency is blended over white.
  """
  if image.mode.startswith('I') or image.mode == 'F':  # 16- or 32-bit grayscale
    pixels = np.asarray(image).astype(np.float32)
    if image.mode.startswith('I'):
      pixels = pixels / 257.0  # 65535 -> 255
    image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), 'L')
  has_alpha = image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info
  if has_alpha and channels != 4:
    white = Image.new('RGBA', image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image.convert('RGBA'))
  pixels = np.asarray(image.convert(_PILLOW_MODES[channels]))
  return pixels.reshape(image.height, image.width, channels)


def _convert_channels(pixels: np.ndarray, channels: int, name: object) -> np.ndarray:
  """Converts an array of pixels between gray, RGB and RGBA."""
  if pixels.ndim == 2:
    pixels = pixels[..., None]
  if pixels.ndim != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
    raise BadExampleError(
      f'{name} is {pixels.dtype}{list(pixels.shape)}; an image array must be (H, W, C) uint8.'
    )
  count = pixels.shape[2]
  if count == channels:
    return pixels
  if count in _PILLOW_MODES and channels in _PILLOW_MODES:
    gray_or_color = pixels[..., 0] if count == 1 else pixels
    return pillow_to_array(Image.fromarray(gray_or_color), channels)
  if count == 1:
    return np.repeat(pixels, channels, axis=2)
  raise BadExampleError(
    f'{name} has {count} channels and cannot be converted to channels={channels}; set '
    f'channels={count}.'
  )


def open_image(data: bytes | np.ndarray, name: object, channels: int = 3) -> LazyImage:
  """Opens a JPEG, PNG, WebP, GIF or BMP, rotated upright by its EXIF orientation.

  Grayscale, CMYK, palette, alpha and 16-bit images are converted to the same channels; an
  animation yields its first frame.

  Args:
    data: the content of a file, or (H, W, C) uint8.
    name: its `str` names the image in error messages.
    channels: of the pixels: 1 (gray), 3 (RGB) or 4 (RGBA); an array may keep any other number.

  Raises:
    BadExampleError: for data that is not an image; a truncated one may be noticed only when it is
      decoded.
  """
  if isinstance(data, np.ndarray):
    return LazyImage.from_array(_convert_channels(data, channels, name))
  if channels not in _PILLOW_MODES:
    raise BadExampleError(
      f'{name} is an image file, which cannot have {channels} channels; set channels to 1, 3 or 4.'
    )
  if channels in _SIMPLEJPEG_COLORSPACES and data[:2] == b'\xff\xd8' and _is_upright(data):
    if size := _simplejpeg_size(data):
      decode = functools.partial(_decode_jpeg, data, name, channels)
      return LazyImage(*size, decode, can_reduce=True)
  return LazyImage.from_array(_decode_with_pillow(data, name, channels))


def _simplejpeg_size(jpeg: bytes) -> tuple[int, int] | None:
  """(height, width) of a JPEG that simplejpeg decodes correctly; None for any other."""
  try:
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(jpeg, strict=False)
  except (ValueError, KeyError):  # KeyError: a colorspace that simplejpeg has no name for
    return None
  is_supported = colorspace in ('YCbCr', 'Gray', 'RGB') and int(height) * int(width) <= MAX_PIXELS
  return (int(height), int(width)) if is_supported else None


def _is_upright(jpeg: bytes) -> bool:
  """Returns True if the pixels are stored upright, according to the EXIF segment, if any."""
  offset = 2
  while jpeg[offset : offset + 1] == b'\xff' and jpeg[offset + 1 : offset + 2] != _SOS:
    if jpeg[offset + 4 : offset + 10] == b'Exif\0\0':
      break
    # A marker may be preceded by any number of bytes 0xFF.
    is_fill = jpeg[offset + 1 : offset + 2] == b'\xff'
    offset += 1 if is_fill else 2 + int.from_bytes(jpeg[offset + 2 : offset + 4])
  else:
    return True
  try:
    with Image.open(io.BytesIO(jpeg), formats=('JPEG',)) as image:
      return image.getexif().get(ORIENTATION, 1) == 1
  except _PILLOW_ERRORS:
    return False  # Pillow then decodes the file and reports what is wrong


def _decode_jpeg(
  data: bytes, name: object, channels: int, box: Box | None, reduction: int
) -> np.ndarray:
  """Decodes a JPEG at 1/`reduction` of its size; `box` is in pixels of the reduced image."""
  tiles, tiles_box = data, box
  if box is not None:
    needed = box.padded(turbojpeg.MARGIN).enlarged(reduction)
    if cropped := jpeg_tiles.crop(data, needed):
      tiles, x, y = cropped
      tiles_box = box.shifted(-(x // reduction), -(y // reduction))
    assert tiles_box is not None
    pixels = turbojpeg.decode_box(tiles, tiles_box, channels, reduction)
    if pixels is not None:
      return pixels
  try:
    height, width, _, _ = simplejpeg.decode_jpeg_header(tiles)
    pixels = simplejpeg.decode_jpeg(
      tiles,
      _SIMPLEJPEG_COLORSPACES[channels],
      min_height=-(-int(height) // reduction),
      min_width=-(-int(width) // reduction),
    )
    return crop_pixels(pixels, tiles_box)
  except (ValueError, KeyError):  # simplejpeg rejects harmless flaws, too; Pillow only damage
    pixels = _decode_with_pillow(data, name, channels)
  return crop_pixels(pixels, box and box.enlarged(reduction))


def _decode_with_pillow(data: bytes, name: object, channels: int) -> np.ndarray:
  """Decodes a whole image of any format."""
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
      if image.width * image.height > MAX_PIXELS:
        raise BadExampleError(
          f'{name} has {image.width:,} x {image.height:,} pixels; the limit is {MAX_PIXELS:,}.'
        )
      return pillow_to_array(ImageOps.exif_transpose(image), channels)
  except _PILLOW_ERRORS as error:
    reason = str(error).rstrip('.')
    if isinstance(error, UnidentifiedImageError):
      reason = 'not a known image format' if data else 'the file is empty'
    if isinstance(error, _BombError):
      reason = f'it claims more pixels than the limit of {MAX_PIXELS:,}'
    raise BadExampleError(f'{name} cannot be read as an image: {reason}.') from None


def decode_image(data: bytes, name: str, channels: int = 3) -> np.ndarray:
  """Decodes an image file to (H, W, channels) uint8; see `open_image`."""
  return open_image(data, name, channels).pixels()


def check_image(data: bytes, name: str) -> None:
  """Raises `BadExampleError` for a damaged or truncated image file.

  A JPEG is decoded at 1/8 of its size, which reads the whole file but computes little. Of a JPEG
  larger than 1 MiB only the header and the end are checked.
  """
  image = open_image(data, name)
  is_complete = data[-64:].rstrip(b'\0').endswith(b'\xff\xd9')  # the end of a JPEG
  if not (image.can_reduce and is_complete and len(data) > _LARGE_FILE):
    image.decode(None, 8 if image.can_reduce else 1)
