"""Which side of an image is up, by its EXIF metadata."""

import io
import re

from PIL import Image

from vit_jax.data.decoding.limits import errors_named
from vit_jax.errors import BadExampleError

_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSE = {  # what turns an image of that orientation upright
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
_INTEGER_SIZES = {1: 1, 3: 2, 4: 4}  # of the types BYTE, SHORT, LONG
_TYPES = range(1, 14)  # of TIFF
_DAMAGED = 'its EXIF metadata, which tells which side is up, is damaged'
_START_OF_SCAN = b'\xff\xda'  # a JPEG has no metadata segments after this marker
_EXIF, _XMP = b'Exif\0\0', b'http://ns.adobe.com/xap/1.0/\0'  # names of metadata segments
_TIFF = b'MM\0*', b'II*\0'  # follow the name of EXIF


def orientation(image: Image.Image, name: object) -> int:
  """The EXIF orientation of a Pillow image, 1 to 8; 1 (upright) without a valid one.

  Raises:
    BadExampleError: for EXIF that cannot be parsed; the message begins with `name`.
  """
  try:
    if exif := image.info.get('exif'):
      Image.Exif().load(exif)  # `getexif` raises only the first time, which `Image.open` may hide
      if (value := _read_orientation(exif.removeprefix(_EXIF))) is not None:
        return value or 1
    value = image.getexif().get(_ORIENTATION)  # also that of XMP
    return value if value in _TRANSPOSE else 1
  except Exception:  # noqa: BLE001 - whatever Pillow's parser runs into
    raise BadExampleError(f'{name} cannot be read as an image: {_DAMAGED}.') from None


def _read_orientation(exif: bytes) -> int | None:
  """The orientation in the first directory of EXIF: 0 (unknown) to 8, None without one.

  Pillow takes a directory that is damaged before the orientation for one without it, and the image
  would be fed sideways.

  Raises:
    ValueError: for a directory, or an orientation, that no software writes.
  """
  order = 'little' if exif.startswith(b'II') else 'big'

  def number(at: int, size: int) -> int:
    return int.from_bytes(exif[at : at + size], order)

  start = number(4, 4)
  count = number(start, 2)
  end = start + 2 + 12 * count
  if start < 8 or not start + 2 <= end <= len(exif):
    raise ValueError('the directory is outside of the metadata')
  entries = range(start + 2, end, 12)
  for entry in entries:
    if number(entry, 2) == _ORIENTATION:
      size = _INTEGER_SIZES.get(number(entry + 2, 2), 0)
      value = number(entry + 8, size)
      is_unknown = value == 0 and size == 2  # as many cameras write it
      if number(entry + 4, 4) != 1 or not (value in range(1, 9) or is_unknown):
        raise ValueError('the orientation is no number from 1 to 8')
      return value
  if number(end, 4) > len(exif) or any(number(e + 2, 2) not in _TYPES for e in entries):
    raise ValueError('the directory has entries that do not exist')
  return None


def turn_upright(image: Image.Image, name: object) -> Image.Image:
  """Turns an image upright by its EXIF orientation.

  Raises:
    BadExampleError: as `orientation`.
  """
  image.load()  # a PNG may store its EXIF after the pixels
  transpose = _TRANSPOSE.get(orientation(image, name))
  return image if transpose is None else image.transpose(transpose)


def is_upright(jpeg: bytes, name: object) -> bool:
  """Returns True if the pixels are stored upright, according to the metadata segments, if any.

  Raises:
    BadExampleError: if that cannot be told, because these segments or the markers before them are
      damaged.
  """
  has_exif = has_xmp = False
  offset = 2
  while jpeg[offset : offset + 1] == b'\xff' and not jpeg.startswith(_START_OF_SCAN, offset):
    # One of the two may be damaged.
    has_exif |= jpeg.startswith(_EXIF, offset + 4) or jpeg.startswith(_TIFF, offset + 10)
    has_xmp |= jpeg.startswith(_XMP, offset + 4)
    # A marker may be preceded by any number of bytes 0xFF.
    is_fill = jpeg[offset + 1 : offset + 2] == b'\xff'
    offset += 1 if is_fill else 2 + int.from_bytes(jpeg[offset + 2 : offset + 4])
  block = None
  if not jpeg.startswith(_START_OF_SCAN, offset):  # bytes between segments, or a wrong length
    has_xmp |= _XMP in jpeg
    block = re.search(b'|'.join(map(re.escape, _TIFF)), jpeg)
  if not has_exif and not block and not (has_xmp and b'tiff:Orientation' in jpeg):
    return True
  with errors_named(name), Image.open(io.BytesIO(jpeg), formats=('JPEG',)) as image:
    turn = orientation(image, name)
    if has_exif and 'exif' not in image.info:
      raise ValueError(_DAMAGED)
    if block:  # of which Pillow may have seen only a part
      exif = Image.Exif()
      exif.load(jpeg[block.start() :])
      if exif.get(_ORIENTATION, 1) in _TRANSPOSE and exif[_ORIENTATION] != turn:
        raise ValueError(_DAMAGED)
    return turn == 1
