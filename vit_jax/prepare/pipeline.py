"""Prepares a data set as sharded ArrayRecord in TFDS's format, resumably, in one of three ways.

`prepare` uses all cores of a machine; `prepare_part`, on any machines and in any order, and then
`merge`; or `prepare` with a runner of Apache Beam. Each of them writes shards that are missing, and
the last process writes the other files. TARGET is finished when it has dataset.json, which is
written last.
"""

import dataclasses

import tqdm

from vit_jax.errors import UserError
from vit_jax.hardware import num_cores
from vit_jax.prepare import beam_pipeline, dataset_files, target_folder, task_pool
from vit_jax.prepare import card as cards
from vit_jax.prepare.card import Card, ChunkStatistics
from vit_jax.prepare.examples import Examples
from vit_jax.prepare.listing import Options, list_examples
from vit_jax.prepare.shard_plan import Part, Preparation, ShardPlan, check_not_negative, open_plan
from vit_jax.prepare.shard_writer import Shard, is_complete, read_metadata, write_shard
from vit_jax.prepare.statistics import collect_statistics
from vit_jax.prepare.task_pool import ReportProgress
from vit_jax.text import plural

_HIDDEN_BAR = tqdm.tqdm(disable=True)
_MAX_NAMED = 10  # parts in a message


@dataclasses.dataclass(frozen=True)
class PartSummary:
  """What a finished part has: the number of its shards, and of the images in them."""

  shards: int
  images: int


def _start(bar: tqdm.tqdm, total: int, done: int = 0) -> None:
  bar.total, bar.n, bar.initial = total, done, done
  bar.set_description()


def _num_examples(shards: list[Shard]) -> int:
  return sum(len(shard.examples) for shard in shards)


def _write_missing(plan: ShardPlan, shards: list[Shard], workers: int, bar: tqdm.tqdm) -> None:
  """Writes those of the shards that are not complete, on worker processes of this machine."""
  missing = [shard for shard in shards if not is_complete(shard, plan.skip_bad)]
  total = _num_examples(shards)
  _start(bar, total, total - _num_examples(missing))
  for _ in task_pool.run_tasks(write_shard, missing, workers or num_cores(), bar.update):
    pass


def prepare(
  preparation: Preparation, workers: int = 0, bar: tqdm.tqdm = _HIDDEN_BAR
) -> Card | None:
  """Writes a data set, or what is missing of it in its target, on this machine.

  Args:
    preparation: what to prepare.
    workers: number of processes; 0: one per core.
    bar: shows the progress in images.

  Returns:
    Its card, or None if it was finished already.

  Raises:
    UserError: as `open_plan`; or for unreadable images.
    OSError: when the disk is full.
  """
  check_not_negative(workers=workers)
  if (plan := open_plan(preparation)) is None:
    return None
  with target_folder.locked(plan.target):
    target_folder.remove_scratch(plan.target)
    _write_missing(plan, plan.shards, workers, bar)
    return dataset_files.finish(plan)


def prepare_part(
  preparation: Preparation, part: Part, workers: int = 0, bar: tqdm.tqdm = _HIDDEN_BAR
) -> PartSummary | None:
  """Writes the shards of one part, or what is missing of them, while others write theirs.

  Arguments, result and errors are as those of `prepare`.
  """
  check_not_negative(workers=workers)
  if (plan := open_plan(preparation)) is None:
    return None
  with target_folder.locked(plan.target, shared=True):
    target_folder.note_parts(plan.target, part.count)
    shards = part.select(plan.shards)
    target_folder.remove_scratch(plan.target, {shard.name for shard in shards})
    _write_missing(plan, shards, workers, bar)
    statistics = [read_metadata(shard)[1] for shard in shards]
    dataset_files.check_readable(statistics, plan.skip_bad)
  return PartSummary(len(shards), sum(part.examples for part in statistics))


def prepare_on_beam(preparation: Preparation, runner: str, beam_options: str = '') -> Card | None:
  """Writes a data set, or what is missing of it in its target, by an Apache Beam pipeline.

  Args:
    preparation: what to prepare; source and target are seen by all workers.
    runner: name of Beam's runner, such as DataflowRunner.
    beam_options: its other flags.

  Returns:
    Its card, or None if it was finished already.

  Raises:
    UserError: as `prepare`; or when Beam is not installed, or refuses the options.
  """
  options = beam_pipeline.parse_options(runner, beam_options)  # before anything is written
  if (plan := open_plan(preparation)) is None:
    return None
  with target_folder.locked(plan.target):
    target_folder.remove_scratch(plan.target)
    beam_pipeline.write_shards(preparation, _missing(plan, plan.skip_bad), options)
    if missing := _missing(plan, True):
      raise UserError(
        f'Beam has finished, but {plan.target} lacks {plural(len(missing), "shard")}; it must be '
        'on a file system that all workers mount.'
      )
    return dataset_files.finish(plan)


def _missing(plan: ShardPlan, accept_unreadable: bool) -> list[int]:
  """The indices of the shards that are not complete."""
  return [i for i, s in enumerate(plan.shards) if not is_complete(s, accept_unreadable)]


def _check_complete(plan: ShardPlan, command: str) -> None:
  """Raises `UserError` when shards are missing; it names their parts."""
  missing, count = _missing(plan, True), target_folder.noted_parts(plan.target)
  if missing and not count:
    raise UserError(
      f'{plan.target} lacks {plural(len(missing), "shard")}, and no part of it has begun; run the '
      'same command without --merge.'
    )
  if missing:
    numbers = sorted({i % count + 1 for i in missing})
    first, others = f'{numbers[0]}/{count}', ', '.join(map(str, numbers[1:_MAX_NAMED]))
    more = f' and {len(numbers) - _MAX_NAMED:,} more' if len(numbers) > _MAX_NAMED else ''
    also = f' (nor are {others}{more})' if others else ''
    raise UserError(
      f'Part {first} of {plan.target} is not finished{also}; run {command} --part={first}.'
    )


def merge(preparation: Preparation, command: str = 'the same command with') -> Card | None:
  """Writes all files but the shards, which parts have written, and returns the card.

  It reads what the parts know of their shards, and opens a few of these for the card's pictures.

  Args:
    preparation: as for all parts.
    command: that messages tell to run, up to --part=….

  Returns:
    The card, or None if the data set was finished already.

  Raises:
    UserError: when a part is not finished, or images are unreadable.
  """
  if (plan := open_plan(preparation, begin=False)) is None:
    return None
  with target_folder.locked(plan.target):
    _check_complete(plan, command)
    return dataset_files.finish(plan)


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
  check_not_negative(workers=workers)
  listing = list_examples(source, options)
  tasks = [(listing.multi_label, *chunk) for chunk in cards.chunks(listing)]
  _start(bar, sum(map(len, listing.splits.values())))
  results = dict(task_pool.run_tasks(_check_chunk, tasks, workers or num_cores(), bar.update))
  return cards.make_card(listing, [results[i] for i in range(len(tasks))])
