"""The data card: what a data set holds, and what is wrong with it.

Each image is read once; counts, sizes, formats and a content hash of 16 bytes an image are all
that is kept, so memory does not grow beyond those hashes.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vit_jax.data.sources import Source
from vit_jax.prepare.duplicates import Overlap, find_overlaps
from vit_jax.prepare.examples import Examples, shown
from vit_jax.prepare.listing import Listing, Options, list_examples, list_sources
from vit_jax.prepare.statistics import SplitStatistics, tally


@dataclasses.dataclass(frozen=True)
class Card:
  """What a data set holds.

  Attributes:
    name, source: what it is called, and what it was made of.
    class_names: in label order; class_ids: their synsets, or nothing.
    splits: what was counted in each.
    overlaps: images of the same content, within splits and across.
    notes: what else the user should know, a sentence each.
    shards: the files of each split, if it is prepared: {file, records, bytes, sha256}.
    settings: that it was prepared with.
  """

  name: str
  source: str
  class_names: tuple[str, ...]
  class_ids: tuple[str, ...]
  splits: dict[str, SplitStatistics]
  overlaps: list[Overlap]
  notes: tuple[str, ...] = ()
  shards: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def unreadable(self) -> int:
    return sum(found.unreadable for found in self.splits.values())


def parts(examples: Examples, size: int) -> Iterator[Examples]:
  for start in range(0, len(examples), size):
    yield examples.part(start, min(start + size, len(examples)))


def make_card(
  listing: Listing, tallies: Mapping[str, Sequence[tuple[SplitStatistics, bytes]]], name: str = ''
) -> Card:
  """The card of what was counted in the parts of each split, in order."""
  splits, hashes = {}, {}
  for split, found in tallies.items():
    splits[split] = SplitStatistics()
    for part, _ in found:
      splits[split].merge(part)
    hashes[split] = b''.join(part for _, part in found)
  overlaps = find_overlaps(hashes, lambda split, i: listing.splits[split].name(i))
  return Card(
    name or listing.source,
    listing.source,
    listing.class_names,
    listing.class_ids,
    splits,
    overlaps,
    listing.notes,
  )


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
        pool.submit(tally, part, listing.multi_label, False, tell) for part in parts(examples, 256)
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


def counted(count: int, noun: str) -> str:
  return f'{count:,} {noun}' + ('' if count == 1 else 's')


def warnings(card: Card) -> list[str]:
  """What a user should know before training on a data set, a sentence each."""
  said = []
  for overlap in card.overlaps:
    first, second = shown(overlap.pairs[0][0]), shown(overlap.pairs[0][1])
    images, is_or_are = counted(overlap.count, 'image'), 'is' if overlap.count == 1 else 'are'
    if len(overlap.where) == 1:
      split, pair = overlap.where[0], f'such as {second} and {first}'
      said.append(f'{images} of {split} {is_or_are} there twice, {pair}')
    else:
      one, other = overlap.where
      pair = f'such as {second} ({one}: {first})'
      said.append(f'{images} of {other} {is_or_are} also in {one}, {pair}')
  for split, found in card.splits.items():
    if found.unreadable:
      name, reason = found.reasons[0]
      images = counted(found.unreadable, 'image')
      said.append(f'{images} of {split} cannot be read, such as {shown(name)}: {reason}')
    if missing := sum(not count for count in class_counts(card, split)):
      said.append(f'{missing:,} of {len(card.class_names):,} classes have no image in {split}')
    for what, (count, names) in found.remarks.items():
      said.append(f'{counted(count, "image")} of {split}: {what}, such as {shown(names[0])}')
  return [*said, *card.notes]


def summary(card: Card) -> str:
  """A dozen lines for a terminal."""
  lines = [f'{shown(card.source)}: {len(card.class_names):,} classes']
  for split, found in card.splits.items():
    counts = class_counts(card, split)
    lines += [
      f'  {split}: {found.examples:,} images, {found.bytes / 1e6:,.1f} MB, '
      f'{min(counts):,} to {max(counts):,} a class',
      '    {0[0]}-{0[2]} x {1[0]}-{1[2]} pixels, median {0[1]} x {1[1]}; {2}; {3}'.format(
        spread(found.widths), spread(found.heights), _listed(found.formats), _listed(found.modes)
      ),
    ]
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
