"""Statistics of the images of a data set; each image is read once and none is kept."""

import dataclasses
import hashlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from vit_jax.data.decoding.images import MAX_PIXELS, ORIENTATION, check_image, decode_image
from vit_jax.errors import BadExampleError
from vit_jax.prepare.examples import Examples
from vit_jax.text import printable

HASH_BYTES = 16
_MAX_REASONS = 1000  # unreadable examples of a split that are listed by name
_MAX_NAMES = 5  # examples that are named for a warning
_MAX_FIRST_EXAMPLES = 3  # of each class, for the pictures of the card
_SUFFIXES = {
  'JPEG': ('.jpg', '.jpeg'),
  'PNG': ('.png',),
  'GIF': ('.gif',),
  'WEBP': ('.webp',),
  'BMP': ('.bmp',),
}


@dataclasses.dataclass(frozen=True)
class ImageProperties:
  """What the header of an image says, its size in pixels when upright, and warnings about it."""

  format: str
  mode: str
  width: int
  height: int
  warnings: tuple[str, ...] = ()


@dataclasses.dataclass
class SplitStatistics:
  """Statistics of consecutive examples of one split; those of adjacent ones can be merged.

  Attributes:
    examples, bytes: readable examples, and bytes of their images.
    classes, widths, heights, formats, modes: value -> number of examples.
    warnings: warning -> (number of examples, the names of a few).
    unreadable: number of unreadable examples; reasons: (name, reason) of the first ones.
    first_examples: class -> indices of its first examples, among the readable ones.
  """

  examples: int = 0
  bytes: int = 0
  classes: Counter[int] = dataclasses.field(default_factory=Counter)
  widths: Counter[int] = dataclasses.field(default_factory=Counter)
  heights: Counter[int] = dataclasses.field(default_factory=Counter)
  formats: Counter[str] = dataclasses.field(default_factory=Counter)
  modes: Counter[str] = dataclasses.field(default_factory=Counter)
  warnings: dict[str, tuple[int, list[str]]] = dataclasses.field(default_factory=dict)
  unreadable: int = 0
  reasons: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  first_examples: dict[int, list[int]] = dataclasses.field(default_factory=dict)

  def _add_warning(self, warning: str, count: int, names: Iterable[str]) -> None:
    previous_count, previous_names = self.warnings.get(warning, (0, []))
    self.warnings[warning] = (previous_count + count, [*previous_names, *names][:_MAX_NAMES])

  def add_unreadable(self, name: str, reason: str) -> None:
    self.unreadable += 1
    if len(self.reasons) < _MAX_REASONS:
      self.reasons.append((name, reason))

  def add(
    self, properties: ImageProperties, labels: Sequence[int], name: str, num_bytes: int
  ) -> None:
    for label in labels:
      indices = self.first_examples.setdefault(label, [])
      if len(indices) < _MAX_FIRST_EXAMPLES:
        indices.append(self.examples)
    self.examples += 1
    self.bytes += num_bytes
    self.classes.update(labels)
    self.widths[properties.width] += 1
    self.heights[properties.height] += 1
    self.formats[properties.format] += 1
    self.modes[properties.mode] += 1
    for warning in properties.warnings:
      self._add_warning(warning, 1, [name])

  def merge(self, following: 'SplitStatistics') -> None:
    """Adds the statistics of the examples that follow."""
    for label, new_indices in following.first_examples.items():
      indices = self.first_examples.setdefault(label, [])
      missing = _MAX_FIRST_EXAMPLES - len(indices)
      indices += [self.examples + index for index in new_indices[:missing]]
    self.examples += following.examples
    self.bytes += following.bytes
    for name in ('classes', 'widths', 'heights', 'formats', 'modes'):
      getattr(self, name).update(getattr(following, name))
    for warning, (count, names) in following.warnings.items():
      self._add_warning(warning, count, names)
    self.unreadable += following.unreadable
    self.reasons = (self.reasons + list(following.reasons))[:_MAX_REASONS]

  def to_json(self) -> dict[str, Any]:
    return vars(self)

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> 'SplitStatistics':
    """Restores what `to_json` wrote; raises `KeyError` for what another version wrote."""

    def with_int_keys(counts: Mapping[str, Any]) -> dict[int, Any]:
      return {int(key): value for key, value in counts.items()}

    return cls(
      examples=fields['examples'],
      bytes=fields['bytes'],
      classes=Counter(with_int_keys(fields['classes'])),
      widths=Counter(with_int_keys(fields['widths'])),
      heights=Counter(with_int_keys(fields['heights'])),
      formats=Counter(fields['formats']),
      modes=Counter(fields['modes']),
      warnings={text: (count, names) for text, (count, names) in fields['warnings'].items()},
      unreadable=fields['unreadable'],
      reasons=[(name, reason) for name, reason in fields['reasons']],
      first_examples=with_int_keys(fields['first_examples']),
    )


