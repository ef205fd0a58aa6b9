"""One file of a prepared data set: written under another name, synced, renamed.

Beside it, in TARGET/.unfinished, goes a file of what it holds; a shard that has both is whole.
"""

import dataclasses
import errno
import hashlib
import io
import json
import os
import pathlib
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image

from vit_jax.data import imagenet
from vit_jax.data.decoding import jpeg_tiles
from vit_jax.data.decoding.images import decode_image
from vit_jax.data.sources import tf_example
from vit_jax.data.sources.array_record import UNFINISHED
from vit_jax.errors import BadExampleError
from vit_jax.prepare import task_pool
from vit_jax.prepare.examples import Examples
from vit_jax.prepare.statistics import (
  HASH_BYTES,
  SplitStatistics,
  content_hash,
  examine,
  label_list,
  reason,
)

# How ArrayRecord says that there is no room.
_NO_SPACE = {errno.ENOSPC: 'No space left', errno.EDQUOT: 'Disk quota', errno.EFBIG: 'too large'}


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How images are stored.

  Attributes:
    size: the shorter side of larger images; 0 keeps all bytes as they are.
    quality: of the JPEGs that resized images become.
  """

  size: int = 0
  quality: int = 95


@dataclasses.dataclass(frozen=True)
class Shard:
  """A task: the examples of one file.

  Attributes:
    file: its path.
    examples: what goes into it.
    multi_label: whether labels are vectors of zeros and ones.
    real: whether records have ReaL labels; only ImageNet's validation images have any.
    encoding: how images are stored.
  """

  file: str
  examples: Examples
  multi_label: bool
  real: bool
  encoding: Encoding

  @property
  def facts(self) -> pathlib.Path:
    """Where what it holds is kept until the data set is whole."""
    path = pathlib.Path(self.file)
    return path.parent / UNFINISHED / f'{path.name}.json'

  @property
  def hashes(self) -> pathlib.Path:
    """Where the content hashes of its examples are kept until then."""
    return self.facts.with_suffix('.hashes')


def store(data: bytes | np.ndarray, name: str, encoding: Encoding) -> bytes:
  """The bytes that are stored for an image: as it came, pixels as PNG, too large ones as JPEG.

  Raises:
    BadExampleError: when it cannot be decoded.
  """
  if encoding.size:
    pixels = data if isinstance(data, np.ndarray) else decode_image(data, name)
    height, width = pixels.shape[:2]
    scale = encoding.size / min(height, width)
    if scale < 1:
      size = (max(1, round(width * scale)), max(1, round(height * scale)))
      small = Image.fromarray(_for_pillow(pixels)).resize(size, Image.Resampling.LANCZOS)
      small = small if small.mode == 'L' else small.convert('RGB')
      return jpeg_tiles.encode(small, encoding.quality)
  if isinstance(data, bytes):
    return data
  file = io.BytesIO()
  try:
    Image.fromarray(_for_pillow(data)).save(file, 'PNG')
  except (TypeError, OSError):
    raise BadExampleError(
      f'{name} has {data.shape[2]} channels, which no image file has; 1, 3 and 4 are stored.'
    ) from None
  return file.getvalue()


def _for_pillow(pixels: np.ndarray) -> np.ndarray:
  return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def _record(stored: bytes, labels: list[int], name: str, shard: Shard) -> bytes:
  features = {
    'image': [stored],
    'labels' if shard.multi_label else 'label': labels,
    'file_name': [name.encode('utf-8', 'backslashreplace')],
  }
  if shard.real:
    number = imagenet.val_number(name)
    features['real'] = () if number is None else imagenet.real_labels()[number]
  return tf_example.encode(features)


def sync(path: pathlib.Path) -> None:
  """Sees a file or a folder's entries on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_file(path: pathlib.Path, content: bytes) -> None:
  """Writes a file, whole or not at all."""
  part = path.with_name(path.name + '.part')
  with open(part, 'wb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  part.rename(path)
  sync(path.parent)


def _write_records(
  shard: Shard, part: pathlib.Path, tell: task_pool.Tell
) -> tuple[SplitStatistics, bytes]:
  """Writes the records of a shard; returns the counts and the hashes of its examples."""
  found, hashes, examples = SplitStatistics(), bytearray(), shard.examples
  writer = ArrayRecordWriter(str(part), 'group_size:1,uncompressed')  # images are compressed
  try:
    for i in range(len(examples)):
      name, digest = '', bytes(HASH_BYTES)
      try:
        name = examples.name(i)
        data, label = examples.read(i)
        facts = examine(data, name, decode=True)
        stored = store(data, name, shard.encoding)
        labels = label_list(label, shard.multi_label)
        writer.write(_record(stored, labels, name, shard))
        if stored is not data:
          facts = dataclasses.replace(examine(stored, '', decode=False), remarks=facts.remarks)
        found.add(facts, labels, name, len(stored))
        digest = content_hash(data)
      except BadExampleError as error:
        found.add_unreadable(name, reason(error, name))
      hashes += digest
      tell(1)
  finally:
    writer.close()
  return found, bytes(hashes)


def _about(path: pathlib.Path, records: int) -> dict[str, Any]:
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return {'records': records, 'bytes': path.stat().st_size, 'sha256': digest}


def write_shard(shard: Shard, tell: task_pool.Tell) -> None:
  """Writes a shard, then its facts.

  Raises:
    OSError: when there is no room.
  """
  path = pathlib.Path(shard.file)
  part = path.with_name(path.name + '.part')
  try:
    found, hashes = _write_records(shard, part, tell)
    if ArrayRecordReader(str(part)).num_records() != found.examples:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
  except (RuntimeError, ValueError) as error:  # what ArrayRecord raises
    for number, said in _NO_SPACE.items():
      if said in str(error):
        raise OSError(number, os.strerror(number), str(path)) from None
    raise
  sync(part)
  about = {'file': path.name, **_about(part, found.examples)}
  part.rename(path)
  sync(path.parent)
  write_file(shard.hashes, hashes)
  write_file(shard.facts, json.dumps({'shard': about, 'tally': found.to_json()}).encode())


def is_whole(shard: Shard, accept_bad: bool) -> bool:
  """Whether a shard is written; one that lacks bad examples counts only if they are accepted."""
  try:
    facts = json.loads(shard.facts.read_text())
    if facts['tally']['unreadable'] and not accept_bad:
      return False  # the images may have been mended since
    return pathlib.Path(shard.file).stat().st_size == facts['shard']['bytes']
  except (OSError, ValueError, KeyError):
    return False
