"""Decodes image files to (H, W, C) uint8: only the part, and only the resolution, that is needed.

JPEG, the bulk of all data, is decoded by libjpeg-turbo (simplejpeg); other formats, and files that
libjpeg-turbo rejects, by Pillow.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import re
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image

from vit_jax.data.decoding import jpeg_tiles, turbojpeg
from vit_jax.data.decoding.box import Box, crop_pixels
from vit_jax.data.decoding.exif import is_upright, turn_upright
from vit_jax.data.decoding.limits import check_canvas, check_size, errors_named
from vit_jax.errors import BadExampleError

# Format of Pillow (and, for HEIF, pillow-heif) -> suffixes of its files, in lower case.
FORMATS = {
  'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif'),
  'PNG': ('.png',),
  'WEBP': ('.webp',),
  'BMP': ('.bmp',),
  'GIF': ('.gif',),
  'TIFF': ('.tif', '.tiff'),
  'PPM': ('.ppm', '.pgm', '.pbm', '.pnm'),
  'AVIF': ('.avif',),
  'HEIF': ('.heic', '.heif'),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_HEIF = re.compile(rb'....ftyp(?:hei|hev|mif1|msf1)', re.DOTALL)  # also AVIF may begin with mif1
_LARGE_FILE = 2**20  # bytes
_BAND = 2**22  # pixels
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


def pillow_to_array(
  image: Image.Image, channels: int = 3, name: object = 'the image'
) -> np.ndarray:
  """Converts any Pillow image to (H, W, channels) uint8, with 1, 3 or 4 channels.

  It is turned upright by its EXIF orientation, as a file is by `open_image`; Pillow's own
  `exif_transpose` removes the orientation, so that nothing is turned twice. 16-bit images are
  scaled to 8 bits; transparency is blended over white.

  Raises:
    BadExampleError: for an image of too many pixels or none, or if it is only now decoded and
      turns out to be damaged; the message begins with `name`.
  """
  check_size(image.height, image.width, name)
  with errors_named(name):
    return _convert_pillow(turn_upright(image, name), channels)


def _convert_pillow(image: Image.Image, channels: int) -> np.ndarray:
  """As `pillow_to_array`, of an image that is upright.

  A large image is converted in bands, because Pillow takes memory for each step of a conversion.
  """
  height, width = image.height, image.width
  rows = max(1, _BAND // width)
  if height <= rows:
    return _convert_band(image, channels)
  pixels = np.empty((height, width, channels), np.uint8)
  for top in range(0, height, rows):
    bottom = min(height, top + rows)
    pixels[top:bottom] = _convert_band(image.crop((0, top, width, bottom)), channels)
  return pixels


def _convert_band(image: Image.Image, channels: int) -> np.ndarray:
  """As `_convert_pillow`, at once."""
  if image.mode.startswith('I') or image.mode == 'F':  # 16- or 32-bit grayscale
    pixels = np.asarray(image).astype(np.float32)
    if image.mode.startswith('I'):
      pixels = pixels / 257.0  # 65535 -> 255
    pixels = np.fmin(np.fmax(np.rint(pixels), 0), 255)  # NaN becomes 0
    image = Image.fromarray(pixels.astype(np.uint8), 'L')
  has_alpha = image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info
  if has_alpha and channels != 4:
    white = Image.new('RGBA', image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image.convert('RGBA'))
  if image.mode != _PILLOW_MODES[channels]:  # else `convert` copies it
    image = image.convert(_PILLOW_MODES[channels])
  pixels = np.asarray(image)
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
    return _convert_pillow(Image.fromarray(gray_or_color), channels)
  if count == 1:
    return np.repeat(pixels, channels, axis=2)
  raise BadExampleError(
    f'{name} has {count} channels and cannot be converted to channels={channels}; set '
    f'channels={count}.'
  )


def open_image(data: bytes | np.ndarray, name: object, channels: int = 3) -> LazyImage:
  """Opens an image file of one of the `FORMATS`, rotated upright by its EXIF orientation.

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
  if not data:
    raise BadExampleError(f'{name} cannot be read as an image: the file is empty.')
  if data[:2] == b'\xff\xd8' and is_upright(data, name) and channels in _SIMPLEJPEG_COLORSPACES:
    if size := _simplejpeg_size(data, name):
      decode = functools.partial(_decode_jpeg, data, name, channels, size)
      return LazyImage(*size, decode, can_reduce=True)
  return LazyImage.from_array(_decode_with_pillow(data, name, channels))


