"""The data card: what a data set holds, and what is wrong with it.

Each image is read once. Memory holds only statistics and a content hash of 16 bytes per image.
"""

import dataclasses
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

from vit_jax.data.sources import Source
from vit_jax.hardware import num_cores
from vit_jax.prepare.duplicates import Overlap, find_overlaps
from vit_jax.prepare.examples import Examples
from vit_jax.prepare.listing import Listing, list_sources
from vit_jax.prepare.statistics import SplitStatistics, collect_statistics
from vit_jax.text import plural, printable

_CHUNK_SIZE = 256  # examples
_MAX_CLASS_NAMES = 10  # on a line
_IMBALANCE = 10  # times as many images of one class as of another are worth a warning

# Of consecutive examples: their split, their statistics, their concatenated content hashes.
ChunkStatistics = tuple[str, SplitStatistics, bytes]


@dataclasses.dataclass(frozen=True)
class Card:
  """What a data set holds.

  Attributes:
    name: of the data set; source: what it was prepared from.
    class_names: in label order; class_ids: their synsets, or empty.
    splits: name -> statistics.
    overlaps: images with the same content, within splits and across.
    notes: what else the user should know, a sentence each.
    shards: split -> [{file, records, bytes, sha256}, …], if the data set is prepared.
    settings: of the preparation.
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
    """Number of unreadable images in all splits."""
    return sum(statistics.unreadable for statistics in self.splits.values())


def chunks(listing: Listing) -> Iterator[tuple[str, Examples]]:
  """Yields (split, consecutive examples of it) until all examples have been yielded."""
  for split, examples in listing.splits.items():
    for start in range(0, len(examples), _CHUNK_SIZE):
      yield split, examples.take(range(start, min(start + _CHUNK_SIZE, len(examples))))


def make_card(listing: Listing, statistics: Iterable[ChunkStatistics], name: str = '') -> Card:
  """Merges the statistics of all chunks, in their order, into a card."""
  splits = {split: SplitStatistics() for split in listing.splits}
  hashes = {split: bytearray() for split in listing.splits}
  for split, chunk_statistics, chunk_hashes in statistics:
    splits[split].merge(chunk_statistics)
    hashes[split] += chunk_hashes
  return Card(
    name or listing.source,
    listing.source,
    listing.class_names,
    listing.class_ids,
    splits,
    find_overlaps(hashes, lambda split, i: listing.splits[split].name(i)),
    listing.notes,
  )


def inspect(
  data: Mapping[str, Source] | Listing, progress: Callable[[int], object] = lambda count: None
) -> Card:
  """Reads a data set on threads and returns its card; images that look intact are not decoded.

  Args:
    data: open sources by split, or a listing.
    progress: called with the number of images that were read since the last call.
  """
  listing = data if isinstance(data, Listing) else list_sources(data)

  def collect(chunk: tuple[str, Examples]) -> ChunkStatistics:
    split, examples = chunk
    return split, *collect_statistics(examples, listing.multi_label, progress, decode=False)

  with ThreadPoolExecutor(min(8, num_cores())) as pool:
    return make_card(listing, list(pool.map(collect, chunks(listing))))


def min_median_max(counts: Mapping[int, int]) -> tuple[int, int, int]:
  """Returns minimum, median and maximum of a histogram {value: count}; zeros if it is empty."""
  if not counts:
    return 0, 0, 0
  values = sorted(counts)
  ends = list(accumulate(counts[value] for value in values))
  return values[0], values[bisect_left(ends, ends[-1] / 2)], values[-1]


def class_counts(card: Card, split: str) -> list[int]:
  """Returns the number of images of each class, in label order."""
  return [card.splits[split].classes[i] for i in range(len(card.class_names))]


def _overlap_warning(overlap: Overlap) -> str:
  original, duplicate = (printable(name) for name in overlap.pairs[0])
  first, split = overlap.splits[0], overlap.splits[-1]
  images = f'{plural(overlap.count, "image")} of {split} {"is" if overlap.count == 1 else "are"}'
  if first != split:
    return f'{images} also in {first}, such as {duplicate} ({first}: {original})'
  duplicates = 'a duplicate' if overlap.count == 1 else 'duplicates'
  return f'{images} {duplicates}, such as {duplicate} (same as {original})'


def _class_warnings(card: Card, split: str) -> list[str]:
  """Classes without images, and classes with many more than others."""
  warnings, names = [], [printable(name) for name in card.class_names]
  counts = class_counts(card, split)
  if missing := [names[i] for i, count in enumerate(counts) if not count]:
    more = ', …' if len(missing) > _MAX_CLASS_NAMES else ''
    warnings.append(
      f'{len(missing):,} of {plural(len(names), "class")} have no images in {split}: '
      f'{", ".join(missing[:_MAX_CLASS_NAMES])}{more}'
    )
  smallest = min((count for count in counts if count), default=0)
  if smallest and max(counts) >= _IMBALANCE * smallest:
    rare, frequent = names[counts.index(smallest)], names[counts.index(max(counts))]
    warnings.append(
      f'{split} is imbalanced {max(counts) / smallest:,.0f}:1 ({frequent} {max(counts):,}, {rare} '
      f'{smallest:,}), and always answering {frequent} would be right for '
      f'{max(counts) / card.splits[split].examples:.1%} of the images; '
      '--config.data.class_balanced=True draws all classes equally often'
    )
  return warnings


def list_warnings(card: Card) -> list[str]:
  """Returns what a user should know before training on a data set, a sentence each."""
  warnings = [_overlap_warning(overlap) for overlap in card.overlaps]
  for split, statistics in card.splits.items():
    if statistics.unreadable:
      name, reason = statistics.reasons[0]
      images = plural(statistics.unreadable, 'image')
      warnings.append(f'{images} of {split} cannot be read, such as {printable(name)}: {reason}')
    warnings += _class_warnings(card, split)
    for warning, (count, names) in statistics.warnings.items():
      images = plural(count, 'image')
      warnings.append(f'{images} of {split}: {warning}, such as {printable(names[0])}')
  return [*warnings, *card.notes]


def _format_counts(counts: Counter[str]) -> str:
  return ', '.join(f'{name} {count:,}' for name, count in counts.most_common())


def _format_classes(card: Card, counts: Sequence[int]) -> str:
  """'cat 12, dog 30, … (190 more)'."""
  first = zip(card.class_names[:_MAX_CLASS_NAMES], counts, strict=False)
  more = len(card.class_names) - _MAX_CLASS_NAMES
  return ', '.join(f'{printable(name)} {count:,}' for name, count in first) + (
    f', … ({more:,} more)' if more > 0 else ''
  )


def summary(card: Card) -> str:
  """Returns the card in a dozen lines for a terminal."""
  lines = [f'{printable(card.source)}: {len(card.class_names):,} classes']
  for split, statistics in card.splits.items():
    counts = class_counts(card, split)
    min_width, width, max_width = min_median_max(statistics.widths)
    min_height, height, max_height = min_median_max(statistics.heights)
    lines += [
      f'  {split}: {statistics.examples:,} images, {statistics.bytes / 1e6:,.1f} MB, '
      f'{min(counts):,} to {max(counts):,} per class',
      f'    {_format_classes(card, counts)}',
      f'    {min_width}-{max_width} x {min_height}-{max_height} pixels, median {width} x {height}; '
      f'{_format_counts(statistics.formats)}; {_format_counts(statistics.modes)}',
    ]
  lines += [f'  WARNING: {warning}' for warning in list_warnings(card)]
  return '\n'.join(map(printable, lines))


def _split_to_json(card: Card, split: str) -> dict[str, Any]:
  statistics = card.splits[split]
  ranges = {
    side: dict(zip(('min', 'median', 'max'), min_median_max(counts), strict=True))
    for side, counts in (('widths', statistics.widths), ('heights', statistics.heights))
  }
  return {
    'examples': statistics.examples,
    'bytes': statistics.bytes,
    'class_counts': class_counts(card, split),
    **ranges,
    'width_histogram': dict(sorted(statistics.widths.items())),
    'height_histogram': dict(sorted(statistics.heights.items())),
    'formats': dict(statistics.formats.most_common()),
    'modes': dict(statistics.modes.most_common()),
    'warnings': [
      {'what': warning, 'count': count, 'such_as': names}
      for warning, (count, names) in statistics.warnings.items()
    ],
    'unreadable': statistics.unreadable,
    'unreadable_files': [{'file': name, 'reason': reason} for name, reason in statistics.reasons],
    'shards': card.shards.get(split, []),
  }


def to_json(card: Card) -> dict[str, Any]:
  """Returns the content of dataset.json."""
  classes = [{'name': name} for name in card.class_names]
  for fields, synset in zip(classes, card.class_ids, strict=False):
    fields['synset'] = synset
  return {
    'name': card.name,
    'source': card.source,
    'classes': classes,
    'splits': {split: _split_to_json(card, split) for split in card.splits},
    'duplicates': [
      {'splits': overlap.splits, 'count': overlap.count, 'such_as': overlap.pairs}
      for overlap in card.overlaps
    ],
    'warnings': list_warnings(card),
    'settings': card.settings,
  }