def _reason(error: BadExampleError, name: str) -> str:
  """Why an example is unreadable, without its name."""
  reason = str(error).removeprefix(f'{name} ').removeprefix('cannot be read as an image: ')
  return printable(reason.removeprefix('cannot be read: ').removeprefix('is ').rstrip('.'))


def _is_intact_jpeg(data: bytes) -> bool:
  """Whether it is a JPEG that decodes completely, without a flaw."""
  try:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    if int(height) * int(width) > MAX_PIXELS:
      return False
    simplejpeg.decode_jpeg(data, 'GRAY')
  except (ValueError, KeyError):  # KeyError: a colorspace it has no name for, such as CMYK
    return False
  return True


def _suffix_warning(name: str, image_format: str) -> list[str]:
  suffix = os.path.splitext(name)[1].lower()
  is_known = suffix in itertools.chain.from_iterable(_SUFFIXES.values())
  if is_known and suffix not in _SUFFIXES.get(image_format, ()):
    return [f'{image_format} file with the suffix {suffix}']
  return []


def examine(data: bytes | np.ndarray, name: str, decode: bool) -> ImageProperties:
  """Returns the properties of an image.

  Args:
    data: the content of an image file, or (H, W, C) uint8.
    name: its file.
    decode: whether to decode it completely; otherwise `check_image` decides what is read.

  Raises:
    BadExampleError: when it cannot be read.
  """
  if isinstance(data, np.ndarray):
    height, width, channels = data.shape
    return ImageProperties('pixels', f'{channels} channels', width, height)
  if not data:
    raise BadExampleError(f'{name} is empty.')
  flawed = decode and not _is_intact_jpeg(data)
  if flawed:
    decode_image(data, name)
  elif not decode:
    check_image(data, name)
  with Image.open(io.BytesIO(data)) as image:
    image_format = image.format or 'unknown'
    warnings = []
    if flawed and image_format == 'JPEG' and image.mode != 'CMYK':
      warnings.append('partly damaged, decoded as far as possible')
    warnings += _suffix_warning(name, image_format)
    if getattr(image, 'is_animated', False):
      warnings.append('animated, only the first frame is used')
    width, height = image.size
    if b'Exif' in data[:65536] and (orientation := image.getexif().get(ORIENTATION, 1)) != 1:
      warnings.append('turned upright by its EXIF orientation')
      if orientation >= 5:
        width, height = height, width
    return ImageProperties(image_format, image.mode, width, height, tuple(warnings))


def content_hash(data: bytes | np.ndarray) -> bytes:
  """Returns `HASH_BYTES` of SHA-256; all zeros, which stand for an unreadable example, never occur.

  Pixels are hashed with their shape.
  """
  if isinstance(data, np.ndarray):
    data = repr(data.shape).encode() + np.ascontiguousarray(data).tobytes()
  return hashlib.sha256(data).digest()[:HASH_BYTES]


def _label_list(label: np.int32 | np.ndarray, multi_label: bool) -> list[int]:
  return np.flatnonzero(label).tolist() if multi_label else [int(label)]


def collect_statistics(
  examples: Examples,
  multi_label: bool,
  progress: Callable[[int], object],
  *,
  decode: bool,
  write: Callable[[bytes | np.ndarray, list[int], str], bytes] | None = None,
) -> tuple[SplitStatistics, bytes]:
  """Reads examples; returns their statistics and their concatenated content hashes.

  Args:
    examples: of one split.
    multi_label: whether labels are vectors of zeros and ones.
    progress: called with 1 after each example.
    decode: see `examine`.
    write: (image, labels, name) -> the bytes it has stored, for each readable example; sizes,
      formats and modes are then those of the stored images. Raises `BadExampleError` for an image
      that cannot be stored.
  """
  statistics, hashes = SplitStatistics(), bytearray()
  for i in range(len(examples)):
    name, image_hash = '', bytes(HASH_BYTES)
    try:
      name = examples.name(i)
      image, label = examples.read(i)
      properties = examine(image, name, decode)
      labels = _label_list(label, multi_label)
      stored = write(image, labels, name) if write else image
      if stored is not image:
        warnings = properties.warnings
        properties = dataclasses.replace(examine(stored, '', decode=False), warnings=warnings)
      num_bytes = stored.nbytes if isinstance(stored, np.ndarray) else len(stored)
      statistics.add(properties, labels, name, num_bytes)
      image_hash = content_hash(image)
    except BadExampleError as error:
      statistics.add_unreadable(name, _reason(error, name))
    hashes += image_hash
    progress(1)
  return statistics, bytes(hashes)
