"""The data card: what a data set holds, and what is wrong with it.

Each image is read once; counts, sizes, formats and a content hash of 16 bytes an image are all
that is kept, so memory does not grow beyond those hashes.
"""

import dataclasses
import hashlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.images import check_image, decode_image
from vit_jax.data.listing import Examples, Listing, Options, list_examples, list_sources
from vit_jax.data.sources import Source
from vit_jax.errors import BadExampleError

HASH_BYTES = 16
_KEEP = 1000  # unreadable examples that are listed by name, in each split
_NAMES = 5  # of examples that are named for a remark
_PAIRS = 20  # of duplicates that are named
_THUMBNAILS = 3
_SUFFIXES = {'JPEG': ('.jpg', '.jpeg'), 'PNG': ('.png',), 'GIF': ('.gif',), 'WEBP': ('.webp',),
             'BMP': ('.bmp',)}  # fmt: skip
_ORIENTATION = 0x0112  # EXIF tag


def shown(name: str) -> str:
  """A file's name on one line, in characters that any terminal and page takes."""
  return name if name.isprintable() else ascii(name)[1:-1]


@dataclasses.dataclass
class Tally:
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
      if len(places) < _THUMBNAILS:
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

  def merge(self, other: 'Tally') -> None:
    """Adds the counts of the examples that follow."""
    for label, places in other.firsts.items():
      known = self.firsts.setdefault(label, [])
      known += [self.examples + place for place in places[: _THUMBNAILS - len(known)]]
    self.examples += other.examples
    self.bytes += other.bytes
    for name in ('classes', 'widths', 'heights', 'formats', 'modes'):
      getattr(self, name).update(getattr(other, name))
    for what, (count, names) in other.remarks.items():
      self.remark(what, count, names)
    self.unreadable += other.unreadable
    self.reasons = (self.reasons + list(other.reasons))[:_KEEP]

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> 'Tally':
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
  return shown(said.removeprefix('cannot be read: '))


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
  (decode_image if decode else check_image)(data, name)
  with Image.open(io.BytesIO(data)) as image:
    remarks = []
    suffixes = _SUFFIXES.get(image.format, ())
    suffix = os.path.splitext(name)[1].lower()
    known = itertools.chain.from_iterable(_SUFFIXES.values())
    if suffix in known and suffix not in suffixes:
      remarks.append(f'called {suffix}, is {image.format}')
    if getattr(image, 'is_animated', False):
      remarks.append('animated; its first frame is used')
    width, height = image.size
    if b'Exif' in data[:65536] and (turn := image.getexif().get(_ORIENTATION, 1)) != 1:
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
) -> tuple[Tally, bytes]:
  """Reads examples; returns their counts, and their hashes one after the other."""
  found, hashes = Tally(), bytearray()
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


@dataclasses.dataclass(frozen=True)
class Overlap:
  """Images of the same content.

  Attributes:
    where: the split, or the two of them.
    count: images of the (second) split that are also elsewhere in it (in the first).
    pairs: the names of some.
  """

  where: tuple[str, ...]
  count: int
  pairs: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Card:
  """What a data set holds.

  Attributes:
    name, source: what it is called, and what it was made of.
    class_names: in label order; class_ids: their synsets, or nothing.
    splits: what was counted in each.
    overlaps: images of the same content, within splits and across.
    shards: the files of each split, if it is prepared: {file, records, bytes, sha256}.
    settings: that it was prepared with.
  """

  name: str
  source: str
  class_names: tuple[str, ...]
  class_ids: tuple[str, ...]
  splits: dict[str, Tally]
  overlaps: list[Overlap]
  shards: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def unreadable(self) -> int:
    return sum(found.unreadable for found in self.splits.values())


