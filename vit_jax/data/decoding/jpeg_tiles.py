"""JPEGs from which a part can be cut out without decoding what is around it.

`encode` has every few blocks of pixels begin anew (restart markers), and writes how long each such
tile is into an application segment, which other readers pass over. So `cut_box` makes a JPEG of
only the tiles that a crop needs. Of a file without that index nothing is known before it is
decoded, and everything above and left of a crop has to be.
"""

import io
import re
import struct

import numpy as np
from PIL import Image

_SOS, _FRAME, _INDEX = 0xDA, 0xC0, 0xEB  # markers: start of scan, baseline frame, APP11
_NAME = b'TILES\0'
_TILE_END = re.compile(rb'\xff[\xd0-\xd7\xd9]')  # a restart marker, or the end of the image
# The name, width and height of a tile in pixels, where frame and coded pixels begin; then the
# lengths of the tiles (16 bits each), row by row.
_HEAD = struct.Struct('>6sBBII')
_RESTARTS = 0xD0 + np.arange(2**15, dtype=np.uint8) % 8  # these markers count from 0 to 7
_MOST_BLOCKS = 4  # of a tile: a longer one saves nothing, a shorter one takes more bytes

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


def encode(image: Image.Image, quality: int) -> bytes:
  """A baseline JPEG, gray or color (4:2:0), with an index of tiles."""
  block = 8 if image.mode == 'L' else 16
  in_row = -(-image.width // block)
  tile = next((n for n in range(2, _MOST_BLOCKS + 1) if in_row % n == 0), 1)
  file = io.BytesIO()
  options = {} if image.mode == 'L' else {'subsampling': '4:2:0'}
  image.save(file, 'JPEG', quality=quality, restart_marker_blocks=tile, **options)
  jpeg = file.getvalue()
  frame, pixels = _frame_and_pixels(jpeg)
  ends = [pixels, *(match.end() for match in _TILE_END.finditer(jpeg, pixels))]
  lengths = np.diff(ends)
  size = 2 + _HEAD.size + 2 * len(lengths)
  if size >= 2**16 or lengths.max() >= 2**16:
    return jpeg  # so large an image is not indexed
  head = _HEAD.pack(_NAME, block * tile, block, frame + 2 + size, pixels + 2 + size)
  index = bytes((0xFF, _INDEX)) + size.to_bytes(2) + head + lengths.astype('>u2').tobytes()
  return jpeg[:2] + index + jpeg[2:]


def _frame_and_pixels(jpeg: bytes) -> tuple[int, int]:
  """Where the segment of the frame and where the coded pixels begin."""
  at, frame = 2, 0
  while True:
    marker, after = jpeg[at + 1], at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    if marker == _SOS:
      return frame, after
    frame = at if marker == _FRAME else frame
    at = after


def cut_box(jpeg: bytes, box: Box) -> tuple[bytes, int, int] | None:
  """A JPEG of the tiles that a box touches; the box may reach beyond the image.

  Returns:
    It, and the column and row of the whole at which it begins; None without an index, or with
    one that is not of this file.
  """
  if jpeg[2:4] != bytes((0xFF, _INDEX)) or jpeg[6 : 6 + len(_NAME)] != _NAME:
    return None
  size = int.from_bytes(jpeg[4:6])
  if size < 2 + _HEAD.size or 4 + size > len(jpeg):
    return None
  _, wide, tall, frame, pixels = _HEAD.unpack_from(jpeg, 6)
  if not wide or not tall or pixels > len(jpeg) or jpeg[frame : frame + 2] != b'\xff\xc0':
    return None
  height, width = (int.from_bytes(jpeg[frame + i : frame + i + 2]) for i in (5, 7))
  rows, columns = -(-height // tall), -(-width // wide)
  left, top = max(box[0], 0) // wide, max(box[1], 0) // tall
  right, bottom = min(-(-box[2] // wide), columns), min(-(-box[3] // tall), rows)
  lengths = np.frombuffer(jpeg, '>u2', (size - 2 - _HEAD.size) // 2, 6 + _HEAD.size)
  if len(lengths) != rows * columns or left >= right or top >= bottom:
    return None
  ends = np.cumsum(lengths, dtype=np.int64)
  wanted = lengths.reshape(rows, columns)[top:bottom, left:right]
  stops = ends[top * columns + right - 1 : bottom * columns : columns] + pixels
  runs = zip((stops - wanted.sum(axis=1, dtype=np.int64)).tolist(), stops.tolist(), strict=True)
  tiles = np.frombuffer(b''.join([jpeg[a:b] for a, b in runs]), np.uint8).copy()
  ends = np.cumsum(wanted, dtype=np.int64) - 1
  if ends[-1] != len(tiles) - 1 or (tiles[ends - 1] != 0xFF).any():
    return None
  tiles[ends] = _RESTARTS[: len(ends)]
  tiles[-1] = 0xD9  # the end of the image
  shape = (
    min(height - top * tall, (bottom - top) * tall),
    min(width - left * wide, (right - left) * wide),
  )
  head = (
    b'\xff\xd8',
    jpeg[4 + size : frame + 5],
    *(side.to_bytes(2) for side in shape),
    jpeg[frame + 9 : pixels],
    tiles.tobytes(),
  )
  return b''.join(head), left * wide, top * tall
