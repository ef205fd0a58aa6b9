"""Writes one shard of a prepared data set.

A shard is complete once its metadata is in TARGET/.unfinished, which is written after it.
"""

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import pathlib
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from vit_jax import files
from vit_jax.data import imagenet
from vit_jax.data.decoding import jpeg_tiles
from vit_jax.data.decoding.images import decode_image
from vit_jax.data.sources import tf_example
from vit_jax.data.sources.array_record import UNFINISHED, import_array_record
from vit_jax.errors import BadExampleError
from vit_jax.prepare.examples import Examples
from vit_jax.prepare.file_lock import try_lock
from vit_jax.prepare.statistics import SplitStatistics, collect_statistics
from vit_jax.prepare.task_pool import ReportProgress

_LABEL = '<i4'
# What ArrayRecord's errors say when there is no room.
_NO_SPACE = {errno.ENOSPC: 'No space left', errno.EDQUOT: 'Disk quota', errno.EFBIG: 'too large'}


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How images are stored.

  Attributes:
    size: the shorter side, in pixels, that larger images are resized to; 0 keeps all files as they
      are.
    quality: JPEG quality of resized images, 1 to 100.
  """

  size: int = 0
  quality: int = 95


@dataclasses.dataclass(frozen=True)
class Shard:
  """A shard to be written.

  Attributes:
    file: its path.
    split: its split.
    examples: its examples.
    multi_label: whether labels are vectors of zeros and ones.
    real: whether records have ReaL labels; only ImageNet's validation images have any.
    encoding: how images are stored.
  """

  file: str
  split: str
  examples: Examples
  multi_label: bool
  real: bool
  encoding: Encoding

  @property
  def name(self) -> str:
    """The name of its file."""
    return pathlib.Path(self.file).name

  @property
  def metadata_file(self) -> pathlib.Path:
    """JSON that exists until the data set is finished: {'shard': …, 'statistics': …}."""
    return pathlib.Path(self.file).parent / UNFINISHED / f'{self.name}.json'

  @property
  def hashes_file(self) -> pathlib.Path:
    """The concatenated content hashes of its examples, until the data set is finished."""
    return self.metadata_file.with_suffix('.hashes')

  @property
  def labels_file(self) -> pathlib.Path:
    """The label of each record, little-endian int32; not for multi-label data."""
    return self.metadata_file.with_suffix('.labels')


def encode_image(image: bytes | np.ndarray, name: str, encoding: Encoding) -> bytes:
  """Returns the file to store for an image: the content of a file, or (H, W, C) uint8.

  An image larger than `encoding.size` becomes a JPEG, other pixels a PNG; other files stay as they
  are. Raises `BadExampleError`, with the name, for an image that cannot be decoded or stored.
  """
  if isinstance(image, bytes) and not encoding.size:
    return image
  pixels = image if isinstance(image, np.ndarray) else decode_image(image, name)
  height, width, channels = pixels.shape
  is_larger = 0 < encoding.size < min(height, width)
  if isinstance(image, bytes) and not is_larger:
    return image
  try:
    pillow_image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
  except TypeError:
    raise BadExampleError(
      f'{name} has {channels} channels; only 1, 3 or 4 channels can be stored.'
    ) from None
  if is_larger:
    scale = encoding.size / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = pillow_image.resize(size, Image.Resampling.LANCZOS)
    resized = resized if resized.mode == 'L' else resized.convert('RGB')
    return jpeg_tiles.encode(resized, encoding.quality)
  file = io.BytesIO()
  pillow_image.save(file, 'PNG')
  return file.getvalue()


def _encode_record(image_file: bytes, labels: list[int], name: str, shard: Shard) -> bytes:
  features = {
    'image': [image_file],
    'labels' if shard.multi_label else 'label': labels,
    'file_name': [name.encode('utf-8', 'backslashreplace')],
  }
  if shard.real:
    number = imagenet.val_number(name)
    features['real'] = () if number is None else imagenet.real_labels()[number]
  return tf_example.encode(features)


def _write_records(
  shard: Shard, path: epath.Path, progress: ReportProgress
) -> tuple[SplitStatistics, bytes, list[int]]:
  """Writes the ArrayRecord file; returns its statistics, content hashes, and labels."""
  module, all_labels = import_array_record(), []
  # Images are compressed already.
  writer = module.ArrayRecordWriter(str(path), 'group_size:1,uncompressed')

  def write(image: bytes | np.ndarray, labels: list[int], name: str) -> bytes:
    image_file = encode_image(image, name, shard.encoding)
    writer.write(_encode_record(image_file, labels, name, shard))
    all_labels.extend(labels)
    return image_file

  try:
    statistics, hashes = collect_statistics(
      shard.examples, shard.multi_label, progress, decode=True, write=write
    )
  finally:
    writer.close()
  if module.ArrayRecordReader(str(path)).num_records() != statistics.examples:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), shard.file)
  return statistics, hashes, all_labels


def write_shard(shard: Shard, progress: ReportProgress) -> None:
  """Writes a shard, then its hashes and labels, then its metadata.

  While it writes, it holds a lock on its scratch file. Raises `OSError` when the disk is full.
  """
  path, written = pathlib.Path(shard.file), []
  with contextlib.ExitStack() as stack:

    def write(scratch: epath.Path) -> None:
      try_lock(stack.enter_context(open(scratch, 'ab')))
      written.extend(_write_records(shard, scratch, progress))

    try:
      files.write_atomically(path, write, sync=True)
    except (RuntimeError, ValueError) as error:  # from ArrayRecord
      for number, text in _NO_SPACE.items():
        if text in str(error):
          raise OSError(number, os.strerror(number), shard.file) from None
      raise
  statistics, hashes, labels = written
  with path.open('rb') as file:
    sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
  size, records = path.stat().st_size, statistics.examples
  metadata = {
    'shard': {'file': path.name, 'records': records, 'bytes': size, 'sha256': sha256},
    'statistics': statistics.to_json(),
  }
  files.write_bytes(shard.hashes_file, hashes)
  if not shard.multi_label:
    files.write_bytes(shard.labels_file, np.array(labels, _LABEL).tobytes())
  files.write_bytes(shard.metadata_file, json.dumps(metadata).encode())


def read_metadata(shard: Shard) -> tuple[dict[str, Any], SplitStatistics]:
  """Returns what the card says about a complete shard (file, records, bytes, …), its statistics."""
  metadata = json.loads(shard.metadata_file.read_text())
  return metadata['shard'], SplitStatistics.from_json(metadata['statistics'])


def read_labels(shard: Shard) -> np.ndarray:
  """Returns the labels of a complete shard, in the order of its records: (records,) int32."""
  return np.frombuffer(shard.labels_file.read_bytes(), _LABEL)


def is_complete(shard: Shard, accept_unreadable: bool) -> bool:
  """Whether a shard has been written; if it lacks unreadable examples, only if that is accepted."""
  try:
    entry, statistics = read_metadata(shard)
    if statistics.unreadable and not accept_unreadable:
      return False  # the images may have been repaired since
    if not shard.multi_label and len(read_labels(shard)) != entry['records']:
      return False
    return pathlib.Path(shard.file).stat().st_size == entry['bytes']
  except (OSError, ValueError, KeyError, TypeError):  # the last two: an older version wrote it
    return False
