"""Prepares a data set as sharded ArrayRecord in TFDS's format, on all cores, resumably.

One task writes one shard, and complete shards are not written again. TARGET is finished when it has
dataset.json, which is written last. The same settings give the same bytes, wherever a preparation
was interrupted and however many processes it uses. The examples of a split are in the order of a
fixed permutation (permutation.py), so that slices of it have all classes.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import re
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tqdm

from vit_jax.data import imagenet
from vit_jax.data.sources import tf_example
from vit_jax.data.sources.array_record import CARD, UNFINISHED, import_array_record
from vit_jax.data.sources.permutation import permutation
from vit_jax.errors import BadExampleError, UserError
from vit_jax.files import write_bytes
from vit_jax.hardware import num_cores
from vit_jax.prepare import card as cards
from vit_jax.prepare import card_page, target_folder, task_pool, tfds_metadata
from vit_jax.prepare.card import Card, ChunkStatistics
from vit_jax.prepare.examples import Examples
from vit_jax.prepare.listing import Listing, Options, list_examples
from vit_jax.prepare.shard_writer import Encoding, Shard, encode_image, is_complete, write_shard
from vit_jax.prepare.statistics import SplitStatistics, collect_statistics
from vit_jax.prepare.task_pool import ReportProgress
from vit_jax.text import plural, printable

_SHARD_BYTES = 256 << 20
_NUM_SAMPLES = 32  # examples that are encoded to estimate the size of a split
_MAX_NAMED = 10  # unreadable images in a message
_HIDDEN_BAR = tqdm.tqdm(disable=True)


def default_name(source: str) -> str:
  """Returns the name of a data set, by its source: lower case, for the names of its files."""
  source = re.sub(r'\?\w+=.*', '', source)  # options
  names = [re.sub('[^a-z0-9]+', '_', word).strip('_') for word in re.split('[:,/]', source.lower())]
  return next((name[:100] for name in reversed(names) if name and not name[0].isdigit()), 'data')


def _check_not_negative(**flags: int) -> None:
  for flag, value in flags.items():
    if value < 0:
      raise UserError(f'--{flag}={value} must not be negative.')


def _check_arguments(encoding: Encoding, name: str, shards: int, workers: int) -> None:
  _check_not_negative(size=encoding.size, shards=shards, workers=workers)
  if not 1 <= encoding.quality <= 100:
    raise UserError(f'--quality={encoding.quality} is out of range; use 1 to 100.')
  if name and not re.fullmatch('[a-z][a-z0-9_]{0,99}', name):
    raise UserError(
      f'--name={printable(name)} cannot be part of file names; use lower-case letters, digits and '
      '_, beginning with a letter.'
    )


def _default_num_shards(examples: Examples, encoding: Encoding, workers: int) -> int:
  """Returns one per `_SHARD_BYTES`, estimated from a few examples, but at least one per worker."""
  sizes = []
  for i in np.unique(np.linspace(0, len(examples) - 1, _NUM_SAMPLES).astype(int)).tolist():
    try:
      sizes.append(len(encode_image(examples.read(i)[0], '', encoding)))
    except BadExampleError:
      continue
  mean = sum(sizes) / max(1, len(sizes))
  return max(-int(-len(examples) * mean // _SHARD_BYTES), workers)


def _is_imagenet(listing: Listing) -> bool:
  return listing.class_ids == imagenet.synsets()


def _plan_shards(
  listing: Listing, name: str, target: pathlib.Path, encoding: Encoding, counts: Mapping[str, int]
) -> list[Shard]:
  """Returns the shards of all splits, whose examples stay in order."""
  plan = []
  for split, examples in listing.splits.items():
    count, size = counts[split], len(examples)
    for i in range(count):
      file = str(target / tfds_metadata.shard_name(name, split, i, count))
      members = examples.take(range(i * size // count, (i + 1) * size // count))
      real = _is_imagenet(listing)
      plan.append(Shard(file, split, members, listing.multi_label, real, encoding))
  return plan


def _shuffle(listing: Listing) -> Listing:
  splits = {
    split: examples.take(permutation(len(examples))) for split, examples in listing.splits.items()
  }
  return dataclasses.replace(listing, splits=splits)


def _start(bar: tqdm.tqdm, total: int, done: int = 0) -> None:
  bar.total, bar.n, bar.initial = total, done, done
  bar.set_description()


def _make_card(listing: Listing, plan: list[Shard], settings: dict[str, Any]) -> Card:
  """Returns the card of all shards, from their metadata."""
  chunks: list[ChunkStatistics] = []
  shards: dict[str, list[dict[str, Any]]] = {split: [] for split in listing.splits}
  for shard in plan:
    metadata = json.loads(shard.metadata_file.read_text())
    statistics = SplitStatistics.from_json(metadata['statistics'])
    chunks.append((shard.split, statistics, shard.hashes_file.read_bytes()))
    shards[shard.split].append(metadata['shard'])
  card = cards.make_card(listing, chunks, settings['name'])
  return dataclasses.replace(card, shards=shards, settings=settings)


def _check_readable(card: Card, skip_bad: bool) -> None:
  """Raises `UserError` for unreadable images, unless they may be skipped and others are left."""
  if card.unreadable and not skip_bad:
    reasons = [reason for statistics in card.splits.values() for reason in statistics.reasons]
    listed = '; '.join(f'{printable(name)}: {reason}' for name, reason in reasons[:_MAX_NAMED])
    more = f'; and {card.unreadable - _MAX_NAMED:,} more' if card.unreadable > _MAX_NAMED else ''
    raise UserError(
      f'{plural(card.unreadable, "image")} cannot be read ({listed}{more}); repair them and run '
      'again, or leave them out with --on_bad_example=skip.'
    )
  for split, statistics in card.splits.items():
    if not statistics.examples:
      raise UserError(f'No image of the split {split} can be read; leave it out with --splits.')


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


def _finish(target: pathlib.Path, listing: Listing, card: Card) -> None:
  """Writes all files of a finished data set but its shards; dataset.json comes last."""

  def write_json(name: str, content: Any) -> None:
    write_bytes(target / name, (json.dumps(content, indent=1) + '\n').encode())

  real = _is_imagenet(listing)
  label_key = 'labels' if listing.multi_label else 'label'
  names = ''.join(f'{name}\n' for name in listing.class_names).encode()
  for prefix in ('', f'{label_key}.', *(['real.'] if real else [])):
    write_bytes(target / f'{prefix}labels.txt', names)
  num_classes = len(listing.class_names)
  write_json('features.json', tfds_metadata.features(num_classes, listing.multi_label, real))
  sizes = {split: statistics.bytes for split, statistics in card.splits.items()}
  write_json('dataset_info.json', tfds_metadata.dataset_info(card.name, card.shards, sizes))
  write_bytes(target / 'dataset.html', card_page.render(card, _pictures(target, card)).encode())
  write_json(CARD, cards.to_json(card))


def prepare(
  source: str,
  target: pathlib.Path,
  options: Options | None = None,
  encoding: Encoding | None = None,
  *,
  name: str = '',
  shards: int = 0,
  workers: int = 0,
  skip_bad: bool = False,
  bar: tqdm.tqdm = _HIDDEN_BAR,
) -> Card | None:
  """Writes a data set to `target`, or what is missing of it there.

  Args:
    source: see `list_examples`.
    target: a folder that does not exist, is empty, or was begun with the same settings.
    options: how to read the source.
    encoding: how images are stored; without it, files stay as they are.
    name: name of the data set; empty: derived from the source.
    shards: shards per split; 0: of about 256 MB, at least one per worker.
    workers: number of processes; 0: one per core.
    skip_bad: whether unreadable images are left out; otherwise they are an error.
    bar: shows the progress in images.

  Returns:
    Its card, or None if it was finished already.

  Raises:
    UserError: as `list_examples`; or for unreadable images, or a target that is taken.
    OSError: when the disk is full.
  """
  encoding, workers = encoding or Encoding(), workers or num_cores()
  _check_arguments(encoding, name, shards, workers)
  import_array_record()  # before anything is written
  target_folder.check_available(target)
  listing = _shuffle(list_examples(source, options))
  name = name or ('imagenet' if _is_imagenet(listing) else default_name(source))
  settings = target_folder.make_settings(listing, name, encoding, shards)
  if (target / CARD).exists():
    previous = json.loads((target / CARD).read_text()).get('settings', {})
    previous |= {'version': settings['version']}  # a finished data set of any version may stay
    target_folder.check_same_settings(target, previous, settings)
    shutil.rmtree(target / UNFINISHED, ignore_errors=True)
    return None

  def count_shards() -> dict[str, int]:
    return {
      split: min(len(examples), shards or _default_num_shards(examples, encoding, workers))
      for split, examples in listing.splits.items()
    }

  counts = target_folder.begin_or_resume(target, settings, count_shards)
  with target_folder.locked(target):
    plan = _plan_shards(listing, name, target, encoding, counts)
    missing = [shard for shard in plan if not is_complete(shard, skip_bad)]
    total = sum(map(len, listing.splits.values()))
    _start(bar, total, total - sum(len(shard.examples) for shard in missing))
    for _ in task_pool.run_tasks(write_shard, missing, workers, bar.update):
      pass
    card = _make_card(listing, plan, settings)
    _check_readable(card, skip_bad)
    _finish(target, listing, card)
    shutil.rmtree(target / UNFINISHED)
  return card


def _check_chunk(task: tuple[bool, str, Examples], progress: ReportProgress) -> ChunkStatistics:
  multi_label, split, examples = task
  return split, *collect_statistics(examples, multi_label, progress, decode=True)


def check(
  source: str, options: Options | None = None, workers: int = 0, bar: tqdm.tqdm = _HIDDEN_BAR
) -> Card:
  """Reads and decodes a whole data set on processes and returns its card; writes nothing.

  Args:
    source: see `list_examples`.
    options: how to read the source.
    workers: number of processes; 0: one per core.
    bar: shows the progress in images.

  Raises:
    UserError: as `list_examples`.
  """
  _check_not_negative(workers=workers)
  listing = list_examples(source, options)
  tasks = [(listing.multi_label, *chunk) for chunk in cards.chunks(listing)]
  _start(bar, sum(map(len, listing.splits.values())))
  results = dict(task_pool.run_tasks(_check_chunk, tasks, workers or num_cores(), bar.update))
  return cards.make_card(listing, [results[i] for i in range(len(tasks))])
