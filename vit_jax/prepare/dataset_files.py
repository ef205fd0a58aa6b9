"""The files of a finished data set that are made from its shards' metadata: labels, card, TFDS's.

dataset.json comes last: it is what makes a data set finished.
"""

import dataclasses
import functools
import io
import itertools
import json
import pathlib
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from vit_jax.data.sources import tf_example
from vit_jax.data.sources.array_record import CARD, UNFINISHED, import_array_record
from vit_jax.errors import UserError
from vit_jax.files import write_bytes
from vit_jax.prepare import card as cards
from vit_jax.prepare import card_page, tfds_metadata
from vit_jax.prepare.card import Card
from vit_jax.prepare.shard_plan import ShardPlan, is_imagenet
from vit_jax.prepare.shard_writer import read_labels, read_metadata
from vit_jax.prepare.statistics import SplitStatistics
from vit_jax.text import plural, printable

_MAX_NAMED = 10  # unreadable images in a message


def check_readable(statistics: Iterable[SplitStatistics], skip_bad: bool) -> None:
  """Raises `UserError` for unreadable images, unless they may be skipped."""
  statistics = list(statistics)
  unreadable = sum(part.unreadable for part in statistics)
  if unreadable and not skip_bad:
    reasons = [reason for part in statistics for reason in part.reasons]
    listed = '; '.join(f'{printable(name)}: {reason}' for name, reason in reasons[:_MAX_NAMED])
    more = f'; and {unreadable - _MAX_NAMED:,} more' if unreadable > _MAX_NAMED else ''
    raise UserError(
      f'{plural(unreadable, "image")} cannot be read ({listed}{more}); repair them and run '
      'again, or leave them out with --on_bad_example=skip.'
    )


def _make_card(plan: ShardPlan) -> Card:
  """Returns the card of all shards, from their metadata."""
  chunks: list[cards.ChunkStatistics] = []
  shards: dict[str, list[dict[str, Any]]] = {split: [] for split in plan.listing.splits}
  for shard in plan.shards:
    entry, statistics = read_metadata(shard)
    chunks.append((shard.split, statistics, shard.hashes_file.read_bytes()))
    shards[shard.split].append(entry)
  card = cards.make_card(plan.listing, chunks, plan.name)
  return dataclasses.replace(card, shards=shards, settings=plan.settings)


def _pictures(target: pathlib.Path, card: Card) -> Iterator[tuple[int, bytes]]:
  """Yields (class, stored image) for a few images of each class, from the first split with any."""

  @functools.lru_cache(maxsize=1)
  def open_shard(file: str) -> Any:
    return import_array_record().ArrayRecordReader(str(target / file))

  seen: set[int] = set()
  for split, statistics in card.splits.items():
    shards = card.shards[split]
    starts = list(itertools.accumulate((shard['records'] for shard in shards), initial=0))
    labels = sorted(statistics.first_examples.keys() - seen)
    for label in labels[: card_page.MAX_CLASSES - len(seen)]:
      seen.add(label)
      for index in statistics.first_examples[label]:
        shard = bisect_right(starts, index) - 1
        reader = open_shard(shards[shard]['file'])
        reader.seek(index - starts[shard])
        yield label, tf_example.decode(reader.read(), ('image',))['image'][0]


def _write_labels(plan: ShardPlan) -> None:
  """Writes the labels of each split, (records,) int32, so that they can be read without images."""
  for split in plan.listing.splits:
    labels = [read_labels(shard) for shard in plan.shards if shard.split == split]
    file = io.BytesIO()
    np.save(file, np.concatenate(labels), allow_pickle=False)
    write_bytes(plan.target / tfds_metadata.labels_name(plan.name, split), file.getvalue())


def finish(plan: ShardPlan) -> Card:
  """Writes all files of a data set whose shards are complete, and returns its card.

  Raises `UserError` for unreadable images, unless they may be left out and others remain.
  """
  target, listing, card = plan.target, plan.listing, _make_card(plan)
  check_readable(card.splits.values(), plan.skip_bad)
  for split, statistics in card.splits.items():
    if not statistics.examples:
      raise UserError(f'No image of the split {split} can be read; leave it out with --splits.')

  def write_json(name: str, content: Any) -> None:
    write_bytes(target / name, (json.dumps(content, indent=1) + '\n').encode())

  if not listing.multi_label:
    _write_labels(plan)
  real = is_imagenet(listing)
  label_key = 'labels' if listing.multi_label else 'label'
  names = ''.join(f'{name}\n' for name in listing.class_names).encode()
  for prefix in ('', f'{label_key}.', *(['real.'] if real else [])):
    write_bytes(target / f'{prefix}labels.txt', names)
  num_classes = len(listing.class_names)
  write_json('features.json', tfds_metadata.features(num_classes, listing.multi_label, real))
  sizes = {split: statistics.bytes for split, statistics in card.splits.items()}
  write_json('dataset_info.json', tfds_metadata.dataset_info(card.name, card.shards, sizes))
  write_bytes(target / 'dataset.html', card_page.render(card, _pictures(target, card)).encode())
  for scratch in target.glob('*.part'):  # of killed processes, where there are no locks
    scratch.unlink(missing_ok=True)
  write_json(CARD, cards.to_json(card))
  shutil.rmtree(target / UNFINISHED)
  return card
