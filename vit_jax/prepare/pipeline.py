"""A data set to sharded ArrayRecord in TFDS's format, on all cores, restartable.

One task is one shard, and shards that are whole are not written again. TARGET is whole when it
has dataset.json, which is written last. The same settings give the same bytes, whatever was
interrupted, on however many processes.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm
from array_record.python.array_record_module import ArrayRecordReader

from vit_jax.data import imagenet
from vit_jax.data.sources import tf_example
from vit_jax.data.sources.array_record import CARD, UNFINISHED
from vit_jax.errors import BadExampleError, UserError
from vit_jax.hardware import num_cores
from vit_jax.prepare import card as cards
from vit_jax.prepare import card_page, target_folder, task_pool, tfds_metadata
from vit_jax.prepare.card import Card
from vit_jax.prepare.examples import Examples, shown
from vit_jax.prepare.listing import Listing, Options, list_examples
from vit_jax.prepare.shard_writer import Encoding, Shard, is_whole, store, write_file, write_shard
from vit_jax.prepare.statistics import SplitStatistics, tally

_SHARD_BYTES = 256 << 20
_SAMPLES = 32  # examples that are tried to find the size of the shards
_NAMED = 10  # bad examples in a message


@dataclasses.dataclass(frozen=True)
class Progress:
  """What a preparation tells while it is at work.

  Attributes:
    start: called once with the number of images, and of those that were done before.
    tell: called with the number of images that were done since the last call.
  """

  start: Callable[[int, int], None] = lambda total, before: None
  tell: task_pool.Tell = lambda count: None


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
  """A bar on a terminal's stderr."""
  with tqdm.tqdm(desc='listing', unit=' images', disable=None, leave=False) as bar:

    def start(total: int, before: int) -> None:
      bar.total, bar.n, bar.initial = total, before, before
      bar.set_description()

    yield Progress(start, bar.update)


def default_name(source: str) -> str:
  """A name for a data set that file names can begin with."""
  names = [re.sub('[^a-z0-9]+', '_', part).strip('_') for part in re.split('[:,/]', source.lower())]
  return next((name for name in reversed(names) if name and not name[0].isdigit()), 'data')


def _check_arguments(encoding: Encoding, name: str, shards: int, workers: int) -> None:
  if min(encoding.size, shards, workers) < 0 or not 1 <= encoding.quality <= 100:
    raise UserError('Sizes and counts are not negative, and a quality is 1 to 100.')
  if name and not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise UserError(f'{name!r} is no name for files: a letter, then letters, digits and _ do.')


def _mean_bytes(examples: Examples, encoding: Encoding) -> float:
  """The mean size of an example as it is stored, of a few of them."""
  sizes = [0]
  for i in sorted({int(i) for i in np.linspace(0, len(examples) - 1, _SAMPLES)}):
    try:
      sizes.append(len(store(examples.read(i)[0], '', encoding)))
    except BadExampleError:
      continue
  return sum(sizes) / max(1, len(sizes) - 1)


