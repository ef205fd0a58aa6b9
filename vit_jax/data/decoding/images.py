"""Bytes to pixels: any image file to (H, W, C) uint8, as much of it as is needed.

JPEG, the bulk of all data, is decoded by libjpeg-turbo (simplejpeg); all else, and what that
refuses, by Pillow.
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
from vit_jax.errors import BadExampleError

# Names that count as images, compared in lower case.
SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')
# Larger images are refused: a few kilobytes can claim to be gigabytes of pixels.
MAX_PIXELS = 178_956_970  # Pillow's limit: a quarter of a gigabyte in 24 bits, times 2
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)  # we have our own
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF')
ORIENTATION = 0x0112  # EXIF tag
_SOS = b'\xda'  # the marker after which a JPEG has no more blocks of facts
# What Pillow raises for bytes that are no image.
_NO_IMAGE = (
  UnidentifiedImageError,
  Image.DecompressionBombError,
  OSError,
  ValueError,
  TypeError,
  SyntaxError,
  EOFError,
  struct.error,
)
_LARGE = 2**20  # bytes
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # channels -> Pillow's name
_SIMPLEJPEG = {1: 'GRAY', 3: 'RGB'}

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


@dataclasses.dataclass(frozen=True)
class LazyImage:
  """An image that is decoded when it is known what is needed of it.

  Attributes:
    height, width: pixels, upright.
    decode: (box, reduction) -> (H, W, C) uint8; see `pixels`.
    can_reduce: whether decoding at a half, a quarter or an eighth of the size saves time.
  """

  height: int
  width: int
  decode: Callable[[Box | None, int], np.ndarray]
  can_reduce: bool = False

  def pixels(self, box: Box | None = None, enough: tuple[int, int] | None = None) -> np.ndarray:
    """The part in a box (all without one) as (H, W, C) uint8.

    Args:
      box: in pixels of the image.
      enough: (height, width) that the part will be resized to. If it is at least twice as large,
        a JPEG is decoded at 1/2, 1/4 or 1/8, but never to less than that; the low frequencies
        of its blocks are all that is computed then.

    Raises:
      BadExampleError: when the image is damaged.
    """
    left, top, right, bottom = box or (0, 0, self.width, self.height)
    for reduction in (8, 4, 2) if enough and self.can_reduce else ():
      if (bottom - top) // reduction >= enough[0] and (right - left) // reduction >= enough[1]:
        reduced = (
          left // reduction,
          top // reduction,
          -(-right // reduction),
          -(-bottom // reduction),
        )
        return self.decode(reduced, reduction)
    return self.decode(box, 1)


def cut(pixels: np.ndarray, box: Box | None) -> np.ndarray:
  """The part of an array of pixels that lies in a box; all of it without one."""
  if box is None:
    return pixels
  left, top, right, bottom = box
  return pixels[top:bottom, left:right]


def of_pixels(pixels: np.ndarray) -> LazyImage:
  """A picture that is decoded already: (H, W, C) uint8."""
  return LazyImage(*pixels.shape[:2], lambda box, reduction: cut(pixels, box))


def to_mode(image: Image.Image, channels: int = 3) -> Image.Image:
  """Any Pillow image with that many channels: 16-bit is scaled, transparency laid over white."""
  if image.mode.startswith('I') or image.mode == 'F':  # 16- or 32-bit grayscale
    pixels = np.asarray(image).astype(np.float32)
    if image.mode.startswith('I'):
      pixels = pixels / 257.0  # 65535 -> 255
    image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), 'L')
  has_alpha = image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info
  if has_alpha and channels != 4:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image)
  return image.convert(_MODES[channels])


def of_pillow(image: Image.Image, channels: int = 3) -> np.ndarray:
  """Any Pillow image as (H, W, channels) uint8."""
  return np.asarray(to_mode(image, channels)).reshape(image.height, image.width, channels)


def _with_channels(pixels: np.ndarray, channels: int, name: str) -> np.ndarray:
  """An array of pixels with `channels` channels; gray becomes color and color gray."""
  if pixels.ndim == 2:
    pixels = pixels[..., None]
  if pixels.ndim != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
    raise BadExampleError(f'{name} is {pixels.dtype}{list(pixels.shape)}, no (H, W, C) uint8.')
  if pixels.shape[2] == channels:
    return pixels
  if pixels.shape[2] in _MODES and channels in _MODES:
    one = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    return of_pillow(Image.fromarray(one), channels)
  if pixels.shape[2] == 1:
    return np.repeat(pixels, channels, axis=2)
  raise BadExampleError(f'{name} has {pixels.shape[2]} channels, config.data.channels={channels}.')


def open_image(data: bytes | np.ndarray, name: str, channels: int = 3) -> LazyImage:
  """Opens JPEG, PNG, WebP, GIF or BMP, turned upright as its EXIF tag says.

  Grayscale, CMYK, palette, alpha and 16-bit images come out with the same channels, too; of an
  animation the first frame.

  Args:
    data: the content of a file, or (H, W, C) uint8.
    name: what to call it in an error message.
    channels: of the pixels: 1 (gray), 3 (RGB) or 4 (RGBA); any number for arrays that have it.

  Raises:
    BadExampleError: when it is no image; only decoding shows whether it is a whole one.
  """
  if isinstance(data, np.ndarray):
    return of_pixels(_with_channels(data, channels, name))
  if channels not in _MODES:
    raise BadExampleError(f'{name} is an image file, which cannot have {channels} channels.')
  if channels in _SIMPLEJPEG and data[:2] == b'\xff\xd8' and _is_upright(data):
    try:
      height, width, colors, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError: a colorspace it has no name for
      colors = ''
    if colors in ('YCbCr', 'Gray', 'RGB') and height * width <= MAX_PIXELS:
      decode = functools.partial(_decode_jpeg, data, name, channels)
      return LazyImage(height, width, decode, can_reduce=True)
  return of_pixels(_decode(data, name, channels))


def _is_upright(jpeg: bytes) -> bool:
  """Whether it is shown as it is stored; Pillow is asked only where there is an EXIF block."""
  at = 2
  while jpeg[at : at + 1] == b'\xff' and jpeg[at + 1 : at + 2] != _SOS:
    if jpeg[at + 4 : at + 10] == b'Exif\0\0':
      break
    # A marker may be preceded by any number of bytes 0xFF.
    is_fill = jpeg[at + 1 : at + 2] == b'\xff'
    at += 1 if is_fill else 2 + int.from_bytes(jpeg[at + 2 : at + 4])
  else:
    return True
  try:
    with Image.open(io.BytesIO(jpeg), formats=('JPEG',)) as image:
      return image.getexif().get(ORIENTATION, 1) == 1
  except _NO_IMAGE:
    return False  # it is looked at again, and its fault named


def _decode_jpeg(
  data: bytes, name: str, channels: int, box: Box | None, reduction: int
) -> np.ndarray:
  """A part of a JPEG, at a fraction of its size."""
  tiles, shifted = data, box
  if box is not None:
    left, top, right, bottom = box
    needed = [(side - turbojpeg.MARGIN) * reduction for side in (left, top)]
    needed += [(side + turbojpeg.MARGIN) * reduction for side in (right, bottom)]
    if cut_out := jpeg_tiles.cut_box(data, needed):
      tiles, x, y = cut_out
      x, y = x // reduction, y // reduction
      shifted = left - x, top - y, right - x, bottom - y
    part = turbojpeg.decode_box(tiles, shifted, channels, reduction)
    if part is not None:
      return part
  try:
    height, width, _, _ = simplejpeg.decode_jpeg_header(tiles)
    least = -(-height // reduction), -(-width // reduction)
    pixels = simplejpeg.decode_jpeg(
      tiles, _SIMPLEJPEG[channels], min_height=least[0], min_width=least[1]
    )
    return cut(pixels, shifted)
  except (ValueError, KeyError):  # it refuses harmless flaws, too; Pillow tells them from damage
    pixels = _decode(data, name, channels)
  if box is not None and reduction > 1:
    box = tuple(side * reduction for side in box)
  return cut(pixels, box)


def _decode(data: bytes, name: str, channels: int) -> np.ndarray:
  """Any image, by Pillow."""
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
      if image.width * image.height > MAX_PIXELS:
        raise BadExampleError(
          f'{name} has {image.width:,} x {image.height:,} pixels; at most {MAX_PIXELS:,} are read.'
        )
      return of_pillow(ImageOps.exif_transpose(image), channels)
  except _NO_IMAGE as error:
    reason = str(error).rstrip('.')
    if isinstance(error, UnidentifiedImageError):
      reason = 'not a known image format' if data else 'the file is empty'
    if isinstance(error, Image.DecompressionBombError):
      reason = f'it claims to have more than the {MAX_PIXELS:,} pixels that are read at most'
    raise BadExampleError(f'{name} cannot be read as an image: {reason}.') from None


def decode_image(data: bytes, name: str, channels: int = 3) -> np.ndarray:
  """All pixels of an image file, as `open_image` gives them: (H, W, channels) uint8."""
  return open_image(data, name, channels).pixels(None)


def check_image(data: bytes, name: str) -> None:
  """Raises `BadExampleError` for bytes that hold no whole image.

  A JPEG is decoded at an eighth of its size, which reads all of it but computes little. Of one of
  more than a megabyte, header and end are enough.
  """
  picture = open_image(data, name)
  if picture.can_reduce and len(data) > _LARGE and data[-64:].rstrip(b'\0').endswith(b'\xff\xd9'):
    return
  picture.decode(None, 8 if picture.can_reduce else 1)