def _groups(hashes: Mapping[str, bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(group, split, place) of all examples that share their content with another, by group."""
  table = np.concatenate([np.frombuffer(h, '>u8').reshape(-1, 2) for h in hashes.values()])
  order = np.lexsort((table[:, 1], table[:, 0]))
  same = (table[order[1:]] == table[order[:-1]]).all(1) & table[order[1:]].any(1)
  in_group = np.concatenate([[False], same]) | np.concatenate([same, [False]])
  group = np.cumsum(~np.concatenate([[False], same]))
  sizes = [len(h) // HASH_BYTES for h in hashes.values()]
  starts = np.cumsum([0, *sizes])
  members = order[in_group]
  split = np.searchsorted(starts, members, side='right') - 1
  return group[in_group], split, members - starts[split]


def find_overlaps(
    hashes: Mapping[str, bytes], name: Callable[[str, int], str]
) -> list[Overlap]:
  """Images of the same content within each split, and across each two of them.

  Args:
    hashes: split -> the hashes of its examples, one after the other.
    name: (split, place) -> the name of an example.
  """
  if not any(hashes.values()):
    return []
  group, split, place = _groups(hashes)
  names, found = list(hashes), []

  def pairs(first: np.ndarray, second: np.ndarray, a: str, b: str) -> list[tuple[str, str]]:
    return [
        (name(a, int(place[i])), name(b, int(place[j])))
        for i, j in zip(first, second, strict=True)
    ]

  for number, one in enumerate(names):
    mine = np.flatnonzero(split == number)
    mine = mine[np.lexsort((place[mine], group[mine]))]
    again = np.flatnonzero(group[mine][1:] == group[mine][:-1])
    if len(again):
      some = again[:_PAIRS]
      found.append(Overlap((one,), len(again), pairs(mine[some], mine[some + 1], one, one)))
    for other in range(number):
      theirs = np.flatnonzero(split == other)
      both = mine[np.isin(group[mine], group[theirs])]
      if len(both):
        theirs = theirs[np.argsort(group[theirs], kind='stable')]
        first = theirs[np.searchsorted(group[theirs], group[both[:_PAIRS]])]
        some = pairs(first, both[:_PAIRS], names[other], one)
        found.append(Overlap((names[other], one), len(both), some))
  return found


def parts(examples: Examples, size: int) -> Iterator[Examples]:
  for start in range(0, len(examples), size):
    yield examples.part(start, min(start + size, len(examples)))


def make_card(
    listing: Listing,
    tallies: Mapping[str, Sequence[tuple[Tally, bytes]]],
    name: str = '',
) -> Card:
  """The card of what was counted in the parts of each split, in order."""
  splits, hashes = {}, {}
  for split, found in tallies.items():
    splits[split] = Tally()
    for part, _ in found:
      splits[split].merge(part)
    hashes[split] = b''.join(part for _, part in found)
  overlaps = find_overlaps(hashes, lambda split, i: listing.splits[split].name(i))
  return Card(
      name or listing.source, listing.source, listing.class_names, listing.class_ids, splits,
      overlaps,
  )  # fmt: skip


def inspect(
    what: str | Mapping[str, Source] | Listing,
    options: Options | None = None,
    tell: Callable[[int], None] = lambda count: None,
) -> Card:
  """Reads a data set through on threads, without decoding images that look healthy.

  Args:
    what: a data source, a folder, ImageNet tars; or open sources by split.
    options: how to understand it.
    tell: called with the number of images that were read since the last call.
  """
  if isinstance(what, str):
    what = list_examples(what, options)
  listing = what if isinstance(what, Listing) else list_sources(what)
  with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    futures = {
        split: [
            pool.submit(tally, part, listing.multi_label, False, tell)
            for part in parts(examples, 256)
        ]
        for split, examples in listing.splits.items()
    }
    try:
      found = {split: [f.result() for f in each] for split, each in futures.items()}
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise
  return make_card(listing, found)


def spread(counts: Mapping[int, int]) -> tuple[int, int, int]:
  """(least, median, most) of values that were counted."""
  values = sorted(counts)
  middle, seen = sum(counts.values()) / 2, 0
  for value in values:
    seen += counts[value]
    if seen >= middle:
      return values[0], value, values[-1]
  return 0, 0, 0


def _listed(counts: Mapping[str, int]) -> str:
  return ', '.join(f'{name} {count:,}' for name, count in Counter(counts).most_common())


def class_counts(card: Card, split: str) -> list[int]:
  return [card.splits[split].classes[i] for i in range(len(card.class_names))]


def warnings(card: Card) -> list[str]:
  """What a user should know before training on a data set, a sentence each."""
  said = []
  for overlap in card.overlaps:
    first, second = shown(overlap.pairs[0][0]), shown(overlap.pairs[0][1])
    pair = f'such as {second} and {first}'
    if len(overlap.where) == 1:
      said.append(f'{overlap.count:,} images of {overlap.where[0]} are there twice, {pair}')
    else:
      one, other = overlap.where
      said.append(f'{overlap.count:,} images of {other} are also in {one}, {pair}')
  for split, found in card.splits.items():
    if found.unreadable:
      name, reason = found.reasons[0]
      said.append(
          f'{found.unreadable:,} files of {split} cannot be read, such as {shown(name)}: {reason}'
      )
    if missing := sum(not count for count in class_counts(card, split)):
      said.append(f'{missing:,} of {len(card.class_names):,} classes have no image in {split}')
    for what, (count, names) in found.remarks.items():
      said.append(f'{count:,} files of {split}: {what}, such as {shown(names[0])}')
  return said


def summary(card: Card) -> str:
  """A dozen lines for a terminal."""
  lines = [f'{shown(card.source)}: {len(card.class_names):,} classes']
  for split, found in card.splits.items():
    counts = class_counts(card, split)
    lines += [
        f'  {split}: {found.examples:,} images, {found.bytes / 1e6:,.1f} MB, '
        f'{min(counts):,} to {max(counts):,} a class',
        '    {0[0]}-{0[2]} x {1[0]}-{1[2]} pixels, median {0[1]} x {1[1]}; {2}; {3}'.format(
            spread(found.widths), spread(found.heights), _listed(found.formats),
            _listed(found.modes)),
    ]  # fmt: skip
  lines += [f'  WARNING: {warning}' for warning in warnings(card)]
  return '\n'.join(lines)


def to_json(card: Card) -> dict[str, Any]:
  """The card as data."""
  splits = {}
  for split, found in card.splits.items():
    splits[split] = {
        'examples': found.examples,
        'bytes': found.bytes,
        'class_counts': class_counts(card, split),
        'widths': dict(zip(('min', 'median', 'max'), spread(found.widths), strict=True)),
        'heights': dict(zip(('min', 'median', 'max'), spread(found.heights), strict=True)),
        'width_histogram': dict(sorted(found.widths.items())),
        'height_histogram': dict(sorted(found.heights.items())),
        'formats': dict(found.formats.most_common()),
        'modes': dict(found.modes.most_common()),
        'remarks': [
            {'what': what, 'count': count, 'such_as': names}
            for what, (count, names) in found.remarks.items()
        ],
        'unreadable': found.unreadable,
        'unreadable_files': [{'file': name, 'reason': reason} for name, reason in found.reasons],
        'shards': card.shards.get(split, []),
    }
  ids = card.class_ids or card.class_names
  return {
      'name': card.name,
      'source': card.source,
      'classes': [
          {'name': name, **({'synset': synset} if card.class_ids else {})}
          for name, synset in zip(card.class_names, ids, strict=True)
      ],
      'splits': splits,
      'duplicates': [
          {'splits': overlap.where, 'count': overlap.count, 'such_as': overlap.pairs}
          for overlap in card.overlaps
      ],
      'warnings': warnings(card),
      'settings': card.settings,
  }

