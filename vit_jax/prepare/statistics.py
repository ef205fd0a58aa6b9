"""Statistics of the images of a data set; each image is read once and none is kept."""

import dataclasses
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from vit_jax.data.decoding.exif import is_upright, orientation
from vit_jax.data.decoding.images import FORMATS, check_image, decode_image
from vit_jax.data.decoding.limits import max_pixels
from vit_jax.errors import BadExampleError
from vit_jax.prepare.examples import Examples
from vit_jax.text import printable

HASH_BYTES = 16
_MAX_REASONS = 1000  # unreadable examples of a split that are listed by name
_MAX_NAMES = 5  # examples that are named for a warning
_MAX_FIRST_EXAMPLES = 3  # of each class, for the pictures of the card
_FORMATS = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}


@dataclasses.dataclass(frozen=True)
class ImageProperties:
  """Format, mode and size in pixels (when upright) of an image, and warnings about it."""

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

  def add_unreadable(self, name: str, reason: str) -> None:
    self.merge(SplitStatistics(unreadable=1, reasons=[(name, reason)]))

  def add(
    self, properties: ImageProperties, labels: Sequence[int], name: str, num_bytes: int
  ) -> None:
    self.merge(
      SplitStatistics(
        examples=1,
        bytes=num_bytes,
        classes=Counter(labels),
        widths=Counter([properties.width]),
        heights=Counter([properties.height]),
        formats=Counter([properties.format]),
        modes=Counter([properties.mode]),
        warnings={warning: (1, [name]) for warning in properties.warnings},
        first_examples={label: [0] for label in labels},
      )
    )

  def merge(self, following: 'SplitStatistics') -> None:
    """Adds the statistics of the examples that follow."""
    for label, indices in following.first_examples.items():
      merged = self.first_examples.setdefault(label, [])
      merged += [self.examples + i for i in indices[: _MAX_FIRST_EXAMPLES - len(merged)]]
    self.examples += following.examples
    self.bytes += following.bytes
    for name in ('classes', 'widths', 'heights', 'formats', 'modes'):
      getattr(self, name).update(getattr(following, name))
    for warning, (count, names) in following.warnings.items():
      previous_count, previous_names = self.warnings.get(warning, (0, []))
      self.warnings[warning] = (previous_count + count, [*previous_names, *names][:_MAX_NAMES])
    self.unreadable += following.unreadable
    self.reasons += following.reasons[: _MAX_REASONS - len(self.reasons)]

  def to_json(self) -> dict[str, Any]:
    return vars(self)

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> 'SplitStatistics':
    """Restores what `to_json` wrote; raises `TypeError` for what another version wrote."""
    statistics = cls(**fields)
    for name in ('classes', 'widths', 'heights', 'first_examples'):
      setattr(statistics, name, {int(key): value for key, value in fields[name].items()})
    for name in ('classes', 'widths', 'heights', 'formats', 'modes'):
      setattr(statistics, name, Counter(getattr(statistics, name)))
    statistics.warnings = {text: (*value,) for text, value in fields['warnings'].items()}
    statistics.reasons = [(name, reason) for name, reason in fields['reasons']]
    return statistics


def _reason(error: BadExampleError, name: str) -> str:
  """Why an example is unreadable, without its name."""
  reason = str(error).removeprefix(f'{printable(name)} ')
  reason = reason.removeprefix('cannot be read as an image: ').removeprefix('cannot be read: ')
  return reason.removeprefix('is ').rstrip('.')


def _is_intact_jpeg(data: bytes) -> bool:
  try:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    if int(height) * int(width) > max_pixels():
      return False
    simplejpeg.decode_jpeg(data, 'GRAY')
  except (ValueError, KeyError):  # KeyError: a colorspace it has no name for, such as CMYK
    return False
  return True


def examine(data: bytes | np.ndarray, name: str, decode: bool) -> ImageProperties:
  """Returns the properties of an image: the content of a file, or (H, W, C) uint8.

  It is decoded completely, or as far as `check_image` does. Raises `BadExampleError` for an
  unreadable image.
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
  else:
    is_upright(data, name)  # or it raises
  with Image.open(io.BytesIO(data)) as image:
    image_format = image.format or 'unknown'
    warnings = []
    if flawed and image_format == 'JPEG' and image.mode != 'CMYK':
      warnings.append('partly damaged, decoded as far as possible')
    suffix = os.path.splitext(name)[1].lower()
    if _FORMATS.get(suffix, image_format) != image_format:
      warnings.append(f'{image_format} file with the suffix {suffix}')
    if getattr(image, 'is_animated', False):
      kind = 'several pages' if image_format == 'TIFF' else 'animated'
      part = 'page' if image_format == 'TIFF' else 'frame'
      warnings.append(f'{kind}, only the first {part} is used')
    width, height = image.size
    has_exif = b'Exif' in data[:65536] or image_format == 'TIFF'
    if has_exif and (turned := orientation(image, name)) != 1:
      warnings.append('turned upright by its EXIF orientation')
      if turned >= 5:
        width, height = height, width
    return ImageProperties(image_format, image.mode, width, height, tuple(warnings))


def content_hash(data: bytes | np.ndarray) -> bytes:
  """Returns `HASH_BYTES` of SHA-256; pixels are hashed with their shape."""
  if isinstance(data, np.ndarray):
    data = repr(data.shape).encode() + np.ascontiguousarray(data).tobytes()
  return hashlib.sha256(data).digest()[:HASH_BYTES]


def collect_statistics(
  examples: Examples,
  multi_label: bool,
  progress: Callable[[int], object],
  *,
  decode: bool,
  write: Callable[[bytes | np.ndarray, list[int], str], bytes] | None = None,
) -> tuple[SplitStatistics, bytes]:
  """Reads examples; returns their statistics and their concatenated content hashes.

  An unreadable example has a hash of zeros.

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
      labels = np.flatnonzero(label).tolist() if multi_label else [int(label)]
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
