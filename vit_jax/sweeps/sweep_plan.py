"""A sweep: which runs it has, and the folder that they share."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from vit_jax.checkpoints.damage import has_checkpoint
from vit_jax.config import call_config_function, flatten, replace_fields
from vit_jax.config.fields import walk_fields
from vit_jax.errors import UserError
from vit_jax.files import is_remote, read_json_object, real_path, user_path, write_text
from vit_jax.sweeps.grid import Point, make_points, parse_grid
from vit_jax.sweeps.held_out_split import hold_out, parse_percent
from vit_jax.sweeps.point_runs import Outcome, Run
from vit_jax.training.preflight import open_sources

# The test data is scored once, after the last step.
_ONLY_AT_THE_END = '--config.eval_every=1000000000'


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A sweep of a config.

  Attributes:
    source: the config file, as `load_config` takes it.
    overrides: the flags of all its runs.
    points: of the grid, in order.
    train_split: what the runs of the grid are trained on.
    held_out_split: what they are compared on.
    workdir: absolute and local; has a folder for each run.
  """

  source: str
  overrides: tuple[str, ...]
  points: list[Point]
  train_split: str
  held_out_split: str
  workdir: pathlib.Path

  def _run(self, point: Point, folder: str, flags: Iterable[str]) -> Run:
    flags = (f'--config={self.source}', *self.overrides, *point.flags, *flags)
    return Run(folder, flags, self.workdir / folder)

  def point_run(self, point: Point) -> Run:
    """The run of a point of the grid."""
    flags = [
      f'--config.data.train.split={self.train_split}',
      f'--config.data.test.split={self.held_out_split}',
    ]
    if point.config.data.test.source:
      flags.append('--config.data.test.source=')  # the same as for training
    return self._run(point, point.name, flags)

  def final_run(self, point: Point) -> Run:
    """The run on all training data, with the values of a point."""
    return self._run(point, f'final,{point.name}', [_ONLY_AT_THE_END])

  @property
  def settings(self) -> dict[str, Any]:
    """What must not change when a sweep is continued; values may be added to the grid."""
    config = self.points[0].config
    names = {flag.removeprefix('--config.').partition('=')[0] for flag in self.points[0].flags}
    fixed = [name for name, _, field in walk_fields(config) if not field.metadata['execution']]
    fields = flatten(config)
    values = {f'config.{name}': fields[name] for name in fixed if name not in names}
    return values | {
      'the fields of --grid': sorted(names),
      'the split to train on': self.train_split,
      'the held-out split': self.held_out_split,
    }


def plan_sweep(
  source: str,
  overrides: Sequence[str],
  arguments: Sequence[str],
  paper_grid: bool,
  held_out: str | None,
  workdir: str,
) -> Sweep:
  """A sweep as a user describes it.

  Args:
    source: config file, as `load_config` takes it.
    overrides: '--config.field=value' flags.
    arguments: of --grid, such as 'config.schedule.learning_rate=0.001,0.003'.
    paper_grid: take grid and splits from the function `paper_grid` of the config file.
    held_out: share of the training split, such as '2%'; None: 2%, or what the paper held out.
    workdir: a local folder, which need not exist.

  Raises:
    UserError: for a grid, a split or a workdir that cannot be used.
  """
  grid, parts = parse_grid(arguments), None
  if paper_grid:
    fields, *parts = call_config_function(source, 'paper_grid')
    grid = _texts(fields) | {**grid}
  points = make_points(source, overrides, grid)  # checks the overrides, too
  if not grid:
    raise UserError('There is no grid; name fields and values with --grid, or use --paper_grid.')
  if any(point.config.objective != 'supervised' for point in points):
    raise UserError('A sweep chooses by accuracy, which objective=masked_patches does not have.')
  split = points[0].config.data.train.split
  has_own_split = any(flag.startswith('--config.data.train.split') for flag in overrides)
  if parts is None or held_out is not None or has_own_split:
    parts = hold_out(split, parse_percent(held_out or '2%'))
  folder = user_path(workdir)
  if is_remote(folder):
    raise UserError(f'--workdir is {workdir}; a sweep needs a local or a mounted folder.')
  train, test = parts
  return Sweep(source, tuple(overrides), points, train, test, pathlib.Path(real_path(folder)))


def _texts(fields: Mapping[str, Iterable[Any]]) -> dict[str, tuple[str, ...]]:
  return {field: tuple(map(str, values)) for field, values in fields.items()}


def check_data(sweep: Sweep) -> None:
  """Opens the data of all runs, and checks that their lengths make sense.

  Raises:
    UserError: for data that cannot be read, a part of it that is empty, or a warmup longer than a
      run.
  """
  data = sweep.points[0].config.data
  held_out = {
    'train.split': sweep.train_split,
    'test.split': sweep.held_out_split,
    'test.source': '',
  }
  open_sources(data)
  train, _ = open_sources(replace_fields(data, held_out))
  for point in sweep.points:
    point.config.resolve_steps(train.size)


def open_folder(sweep: Sweep) -> None:
  """Creates the folder of a sweep with its sweep.json, or checks that it belongs to this sweep.

  Raises:
    UserError: when it cannot be written, or holds something else.
  """
  folder = epath.Path(sweep.workdir)
  settings, path = json.loads(json.dumps(sweep.settings)), folder / 'sweep.json'
  try:
    if path.exists():
      _check_same(read_json_object(path).get('settings', {}), settings, folder)
      return
    if (folder / 'config.json').exists() or has_checkpoint(folder):
      raise UserError(f'{folder} holds a run, not a sweep; choose another --workdir.')
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({'settings': settings}, indent=2) + '\n')
  except ValueError as error:
    raise UserError(f'{path} cannot be read ({error}); choose another --workdir.') from None
  except OSError as error:
    raise UserError(f'The workdir {folder} cannot be written: {error.strerror or error}.') from None


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: epath.Path) -> None:
  differing = [
    f'{name} ({before[name]!r} there, {now[name]!r} now)'
    for name in now
    if name in before and before[name] != now[name]
  ]
  if differing or not before:
    what = f': {"; ".join(differing)}' if differing else ''
    raise UserError(f'{folder} holds another sweep{what}; choose another --workdir.')


def choose(points: Sequence[Point], outcomes: Sequence[Outcome]) -> Point | None:
  """The point of the highest accuracy on the held-out data; among equals that of the lowest loss.

  None while a run is unfinished, or if all diverged or failed.
  """
  if any(outcome.status == 'unfinished' for outcome in outcomes):
    return None
  finished = [
    (outcome.metrics['accuracy'], -(outcome.metrics['loss'] or 0), point)
    for point, outcome in zip(points, outcomes, strict=True)
    if outcome.status == 'finished'
  ]
  return max(finished, key=lambda each: each[:2])[-1] if finished else None
