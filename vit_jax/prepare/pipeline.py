"""Prepares a data set as sharded ArrayRecord in TFDS's format, on all cores, resumably.

One task writes one shard, and complete shards are not written again. TARGET is finished when it has
dataset.json, which is written last. The same settings give the same bytes, wherever a preparation
was interrupted and however many processes it uses.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tqdm
from array_record.python.array_record_module import ArrayRecordReader

from vit_jax.data import imagenet
from vit_jax.data.sources import tf_example
from vit_jax.data.sources.array_record import CARD, UNFINISHED
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


@dataclasses.dataclass(frozen=True)
class ProgressCallbacks:
  """How a preparation reports its progress.

  Attributes:
    on_start: called once with the number of images, and how many of them were done before.
    on_progress: called with the number of images that are done since the last call.
  """

  on_start: Callable[[int, int], None] = lambda total, done: None
  on_progress: ReportProgress = lambda count: None


@contextlib.contextmanager
def progress_bar() -> Iterator[ProgressCallbacks]:
  """Shows progress on stderr if that is a terminal."""
  with tqdm.tqdm(desc='listing', unit=' images', disable=None, leave=False) as bar:

    def start(total: int, done: int) -> None:
      bar.total, bar.n, bar.initial = total, done, done
      bar.set_description()

    yield ProgressCallbacks(start, bar.update)


def default_name(source: str) -> str:
  """Returns the name of a data set, by its source: lower case, for the names of its files."""
  names = [re.sub('[^a-z0-9]+', '_', word).strip('_') for word in re.split('[:,/]', source.lower())]
  return next((name for name in reversed(names) if name and not name[0].isdigit()), 'data')


def _check_arguments(encoding: Encoding, name: str, shards: int, workers: int) -> None:
  if min(encoding.size, shards, workers) < 0:
    raise UserError(
      f'--size={encoding.size}, --shards={shards} and --workers={workers} must not be negative.'
    )
  if not 1 <= encoding.quality <= 100:
    raise UserError(f'--quality={encoding.quality} is out of range; use 1 to 100.')
  if name and not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise UserError(
      f'--name={printable(name)} cannot be part of file names; use lower-case letters, digits and '
      '_, beginning with a letter.'
    )


def _mean_bytes(examples: Examples, encoding: Encoding) -> float:
  """Estimates the mean size of the stored images from a few of them."""
  sizes = [0]
  for i in sorted({int(i) for i in np.linspace(0, len(examples) - 1, _NUM_SAMPLES)}):
    try:
      sizes.append(len(encode_image(examples.read(i)[0], '', encoding)))
    except BadExampleError:
      continue
  return sum(sizes) / max(1, len(sizes) - 1)


def _count_shards(
  listing: Listing, encoding: Encoding, requested: int, workers: int
) -> dict[str, int]:
  counts = {}
  for split, examples in listing.splits.items():
    by_size = -int(-len(examples) * _mean_bytes(examples, encoding) // _SHARD_BYTES)
    counts[split] = min(len(examples), requested or max(by_size, workers))
  return counts


def _is_imagenet(listing: Listing) -> bool:
  return listing.class_ids == imagenet.synsets()


def _plan_shards(
  listing: Listing, name: str, target: pathlib.Path, encoding: Encoding, counts: Mapping[str, int]
) -> dict[str, list[Shard]]:
  """Returns the shards of each split; examples keep their order, since training shuffles."""
  plan = {}
  for split, examples in listing.splits.items():
    count, size = counts[split], len(examples)
    plan[split] = [
      Shard(
        str(target / tfds_metadata.shard_name(name, split, i, count)),
        examples.slice(i * size // count, (i + 1) * size // count),
        listing.multi_label,
        _is_imagenet(listing),
        encoding,
      )
      for i in range(count)
    ]
  return plan


def _write_missing(
  plan: Mapping[str, list[Shard]], workers: int, skip_bad: bool, progress: ProgressCallbacks
) -> None:
  shards = [shard for shards in plan.values() for shard in shards]
  missing = [shard for shard in shards if not is_complete(shard, skip_bad)]
  total = sum(len(shard.examples) for shard in shards)
  progress.on_start(total, total - sum(len(shard.examples) for shard in missing))
  for _ in task_pool.run_tasks(write_shard, missing, workers, progress.on_progress):
    pass


def _read_card(listing: Listing, plan: dict[str, list[Shard]], settings: dict[str, Any]) -> Card:
  """Returns the card of all shards, from their metadata."""
  chunks: dict[str, list[ChunkStatistics]] = {}
  files = {}
  for split, shards in plan.items():
    metadata = [json.loads(shard.metadata_file.read_text()) for shard in shards]
    files[split] = [fields['shard'] for fields in metadata]
    chunks[split] = [
      (SplitStatistics.from_json(fields['statistics']), shard.hashes_file.read_bytes())
      for fields, shard in zip(metadata, shards, strict=True)
    ]
  card = cards.make_card(listing, chunks, settings['name'])
  return dataclasses.replace(card, shards=files, settings=settings)


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
  seen: set[int] = set()
  for split, statistics in card.splits.items():
    ends = np.cumsum([shard['records'] for shard in card.shards[split]])
    readers: dict[int, ArrayRecordReader] = {}
    labels = sorted(set(statistics.first_examples) - seen)
    for label in labels[: card_page.MAX_CLASSES - len(seen)]:
      seen.add(label)
      for index in statistics.first_examples[label]:
        shard = int(np.searchsorted(ends, index, side='right'))
        if shard not in readers:
          readers = {shard: ArrayRecordReader(str(target / card.shards[split][shard]['file']))}
        readers[shard].seek(index - (int(ends[shard - 1]) if shard else 0))
        (image,) = tf_example.decode(readers[shard].read(), ('image',))['image']
        assert isinstance(image, bytes)
        yield label, image


def _write_json(path: pathlib.Path, content: Any) -> None:
  write_bytes(path, (json.dumps(content, indent=1) + '\n').encode())


def _finish(target: pathlib.Path, listing: Listing, card: Card) -> None:
  """Writes all files of a finished data set but its shards; dataset.json comes last."""
  real = _is_imagenet(listing)
  label_key = 'labels' if listing.multi_label else 'label'
  names = ''.join(f'{name}\n' for name in listing.class_names).encode()
  for prefix in ('', f'{label_key}.', *(['real.'] if real else [])):
    write_bytes(target / f'{prefix}labels.txt', names)
  features = tfds_metadata.features(len(listing.class_names), listing.multi_label, real)
  _write_json(target / 'features.json', features)
  sizes = {split: statistics.bytes for split, statistics in card.splits.items()}
  info = tfds_metadata.dataset_info(card.name, card.shards, sizes)
  _write_json(target / 'dataset_info.json', info)
  page = card_page.render(card, _pictures(target, card))
  write_bytes(target / 'dataset.html', page.encode())
  _write_json(target / CARD, cards.to_json(card))


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
  progress: ProgressCallbacks | None = None,
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
    progress: reports progress.

  Returns:
    Its card, or None if it was finished already.

  Raises:
    UserError: as `list_examples`; or for unreadable images, or a target that is taken.
    OSError: when the disk is full.
  """
  encoding, workers = encoding or Encoding(), workers or num_cores()
  _check_arguments(encoding, name, shards, workers)
  target_folder.check_available(target)
  listing = list_examples(source, options)
  name = name or ('imagenet' if _is_imagenet(listing) else default_name(source))
  settings = target_folder.make_settings(listing, name, encoding, shards)
  if (target / CARD).exists():
    previous = json.loads((target / CARD).read_text())
    target_folder.check_same_settings(target, previous.get('settings', {}), settings)
    shutil.rmtree(target / UNFINISHED, ignore_errors=True)
    return None
  counts = target_folder.begin_or_resume(
    target, settings, lambda: _count_shards(listing, encoding, shards, workers)
  )
  with target_folder.Lock(target):
    plan = _plan_shards(listing, name, target, encoding, counts)
    _write_missing(plan, workers, skip_bad, progress or ProgressCallbacks())
    card = _read_card(listing, plan, settings)
    _check_readable(card, skip_bad)
    _finish(target, listing, card)
    shutil.rmtree(target / UNFINISHED)
  return card


