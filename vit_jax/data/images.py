"""Bytes to pixels: any image file to (H, W, 3) uint8 RGB."""

import io

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from vit_jax.errors import UserError

# Names that count as images, compared in lower case.
SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP')
_ORIENTATION = 0x0112  # EXIF tag


def to_rgb(image: Image.Image) -> Image.Image:
  """Any Pillow mode to RGB: 16-bit is scaled, transparency is laid over white."""
  if image.mode.startswith('I') or image.mode == 'F':  # 16- or 32-bit grayscale
    pixels = np.asarray(image).astype(np.float32)
    if image.mode.startswith('I'):
      pixels = pixels / 257.0  # 65535 -> 255
    image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), 'L')
  if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image)
  return image.convert('RGB')


def decode_image(data: bytes, name: str) -> np.ndarray:
  """Decodes JPEG, PNG, WebP or BMP, turned upright as its EXIF tag says.

  Grayscale, CMYK, palette, alpha and 16-bit images come out as RGB, too; of an animation the
  first frame.

  Args:
    data: the content of the file.
    name: the file's name, for the error message.

  Returns:
    (H, W, 3) uint8.

  Raises:
    UserError: when the bytes are not a whole image.
  """
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
      orientation = image.getexif().get(_ORIENTATION, 1)
      if image.format == 'JPEG' and image.mode in ('RGB', 'L') and orientation == 1:
        try:
          return simplejpeg.decode_jpeg(data, 'RGB')
        except ValueError:  # it refuses harmless flaws, too; Pillow tells them from damage
          pass
      return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
  except (
      UnidentifiedImageError, Image.DecompressionBombError,
      OSError, ValueError, TypeError, SyntaxError, EOFError,
  ) as error:  # fmt: skip
    reason = 'not a known image format' if isinstance(error, UnidentifiedImageError) else error
    raise UserError(f'{name} cannot be read as an image: {reason}.') from None


def check_image(data: bytes, name: str) -> None:
  """Raises `UserError` for bytes that do not hold a whole image, decoding only where needed.

  A header that parses and an end marker that is there are enough; without the marker the image
  is decoded to find out.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      end = {'JPEG': b'\xff\xd9', 'PNG': b'IEND'}.get(image.format)
  except Exception:  # noqa: BLE001 - decode_image tells the errors apart
    end = None
  if end is None or end not in data[-65536:]:
    decode_image(data, name)