def _shard_counts(listing: Listing, encoding: Encoding, given: int, workers: int) -> dict[str, int]:
  counts = {}
  for split, examples in listing.splits.items():
    by_size = -int(-len(examples) * _mean_bytes(examples, encoding) // _SHARD_BYTES)
    counts[split] = min(len(examples), given or max(by_size, workers))
  return counts


def _plan(
  listing: Listing, name: str, target: pathlib.Path, encoding: Encoding, counts: Mapping[str, int]
) -> dict[str, list[Shard]]:
  """The shards of each split; neighbors stay neighbors, training shuffles."""
  plan = {}
  real = listing.class_ids == imagenet.synsets()
  for split, examples in listing.splits.items():
    count, size = counts[split], len(examples)
    plan[split] = [
      Shard(
        str(target / tfds_metadata.shard_name(name, split, i, count)),
        examples.part(i * size // count, (i + 1) * size // count),
        listing.multi_label,
        real,
        encoding,
      )
      for i in range(count)
    ]
  return plan


def _read_card(listing: Listing, plan: dict[str, list[Shard]], settings: dict[str, Any]) -> Card:
  """The card of all shards, from what was kept beside them."""
  tallies, files = {}, {}
  for split, shards in plan.items():
    facts = [json.loads(shard.facts.read_text()) for shard in shards]
    files[split] = [fact['shard'] for fact in facts]
    tallies[split] = [
      (SplitStatistics.from_json(fact['tally']), shard.hashes.read_bytes())
      for fact, shard in zip(facts, shards, strict=True)
    ]
  card = cards.make_card(listing, tallies, settings['name'])
  return dataclasses.replace(card, shards=files, settings=settings)


def _bad_examples(card: Card) -> UserError:
  """The error that names the examples that cannot be read."""
  reasons = [each for found in card.splits.values() for each in found.reasons]
  named = '; '.join(f'{shown(name)}: {reason}' for name, reason in reasons[:_NAMED])
  more = f'; and {card.unreadable - _NAMED:,} more' if card.unreadable > _NAMED else ''
  return UserError(
    f'{cards.counted(card.unreadable, "image")} cannot be read ({named}{more}); mend them and '
    'run again, or leave them out with --on_bad_example=skip.'
  )


def _pictures(target: pathlib.Path, card: Card) -> Iterator[tuple[int, bytes]]:
  """(class, an image of it) for a few images of each class, of the first split that has any."""
  seen: set[int] = set()
  for split, found in card.splits.items():
    ends = np.cumsum([shard['records'] for shard in card.shards[split]])
    readers: dict[int, ArrayRecordReader] = {}
    for label in sorted(set(found.firsts) - seen)[: card_page.MOST_CLASSES - len(seen)]:
      seen.add(label)
      for place in found.firsts[label]:
        shard = int(np.searchsorted(ends, place, side='right'))
        if shard not in readers:
          readers = {shard: ArrayRecordReader(str(target / card.shards[split][shard]['file']))}
        readers[shard].seek(place - (int(ends[shard - 1]) if shard else 0))
        yield label, tf_example.decode(readers[shard].read(), ('image',))['image'][0]


def _write_json(path: pathlib.Path, content: Any) -> None:
  write_file(path, (json.dumps(content, indent=1) + '\n').encode())


def _finish(target: pathlib.Path, listing: Listing, card: Card) -> None:
  """Writes what a whole data set has besides its shards."""
  num_classes = len(listing.class_names)
  real = listing.class_ids == imagenet.synsets()
  label = 'labels' if listing.multi_label else 'label'
  names = ''.join(f'{name}\n' for name in listing.class_names).encode()
  for key in ('labels.txt', f'{label}.labels.txt', *(['real.labels.txt'] if real else [])):
    write_file(target / key, names)
  sizes = {split: found.bytes for split, found in card.splits.items()}
  info = tfds_metadata.dataset_info(card.name, card.shards, sizes)
  features = tfds_metadata.features(num_classes, listing.multi_label, real)
  _write_json(target / 'features.json', features)
  _write_json(target / 'dataset_info.json', info)
  page = card_page.page(card, _pictures(target, card))
  write_file(target / 'dataset.html', page.encode('utf-8', 'backslashreplace'))
  _write_json(target / CARD, cards.to_json(card))


def _write_missing(
  plan: Mapping[str, Sequence[Shard]], workers: int, skip_bad: bool, progress: Progress
) -> None:
  shards = [shard for shards in plan.values() for shard in shards]
  missing = [shard for shard in shards if not is_whole(shard, skip_bad)]
  total = sum(len(shard.examples) for shard in shards)
  progress.start(total, total - sum(len(shard.examples) for shard in missing))
  for _ in task_pool.run_tasks(write_shard, missing, workers, progress.tell):
    pass


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
  progress: Progress | None = None,
) -> Card | None:
  """Writes a data set to `target`, or what is missing of it there.

  Args:
    source: see `list_examples`.
    target: a folder that is not there, empty, or was begun with the same settings.
    options: how to understand the source.
    encoding: how images are stored; as they come without one.
    name: of the data set; that of the source if empty.
    shards: files a split; 0: of about 256 MB, at least one a worker.
    workers: processes; 0: one a core.
    skip_bad: whether images that cannot be read are left out, else they are an error.
    progress: what to tell.

  Returns:
    Its card; None when it was whole already.

  Raises:
    UserError: see `list_examples`; and for images that cannot be read, or another TARGET.
  """
  encoding, workers = encoding or Encoding(), workers or num_cores()
  _check_arguments(encoding, name, shards, workers)
  target_folder.refuse_taken(target)
  listing = list_examples(source, options)
  name = name or ('imagenet' if listing.class_ids == imagenet.synsets() else default_name(source))
  settings = target_folder.make_settings(listing, name, encoding, shards)
  if (target / CARD).exists():
    known = json.loads((target / CARD).read_text())
    target_folder.refuse_other(target, known.get('settings', {}), settings)
    shutil.rmtree(target / UNFINISHED, ignore_errors=True)
    return None
  counts = target_folder.begin(
    target, settings, lambda: _shard_counts(listing, encoding, shards, workers)
  )
  with target_folder.Lock(target):
    plan = _plan(listing, name, target, encoding, counts)
    _write_missing(plan, workers, skip_bad, progress or Progress())
    card = _read_card(listing, plan, settings)
    if card.unreadable and not skip_bad:
      raise _bad_examples(card)
    for split, found in card.splits.items():
      if not found.examples:
        raise UserError(f'No image of the split {split} can be read.')
    _finish(target, listing, card)
    shutil.rmtree(target / UNFINISHED)
  return card


def _check_part(task: tuple[Examples, bool], tell: task_pool.Tell) -> tuple[SplitStatistics, bytes]:
  return tally(*task, decode=True, tell=tell)


def check(
  source: str, options: Options | None = None, workers: int = 0, progress: Progress | None = None
) -> Card:
  """Reads and decodes a data set wholly, on processes; writes nothing."""
  listing, progress = list_examples(source, options), progress or Progress()
  tasks, splits = [], []
  for split, examples in listing.splits.items():
    for part in cards.parts(examples, 512):
      tasks.append((part, listing.multi_label))
      splits.append(split)
  progress.start(sum(map(len, listing.splits.values())), 0)
  done = task_pool.run_tasks(_check_part, tasks, workers or num_cores(), progress.tell)
  results = dict(done)
  tallies: dict[str, list[tuple[SplitStatistics, bytes]]] = {split: [] for split in listing.splits}
  for number, split in enumerate(splits):
    tallies[split].append(results[number])
  return cards.make_card(listing, tallies)
