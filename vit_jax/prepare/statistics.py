"""What the images of a data set are like: read once, counted, and nothing kept but the counts."""

import dataclasses
import hashlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from vit_jax.data.decoding.images import MAX_PIXELS, ORIENTATION, check_image, decode_image
from vit_jax.errors import BadExampleError
from vit_jax.prepare.examples import Examples, shown

HASH_BYTES = 16
_KEEP = 1000  # unreadable examples that are listed by name, in each split
_NAMES = 5  # of examples that are named for a remark
_FIRSTS = 3  # examples of each class that are found again, for pictures
_SUFFIXES = {
  'JPEG': ('.jpg', '.jpeg'),
  'PNG': ('.png',),
  'GIF': ('.gif',),
  'WEBP': ('.webp',),
  'BMP': ('.bmp',),
}


@dataclasses.dataclass
class SplitStatistics:
  """Counts of some examples of one split; tallies of parts add up.

  Attributes:
    examples, bytes: of those that can be read.
    classes, widths, heights, formats, modes: value -> examples.
    remarks: what is odd -> how many, and the names of a few.
    unreadable: how many, and the first of them with their reasons.
    firsts: class -> places of its first examples among those that can be read.
  """

  examples: int = 0
  bytes: int = 0
  classes: Counter[int] = dataclasses.field(default_factory=Counter)
  widths: Counter[int] = dataclasses.field(default_factory=Counter)
  heights: Counter[int] = dataclasses.field(default_factory=Counter)
  formats: Counter[str] = dataclasses.field(default_factory=Counter)
  modes: Counter[str] = dataclasses.field(default_factory=Counter)
  remarks: dict[str, tuple[int, list[str]]] = dataclasses.field(default_factory=dict)
  unreadable: int = 0
  reasons: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  firsts: dict[int, list[int]] = dataclasses.field(default_factory=dict)

  def remark(self, what: str, count: int, names: Sequence[str]) -> None:
    before, known = self.remarks.get(what, (0, []))
    self.remarks[what] = (before + count, [*known, *names][:_NAMES])

  def add_unreadable(self, name: str, reason: str) -> None:
    self.unreadable += 1
    if len(self.reasons) < _KEEP:
      self.reasons.append((name, reason))

  def add(self, facts: 'Facts', labels: Sequence[int], name: str, stored: int) -> None:
    for label in labels:
      places = self.firsts.setdefault(label, [])
      if len(places) < _FIRSTS:
        places.append(self.examples)
    self.examples += 1
    self.bytes += stored
    self.classes.update(labels)
    self.widths[facts.width] += 1
    self.heights[facts.height] += 1
    self.formats[facts.format] += 1
    self.modes[facts.mode] += 1
    for what in facts.remarks:
      self.remark(what, 1, [name])

  def merge(self, other: 'SplitStatistics') -> None:
    """Adds the counts of the examples that follow."""
    for label, places in other.firsts.items():
      known = self.firsts.setdefault(label, [])
      known += [self.examples + place for place in places[: _FIRSTS - len(known)]]
    self.examples += other.examples
    self.bytes += other.bytes
    for name in ('classes', 'widths', 'heights', 'formats', 'modes'):
      getattr(self, name).update(getattr(other, name))
    for what, (count, names) in other.remarks.items():
      self.remark(what, count, names)
    self.unreadable += other.unreadable
    self.reasons = (self.reasons + list(other.reasons))[:_KEEP]

  def to_json(self) -> dict[str, Any]:
    return vars(self)

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> 'SplitStatistics':
    """The tally that `to_json` was written of; JSON has no integers for keys."""

    def whole(counts: Mapping[str, Any]) -> dict[int, Any]:
      return {int(key): value for key, value in counts.items()}

    return cls(
      fields['examples'],
      fields['bytes'],
      *(Counter(whole(fields[name])) for name in ('classes', 'widths', 'heights')),
      *(Counter(fields[name]) for name in ('formats', 'modes')),
      {what: (count, names) for what, (count, names) in fields['remarks'].items()},
      fields['unreadable'],
      [tuple(reason) for reason in fields['reasons']],
      whole(fields['firsts']),
    )


