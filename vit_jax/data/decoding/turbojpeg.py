"""Decodes a box of a JPEG through libjpeg-turbo's C interface (TurboJPEG 3).

Decoding only the crop makes reading a third faster than decoding whole images
(docs/measurements.md, Input pipeline) and yields the same pixels. The library is the system's or
the one in the `turbojpeg` package; without either, `images.py` decodes whole images with
simplejpeg.
"""

import ctypes
import functools
import glob
import importlib.util
import os
import threading

import numpy as np

from vit_jax.data.decoding.box import Box

# Enum values of turbojpeg.h, stable within version 3.
_INIT_DECOMPRESS = 1
_SUBSAMP, _WIDTH, _HEIGHT = 4, 5, 6  # TJPARAM_…
_BLOCK_WIDTH = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}  # TJSAMP_… -> pixels of an iMCU
_PIXEL_FORMAT = {1: 6, 3: 0}  # channels -> TJPF_GRAY, TJPF_RGB
# Pixels decoded on each side of a crop, so that the colors at its border are interpolated from the
# same neighbors as in the whole image.
MARGIN = 2


class _Region(ctypes.Structure):
  _fields_ = [(name, ctypes.c_int) for name in ('x', 'y', 'w', 'h')]


class _Fraction(ctypes.Structure):
  _fields_ = [('numerator', ctypes.c_int), ('denominator', ctypes.c_int)]


def _candidates() -> list[str]:
  """Possible paths of the library, the system's first."""
  files = ['libturbojpeg.so.0', 'libturbojpeg.dylib', '/opt/homebrew/lib/libturbojpeg.dylib']
  spec = importlib.util.find_spec('turbojpeg')
  if spec and spec.origin:
    files += sorted(glob.glob(os.path.join(os.path.dirname(spec.origin), 'turbojpeg.libs', '*')))
  return files


@functools.cache
def _library() -> ctypes.CDLL | None:
  """Loads TurboJPEG 3 or later and declares the functions used below; None if not installed."""
  for file in _candidates():
    try:
      library = ctypes.CDLL(file)
    except OSError:
      continue
    if not hasattr(library, 'tj3SetCroppingRegion'):  # older than 3
      continue
    handle, data = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_size_t)
    library.tj3Init.restype = handle
    library.tj3DecompressHeader.argtypes = (handle, *data)
    library.tj3Get.argtypes = (handle, ctypes.c_int)
    library.tj3SetCroppingRegion.argtypes = (handle, _Region)
    library.tj3SetScalingFactor.argtypes = (handle, _Fraction)
    library.tj3Decompress8.argtypes = (handle, *data, handle, ctypes.c_int, ctypes.c_int)
    return library
  return None


_local = threading.local()  # a decompressor must not be shared by threads


def decode_box(data: bytes, box: Box, channels: int, reduction: int = 1) -> np.ndarray | None:
  """Decodes a box of a JPEG to (box.height, box.width, channels) uint8.

  Args:
    data: a file with gray or YCbCr pixels.
    box: in pixels of the reduced image.
    channels: 1 (gray) or 3 (RGB).
    reduction: decode at 1/`reduction` of height and width: 1, 2, 4 or 8.

  Returns:
    The pixels; None without the library, for a box that is not within the image, and for any error
    or warning of the decoder.
  """
  library = _library()
  if library is None:
    return None
  if not hasattr(_local, 'handle'):
    _local.handle = library.tj3Init(_INIT_DECOMPRESS)
  handle = _local.handle
  if library.tj3DecompressHeader(handle, data, len(data)):
    return None
  block = _BLOCK_WIDTH.get(library.tj3Get(handle, _SUBSAMP))
  if block is None or library.tj3SetScalingFactor(handle, _Fraction(1, reduction)):
    return None
  height, width = (-(-library.tj3Get(handle, key) // reduction) for key in (_HEIGHT, _WIDTH))
  if not box.is_within(height, width):  # the library may then write beyond the array
    return None
  block //= reduction
  left = max(box.left - MARGIN, 0) // block * block  # a region must begin at a block
  right = min(box.right + MARGIN, width)
  if library.tj3SetCroppingRegion(handle, _Region(left, box.top, right - left, box.height)):
    return None
  pixels = np.empty((box.height, right - left, channels), np.uint8)
  address = pixels.ctypes.data
  if library.tj3Decompress8(handle, data, len(data), address, 0, _PIXEL_FORMAT[channels]):
    return None
  return pixels[:, box.left - left : box.right - left]