def _check_chunk(task: tuple[Examples, bool], progress: ReportProgress) -> ChunkStatistics:
  examples, multi_label = task
  return collect_statistics(examples, multi_label, progress, decode=True)


def check(
  source: str,
  options: Options | None = None,
  workers: int = 0,
  progress: ProgressCallbacks | None = None,
) -> Card:
  """Reads and decodes a whole data set on processes and returns its card; writes nothing.

  Args:
    source: see `list_examples`.
    options: how to read the source.
    workers: number of processes; 0: one per core.
    progress: reports progress.

  Raises:
    UserError: as `list_examples`.
  """
  listing, progress = list_examples(source, options), progress or ProgressCallbacks()
  tasks, task_splits = [], []
  for split, examples in listing.splits.items():
    for chunk in cards.chunks(examples, 512):
      tasks.append((chunk, listing.multi_label))
      task_splits.append(split)
  progress.on_start(sum(map(len, listing.splits.values())), 0)
  workers = workers or num_cores()
  results = dict(task_pool.run_tasks(_check_chunk, tasks, workers, progress.on_progress))
  chunks: dict[str, list[ChunkStatistics]] = {split: [] for split in listing.splits}
  for index, split in enumerate(task_splits):
    chunks[split].append(results[index])
  return cards.make_card(listing, chunks)
