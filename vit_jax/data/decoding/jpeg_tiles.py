"""JPEGs that can be cropped without decoding what lies outside of the crop.

`encode` places a restart marker after every few blocks and stores the length of each such tile in
an application segment, which other readers skip. From that index `crop` builds a JPEG of only the
tiles that a box touches. A JPEG without the index can only be decoded from its first block on.
"""

import io
import re
import struct

import numpy as np
from PIL import Image

from vit_jax.data.decoding.box import Box

_SOS, _SOF0, _APP11 = 0xDA, 0xC0, 0xEB  # markers: start of scan, baseline frame, our index
_INDEX_NAME = b'TILES\0'
_TILE_END = re.compile(rb'\xff[\xd0-\xd7\xd9]')  # a restart marker, or the end of the image
# Name; width and height of a tile in pixels; offsets of the frame header and of the entropy-coded
# data. The lengths of the tiles follow (16 bits each), row by row.
_INDEX_HEADER = struct.Struct('>6sBBII')
_RESTART_MARKERS = 0xD0 + np.arange(2**15, dtype=np.uint8) % 8  # they count from 0 to 7
_MAX_BLOCKS = 4  # in a tile: longer ones save little decoding, shorter ones take more bytes


def encode(image: Image.Image, quality: int) -> bytes:
  """Encodes a baseline JPEG, gray or color (4:2:0), with an index of tiles."""
  block = 8 if image.mode == 'L' else 16
  blocks_in_row = -(-image.width // block)
  tile = next((n for n in range(2, _MAX_BLOCKS + 1) if blocks_in_row % n == 0), 1)
  file = io.BytesIO()
  options = {} if image.mode == 'L' else {'subsampling': '4:2:0'}
  image.save(file, 'JPEG', quality=quality, restart_marker_blocks=tile, **options)
  jpeg = file.getvalue()
  frame, scan = _find_frame_and_scan(jpeg)
  ends = [scan, *(match.end() for match in _TILE_END.finditer(jpeg, scan))]
  lengths = np.diff(ends)
  size = 2 + _INDEX_HEADER.size + 2 * len(lengths)
  if size >= 2**16 or lengths.max() >= 2**16:
    return jpeg  # too large for an index
  shift = 2 + size
  header = _INDEX_HEADER.pack(_INDEX_NAME, block * tile, block, frame + shift, scan + shift)
  index = bytes((0xFF, _APP11)) + size.to_bytes(2) + header + lengths.astype('>u2').tobytes()
  return jpeg[:2] + index + jpeg[2:]


def _find_frame_and_scan(jpeg: bytes) -> tuple[int, int]:
  """The offsets of the frame header and of the entropy-coded data."""
  offset, frame = 2, 0
  while True:
    marker = jpeg[offset + 1]
    end = offset + 2 + int.from_bytes(jpeg[offset + 2 : offset + 4])
    if marker == _SOS:
      return frame, end
    frame = offset if marker == _SOF0 else frame
    offset = end


def crop(jpeg: bytes, box: Box) -> tuple[bytes, int, int] | None:
  """Builds a JPEG of the tiles that a box touches, without decoding.

  Args:
    jpeg: a file written by `encode`.
    box: in pixels; it may reach beyond the image.

  Returns:
    The smaller JPEG, and the column and row of the image at which it begins; None without an
    index, with one that does not match the file, or if the box lies outside of the image.
  """
  if jpeg[2:4] != bytes((0xFF, _APP11)) or jpeg[6 : 6 + len(_INDEX_NAME)] != _INDEX_NAME:
    return None
  size = int.from_bytes(jpeg[4:6])
  if size < 2 + _INDEX_HEADER.size or 4 + size > len(jpeg):
    return None
  _, tile_width, tile_height, frame, scan = _INDEX_HEADER.unpack_from(jpeg, 6)
  is_valid = tile_width and tile_height and scan <= len(jpeg)
  if not is_valid or jpeg[frame : frame + 2] != bytes((0xFF, _SOF0)):
    return None
  height, width = (int.from_bytes(jpeg[frame + i : frame + i + 2]) for i in (5, 7))
  rows, columns = -(-height // tile_height), -(-width // tile_width)
  # From here on in tiles.
  left, top = max(box.left, 0) // tile_width, max(box.top, 0) // tile_height
  right = min(-(-box.right // tile_width), columns)
  bottom = min(-(-box.bottom // tile_height), rows)
  lengths = np.frombuffer(jpeg, '>u2', (size - 2 - _INDEX_HEADER.size) // 2, 6 + _INDEX_HEADER.size)
  if len(lengths) != rows * columns or left >= right or top >= bottom:
    return None
  scan_data = _join_tiles(jpeg, scan, lengths.reshape(rows, columns), Box(left, top, right, bottom))
  if scan_data is None:
    return None
  new_height = min(height - top * tile_height, (bottom - top) * tile_height)
  new_width = min(width - left * tile_width, (right - left) * tile_width)
  new_size = new_height.to_bytes(2) + new_width.to_bytes(2)
  header = b'\xff\xd8' + jpeg[4 + size : frame + 5] + new_size + jpeg[frame + 9 : scan]
  return header + scan_data, left * tile_width, top * tile_height


def _join_tiles(jpeg: bytes, scan: int, lengths: np.ndarray, tiles: Box) -> bytes | None:
  """Joins a box of tiles and renumbers their restart markers; None if they are not where expected.

  `scan` is the offset of the first tile; `lengths` (rows, columns) are in bytes.
  """
  ends = np.cumsum(lengths, dtype=np.int64).reshape(lengths.shape)
  selected = lengths[tiles.top : tiles.bottom, tiles.left : tiles.right]
  # The tiles of a row are one run of bytes.
  stops = ends[tiles.top : tiles.bottom, tiles.right - 1] + scan
  starts = stops - selected.sum(axis=1, dtype=np.int64)
  runs = zip(starts.tolist(), stops.tolist(), strict=True)
  data = np.frombuffer(b''.join([jpeg[start:stop] for start, stop in runs]), np.uint8).copy()
  last_bytes = np.cumsum(selected, dtype=np.int64) - 1
  if not selected.all() or last_bytes[-1] != len(data) - 1:
    return None
  # Entropy-coded data has no such bytes elsewhere.
  if (data[last_bytes - 1] != 0xFF).any() or (data[last_bytes] >> 4 != 0xD).any():
    return None
  data[last_bytes] = _RESTART_MARKERS[: len(last_bytes)]
  data[-1] = 0xD9  # the end of the image
  return data.tobytes()