@dataclasses.dataclass(frozen=True)
class Facts:
  """What the header of an image tells."""

  format: str
  mode: str
  width: int
  height: int
  remarks: tuple[str, ...] = ()


def reason(error: BadExampleError, name: str) -> str:
  """Why an example is bad, without its name."""
  said = str(error).removeprefix(f'{name} ').removeprefix('cannot be read as an image: ')
  return shown(said.removeprefix('cannot be read: ').removeprefix('is ').rstrip('.'))


def _is_faultless_jpeg(data: bytes) -> bool:
  """Whether it is a JPEG without the least flaw, by decoding it."""
  try:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    if height * width > MAX_PIXELS:
      return False
    simplejpeg.decode_jpeg(data, 'GRAY')
  except (ValueError, KeyError):  # KeyError: a colorspace it has no name for, such as CMYK
    return False
  return True


def examine(data: bytes | np.ndarray, name: str, decode: bool) -> Facts:
  """The facts of an image.

  Args:
    data: as it is stored.
    name: of its file.
    decode: whether to decode it wholly; else its header and its end are looked at.

  Raises:
    BadExampleError: when it cannot be read.
  """
  if isinstance(data, np.ndarray):
    height, width, channels = data.shape
    return Facts('pixels', f'{channels} channels', width, height)
  if not data:
    raise BadExampleError(f'{name} is empty.')
  flawed = decode and not _is_faultless_jpeg(data)
  if flawed:
    decode_image(data, name)
  elif not decode:
    check_image(data, name)
  with Image.open(io.BytesIO(data)) as image:
    remarks = []
    if flawed and image.format == 'JPEG' and image.mode != 'CMYK':
      remarks.append('damaged in part, decoded as far as it goes')
    suffixes = _SUFFIXES.get(image.format, ())
    suffix = os.path.splitext(name)[1].lower()
    known = itertools.chain.from_iterable(_SUFFIXES.values())
    if suffix in known and suffix not in suffixes:
      remarks.append(f'called {suffix}, is {image.format}')
    if getattr(image, 'is_animated', False):
      remarks.append('animated; its first frame is used')
    width, height = image.size
    if b'Exif' in data[:65536] and (turn := image.getexif().get(ORIENTATION, 1)) != 1:
      remarks.append('turned upright by its EXIF tag')
      if turn >= 5:
        width, height = height, width
    return Facts(image.format, image.mode, width, height, tuple(remarks))


def content_hash(data: bytes | np.ndarray) -> bytes:
  """A hash of what is stored; never zeros, which stand for an unreadable example."""
  if isinstance(data, np.ndarray):
    data = repr(data.shape).encode() + np.ascontiguousarray(data).tobytes()
  return hashlib.sha256(data).digest()[:HASH_BYTES]


def label_list(label: np.ndarray, multi_label: bool) -> list[int]:
  return np.flatnonzero(label).tolist() if multi_label else [int(label)]


def tally(
  examples: Examples, multi_label: bool, decode: bool, tell: Callable[[int], None]
) -> tuple[SplitStatistics, bytes]:
  """Reads examples; returns their counts, and their hashes one after the other."""
  found, hashes = SplitStatistics(), bytearray()
  for i in range(len(examples)):
    name, digest = '', bytes(HASH_BYTES)
    try:
      name = examples.name(i)
      data, label = examples.read(i)
      facts = examine(data, name, decode)
      digest = content_hash(data)
      size = data.nbytes if isinstance(data, np.ndarray) else len(data)
      found.add(facts, label_list(label, multi_label), name, size)
    except BadExampleError as error:
      found.add_unreadable(name, reason(error, name))
    hashes += digest
    tell(1)
  return found, bytes(hashes)
