"""The part of a JPEG that is needed, by libjpeg-turbo's own C interface (TurboJPEG 3).

Reading with only crops decoded is a third faster than with whole images (README.md, Reading),
and gives the same pixels. The library is the system's, or the one that the `turbojpeg` package
brings; where there is none, `images.py` decodes whole images with simplejpeg.
"""

import ctypes
import functools
import glob
import importlib.util
import os
import threading

import numpy as np

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels

# From turbojpeg.h: enum values of the interface, which are stable within version 3.
_INIT_DECOMPRESS = 1
_SUBSAMP, _WIDTH = 4, 5  # TJPARAM_…
_BLOCK_WIDTH = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}  # TJSAMP_… -> pixels of an iMCU
_PIXEL_FORMAT = {1: 6, 3: 0}  # channels -> TJPF_GRAY, TJPF_RGB
# With so many pixels more to both sides, colors at the border of the crop are interpolated from
# the same neighbors as in the whole image.
MARGIN = 2


class _Region(ctypes.Structure):
  _fields_ = [(name, ctypes.c_int) for name in ('x', 'y', 'w', 'h')]


class _Fraction(ctypes.Structure):
  _fields_ = [('numerator', ctypes.c_int), ('denominator', ctypes.c_int)]


def _candidates() -> list[str]:
  """Files that may be the library, the system's first."""
  files = ['libturbojpeg.so.0', 'libturbojpeg.dylib', '/opt/homebrew/lib/libturbojpeg.dylib']
  spec = importlib.util.find_spec('turbojpeg')
  if spec and spec.origin:
    files += sorted(glob.glob(os.path.join(os.path.dirname(spec.origin), 'turbojpeg.libs', '*')))
  return files


@functools.cache
def _library() -> ctypes.CDLL | None:
  """TurboJPEG 3 or later, with the signatures of what is called here."""
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


_local = threading.local()  # a decompressor may not be used by two threads at once


def decode_box(data: bytes, box: Box, channels: int, reduction: int = 1) -> np.ndarray | None:
  """The pixels of a JPEG in a box: (bottom - top, right - left, channels) uint8.

  Args:
    data: a file with gray or YCbCr pixels.
    box: lies within the image, or within the reduced one.
    channels: 1 (gray) or 3 (RGB).
    reduction: 1, 2, 4 or 8: the image is decoded at that fraction of its height and width.

  Returns:
    None when it cannot tell: without the library, and for data that is not flawless.
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
  if block is None:
    return None
  if library.tj3SetScalingFactor(handle, _Fraction(1, reduction)):
    return None
  left, top, right, bottom = box
  block //= reduction
  first = max(left - MARGIN, 0) // block * block  # a region begins at a block
  last = min(right + MARGIN, -(-library.tj3Get(handle, _WIDTH) // reduction))
  if library.tj3SetCroppingRegion(handle, _Region(first, top, last - first, bottom - top)):
    return None
  pixels = np.empty((bottom - top, last - first, channels), np.uint8)
  if library.tj3Decompress8(
    handle, data, len(data), pixels.ctypes.data, 0, _PIXEL_FORMAT[channels]
  ):
    return None
  return pixels[:, left - first : right - first]