def _simplejpeg_size(jpeg: bytes, name: object) -> tuple[int, int] | None:
  """(height, width) of a JPEG that simplejpeg decodes correctly; None for any other."""
  try:
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(jpeg, strict=False)
  except (ValueError, KeyError):  # KeyError: a colorspace that simplejpeg has no name for
    return None
  check_size(int(height), int(width), name)
  return (int(height), int(width)) if colorspace in ('YCbCr', 'Gray', 'RGB') else None


def _decode_jpeg(
  data: bytes, name: object, channels: int, size: tuple[int, int], box: Box | None, reduction: int
) -> np.ndarray:
  """Decodes an upright JPEG of `size` (height, width) at 1/`reduction`.

  `box` is in pixels of the reduced image.
  """
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
  pixels = _decode_with_simplejpeg(tiles, tiles_box, channels, reduction)
  if pixels is not None:
    return pixels
  # simplejpeg rejects harmless flaws, too; Pillow only damage.
  pixels = _decode_with_pillow(data, name, channels, turn=False)
  if pixels.shape[:2] != size:
    raise BadExampleError(f'{name} cannot be read as an image: its header is damaged.')
  return crop_pixels(pixels, box and box.enlarged(reduction))


def _decode_with_simplejpeg(
  data: bytes, box: Box | None, channels: int, reduction: int
) -> np.ndarray | None:
  """As `turbojpeg.decode_box`, but decodes the whole image; without a box, returns it."""
  try:
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    reduced = -(-int(height) // reduction), -(-int(width) // reduction)
    if box is not None and not box.is_within(*reduced):
      return None
    pixels = simplejpeg.decode_jpeg(
      data, _SIMPLEJPEG_COLORSPACES[channels], min_height=reduced[0], min_width=reduced[1]
    )
  except (ValueError, KeyError):
    return None
  return crop_pixels(pixels, box)


@functools.cache
def _installed_formats() -> tuple[str, ...]:
  """Those of `FORMATS` that Pillow and its plugins read here."""
  with contextlib.suppress(ImportError):
    importlib.import_module('pillow_heif').register_heif_opener()
  Image.init()
  return tuple(name for name in FORMATS if name in Image.OPEN)


def _formats(data: bytes, name: object) -> tuple[str, ...]:
  """The formats to try; raises `BadExampleError` for one that needs a package."""
  formats = _installed_formats()
  if _HEIF.match(data) and b'avif' not in data[8:64] and 'HEIF' not in formats:
    raise BadExampleError(f'{name} is HEIC, which needs pip install pillow-heif.')
  if b'ftypavi' in data[:16] and 'AVIF' not in formats:
    raise BadExampleError(f'{name} is AVIF, which needs pip install --upgrade pillow.')
  return formats


def _decode_with_pillow(data: bytes, name: object, channels: int, turn: bool = True) -> np.ndarray:
  """Decodes a whole image of any format; `turn`s it upright by its EXIF orientation."""
  with errors_named(name), Image.open(io.BytesIO(data), formats=_formats(data, name)) as image:
    check_size(image.height, image.width, name)
    if image.format == 'WEBP' and getattr(image, 'is_animated', False):
      check_canvas(image.height, image.width, name)
    return _convert_pillow(turn_upright(image, name) if turn else image, channels)


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
