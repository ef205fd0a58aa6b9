"""VTAB-1k task by task: which configs, which data is missing, runs that are never repeated."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence

import jax
from etils import epath

from vit_jax.config import Config, check_same_run, flatten, height_width, load_config
from vit_jax.config.fields import walk_fields
from vit_jax.data.sources import open_source
from vit_jax.distributed.processes import broadcast_from_process_0
from vit_jax.errors import DivergedError, UserError
from vit_jax.files import read_json_object, write_text
from vit_jax.text import plural
from vit_jax.training.loop import train_and_evaluate
from vit_jax.transfer.vtab_tables import Outcome, Report, write_report

_RESULT = 'result.json'  # of a finished task
_EXAMPLES = 1000  # in the training data of a task
# Fields that may differ from the protocol without being named beside the results.
_FREE = ('seed', 'data.train.source', 'data.train.split', 'data.test.split')


def task_flags(
  data_dir: str, task: str, validate: bool, image_size: int | tuple[int, int] | None
) -> list[str]:
  """The `--config.FIELD=VALUE` flags of a task that differ from configs/vtab.py.

  Args:
    data_dir: where the data sets are; '': TFDS's own folder.
    task: name of the task.
    validate: train on 800 examples and score the other 200, to choose settings.
    image_size: pixels, or (height, width); None: 384. Images are resized to 448/384 of it before
      they are cropped.
  """
  flags = []
  if data_dir:
    flags.append(f'--config.data.train.source=vtab:{data_dir.rstrip("/")}/{task}')
  if validate:
    flags += ['--config.data.train.split=train', '--config.data.test.split=validation']
  if image_size is not None:
    resize_small = round(min(height_width(image_size)) * 448 / 384)
    flags.append(f'--config.data.image_size={image_size}')
    flags.append(f'--config.data.augment.resize_small={resize_small}')
  return flags


def task_config(model: str, task: str, flags: Sequence[str]) -> Config:
  """The config of a task: configs/vtab.py with these `--config.FIELD=VALUE` flags."""
  return load_config(f'configs/vtab.py:{task},{model}', flags)


def describe(config: Config, protocol: Config) -> list[str]:
  """What a reader must know to compare results, a line for each thing.

  Args:
    config: of a task.
    protocol: the same without any flags.
  """
  data, (height, width) = config.data, config.data.height_width
  lines = [
    f'{height}x{width} pixels, {data.test.preprocessing.summary()}; {config.total_steps:,} steps '
    f'of {config.batch_size:,} examples, learning rate {config.schedule.learning_rate:g}, seed '
    f'{config.seed}'
  ]
  if data.test.split == 'validation':
    lines.append('trained on 800 examples, scored on the 200 of the validation split')
  theirs, ours = flatten(protocol), flatten(config)
  free = {name for name, _, field in walk_fields(config) if field.metadata['execution']}
  differing = [
    f'{name}={value}'
    for name, value in ours.items()
    if name not in free.union(_FREE) and value != theirs.get(name)
  ]
  if differing:
    lines.append(f'not the protocol of configs/vtab.py: {", ".join(differing)}')
  return lines


def _unusable(config: Config) -> str:
  """Why a task cannot be run, a sentence: its data is missing, or of another kind; '' if it can."""
  try:
    for split in (config.data.train.split, config.data.test.split):
      open_source(config.data.train.source, split)
  except UserError as error:
    return str(error)
  return ''


def _without_data(configs: Mapping[str, Config], workdir: epath.Path) -> dict[str, Outcome]:
  """The tasks that have neither usable data nor a result; process 0 decides."""
  outcomes = {}
  for task, config in configs.items():
    reason = '' if _is_finished(workdir / task) else _unusable(config)
    if broadcast_from_process_0(int(bool(reason))):
      outcomes[task] = Outcome(None, reason=reason)
  return outcomes


def _run_tasks(configs: Mapping[str, Config], workdir: epath.Path) -> Iterator[tuple[str, Outcome]]:
  """Trains and tests on one task after the other, each an ordinary run in workdir/TASK.

  A task that was finished before is not run again: its result is read. One that was stopped is
  resumed. A loss that is not finite ends its task only.

  Args:
    configs: of the tasks by name; their data must exist unless they are finished.
    workdir: shared by all processes.

  Yields:
    (task, outcome), in the order of the tasks.

  Raises:
    UserError: for a folder with another run, and as `train_and_evaluate`.
  """
  for number, (task, config) in enumerate(configs.items(), start=1):
    folder = workdir / task
    if broadcast_from_process_0(_is_finished(folder)):
      yield task, _read_result(config, folder)
      continue
    if jax.process_index() == 0:
      print(f'\n{task}, task {number} of {len(configs)}', flush=True)
    try:
      metrics = train_and_evaluate(config, folder)
    except DivergedError as error:
      yield task, Outcome(None, reason=str(error))
      continue
    finally:
      jax.clear_caches()  # no other task has this number of classes and these steps
    outcome = Outcome(metrics['accuracy'], int(metrics['examples']))
    if jax.process_index() == 0:
      write_text(folder / _RESULT, json.dumps({'task': task, **metrics}) + '\n')
    yield task, outcome


def run_vtab(
  model: str, configs: Mapping[str, Config], protocol: Config, workdir: epath.Path
) -> Report:
  """Runs the tasks that have data, and writes the tables of `write_report` after each.

  Args:
    model: what is fine-tuned, for the tables.
    configs: of the tasks by name.
    protocol: that of the first task without any flags.
    workdir: folder of the runs, shared by all processes.

  Raises:
    UserError: when no task has usable data, and as `train_and_evaluate`.
  """
  is_first = jax.process_index() == 0
  missing = _without_data(configs, workdir)
  for task, outcome in missing.items() if is_first else ():
    print(f'{task}: {outcome.reason}', flush=True)
  if len(missing) == len(configs):
    raise UserError(
      f'{plural(len(configs), "task")} of VTAB, but data for none; --data_dir names its folder.'
    )
  config = next(iter(configs.values()))
  preprocessing = dataclasses.asdict(config.data.test.preprocessing)
  preparation = {'image_size': config.data.height_width, 'preprocessing': preprocessing}
  settings, compares = describe(config, protocol), config.data.test.split == 'test'
  unfinished = Outcome(None, reason='It is not finished; run the same command again.')
  outcomes = {task: missing.get(task, unfinished) for task in configs}
  report = Report(model, settings, outcomes, compares, preparation)
  ready = {task: config for task, config in configs.items() if task not in missing}
  for task, outcome in _run_tasks(ready, workdir):
    outcomes[task] = outcome
    if is_first:
      write_report(report, workdir)
  return report


def _is_finished(folder: epath.Path) -> bool:
  return (folder / _RESULT).exists()


def _read_result(config: Config, folder: epath.Path) -> Outcome:
  """The result of a finished task; `UserError` if it is that of another config, or damaged."""
  check_same_run(config.resolve_steps(_EXAMPLES), folder / 'config.json')
  try:
    result = read_json_object(folder / _RESULT)
    return Outcome(float(result['accuracy']), int(result['examples']))
  except (OSError, ValueError, KeyError, TypeError):
    raise UserError(f'{folder / _RESULT} is damaged; remove it to test this task again.') from None
