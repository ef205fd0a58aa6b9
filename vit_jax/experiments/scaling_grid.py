"""The runs of the scaling experiment: models x parts of the training data x seeds."""

import dataclasses
import decimal
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vit_jax.checkpoints.damage import has_checkpoint
from vit_jax.config import Config, flatten, load_config
from vit_jax.config.runs import check_same_run
from vit_jax.errors import UserError
from vit_jax.files import is_remote, real_path, user_path
from vit_jax.models import build
from vit_jax.models.flops import forward_flops, train_flops
from vit_jax.sweeps.point_runs import Run
from vit_jax.training.preflight import open_sources
from vit_jax.weights.adapt import check_source

# field: the flag of the experiment that sets it
_SET_HERE = {'seed': '--seeds', 'data.train.split': '--fractions', 'init_from': '--init_from'}
KINDS = ('', 'strong', 'finetuned')  # what a run may be


@dataclasses.dataclass(frozen=True)
class Cell:
  """A run of the experiment.

  Attributes:
    model: a key of MODELS in configs/scaling.py.
    fraction: of the training split: '10%'.
    kind: one of KINDS.
    seed: of the run.
  """

  model: str
  fraction: str
  kind: str
  seed: int

  @property
  def name(self) -> str:
    """Of its folder: 'vit,10%,strong,seed=0'."""
    kind = f',{self.kind}' if self.kind else ''
    return f'{self.model},{self.fraction}{kind},seed={self.seed}'


@dataclasses.dataclass(frozen=True)
class Experiment:
  """All runs, and where they are.

  Attributes:
    source: the config file, without an argument.
    overrides: the '--config.field=value' flags of all runs.
    cells: the runs, in the order in which they start.
    init_from: weights to fine-tune; '{model}' stands for the name of a model.
    workdir: as the user names it; has a folder for each run.
  """

  source: str
  overrides: tuple[str, ...]
  cells: tuple[Cell, ...]
  init_from: str
  workdir: str

  @property
  def folder(self) -> pathlib.Path:
    """The workdir, absolute."""
    return pathlib.Path(real_path(user_path(self.workdir)))

  @property
  def kind_names(self) -> dict[str, str]:
    """How readers know KINDS; the name of '' tells it from the other kinds of the experiment."""
    kinds = {cell.kind for cell in self.cells}
    names = ['from scratch'] if 'finetuned' in kinds or 'strong' not in kinds else []
    if 'strong' in kinds:
      augment = self.config(self.cells[0]).data.augment
      is_crop = augment.crop in ('inception', 'random') and augment.randaugment == 'none'
      names.append('crop and flip' if is_crop and augment.flip else 'standard augmentation')
    return {'': ', '.join(names), 'strong': 'strong augmentation', 'finetuned': 'fine-tuned'}

  def _flags(self, cell: Cell) -> tuple[str, ...]:
    strong = ',strong' if cell.kind == 'strong' else ''
    flags = [f'--config={self.source}:{cell.model},{cell.fraction}{strong}']
    flags.append(f'--config.seed={cell.seed}')
    if cell.kind == 'finetuned':
      flags.append(f'--config.init_from={self.init_from.replace("{model}", cell.model)}')
    return (*flags, *self.overrides)

  def run(self, cell: Cell) -> Run:
    """The run of a cell."""
    return Run(cell.name, self._flags(cell), self.folder / cell.name)

  def command(self, cell: Cell) -> list[str]:
    """What a reader types to repeat the run."""
    workdir = f'--workdir={self.workdir.rstrip("/")}/{cell.name}'
    return ['python', '-m', 'vit_jax.main', *self._flags(cell), workdir]

  def config(self, cell: Cell) -> Config:
    """The config of a run; raises `UserError` for a field or a value that it cannot have."""
    config, *overrides = self._flags(cell)
    return load_config(config.removeprefix('--config='), overrides)


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is known of a run before it starts.

  Attributes:
    examples: to train on.
    parameters: of the model.
    forward_flops: of one image.
    training_flops: of the whole run.
  """

  examples: int
  parameters: int
  forward_flops: int
  training_flops: int


def plan(
  source: str,
  overrides: Sequence[str],
  models: Sequence[str],
  fractions: Sequence[str],
  seeds: Mapping[str, int],
  init_from: str,
  workdir: str,
) -> Experiment:
  """The experiment as a user describes it: all runs of the first seed first.

  Args:
    source: the config file, without an argument.
    overrides: '--config.field=value' flags.
    models, fractions: of the config file.
    seeds: how many, from 0, for each of KINDS.
    init_from: weights to fine-tune; '{model}' stands for the name of a model.
    workdir: a local folder, which need not exist.

  Raises:
    UserError: for an unknown model, an invalid percentage, a repeated model or fraction, a flag
      that the experiment sets itself, or a workdir that is not local.
  """
  fractions = [_simplify(fraction) for fraction in fractions]
  for name, values in (('--models', models), ('--fractions', fractions)):
    if not values:
      raise UserError(f'{name} is empty.')
    if twice := [value for value in values if values.count(value) > 1]:
      raise UserError(f'{name} has {twice[0]} twice.')
  for field, instead in _SET_HERE.items():
    if any(re.match(rf'--?config\.{re.escape(field)}(=|$)', flag) for flag in overrides):
      raise UserError(f'config.{field} is set for each run by {instead}; leave the flag out.')
  if is_remote(user_path(workdir)):
    raise UserError(f'--workdir is {workdir}; an experiment needs a local or a mounted folder.')
  cells = tuple(
    Cell(model, fraction, kind, seed)
    for seed in range(max(seeds.values()))
    for kind in KINDS
    if seed < seeds[kind]
    for fraction in fractions
    for model in models
  )
  experiment = Experiment(source, tuple(overrides), cells, init_from, workdir)
  _check_folder(experiment.folder)
  _check_distinct(experiment)
  return experiment


def _simplify(fraction: str) -> str:
  """'1.0%' -> '1%'; anything but a percentage is left to the config file."""
  match = re.fullmatch(r'(\d{1,9}(?:\.\d{1,9})?)%', fraction)
  return f'{decimal.Decimal(match[1]).normalize():f}%' if match else fraction


def _check_folder(folder: pathlib.Path) -> None:
  if folder.exists() and not folder.is_dir():
    raise UserError(f'The workdir {folder} is a file; an experiment needs a folder.')
  if (folder / 'config.json').exists() or has_checkpoint(epath.Path(folder)):
    raise UserError(f'{folder} holds a run, not an experiment; choose another --workdir.')
  if (folder / 'sweep.json').exists():
    raise UserError(f'{folder} holds a sweep, not an experiment; choose another --workdir.')


def _check_distinct(experiment: Experiment) -> None:
  """Raises `UserError` unless model, fraction and kind make a difference to the config."""
  splits, configs = {}, {}
  for cell in experiment.cells:
    config = experiment.config(cell)
    split = config.data.train.split
    other = splits.setdefault((cell.model, cell.kind, cell.seed, split), cell)
    if other != cell:
      raise UserError(
        f'{experiment.source} does not follow the fraction: config.data.train.split is {split!r} '
        f'for both {other.fraction} and {cell.fraction}; configs/scaling.py shows how to.'
      )
    other = configs.setdefault(repr(flatten(config)), cell)
    if other != cell:
      raise UserError(
        f'{experiment.source} has the same config for {other.name} and {cell.name}; '
        'configs/scaling.py shows how they can differ.'
      )


def check(experiment: Experiment) -> dict[Cell, Facts]:
  """Opens all data and weights, and checks that the runs in the folder are those of the experiment.

  Raises:
    UserError: for data or weights that cannot be read, or a run in the folder with another config.
  """
  opened, facts, checked, sizes = {}, {}, set(), {}
  for cell in experiment.cells:
    config = experiment.config(cell)
    key = config.data.train, config.data.test
    if key not in opened:
      opened[key], _ = open_sources(config.data)
    train = opened[key]
    other = sizes.setdefault((cell.model, cell.kind, cell.seed, train.size), cell)
    if other != cell:
      raise UserError(
        f'{other.fraction} and {cell.fraction} of the training split are both {train.size:,} '
        'examples; leave one of them out of --fractions.'
      )
    config = config.resolve_steps(train.size)
    path = epath.Path(experiment.run(cell).folder) / 'config.json'
    if path.exists():
      check_same_run(config, path)
    model = build.model_from_config(config.model, train.num_classes, platform='cpu')
    weights = config.init_from, model, config.data.height_width, config.data.channels
    if config.init_from and weights not in checked:
      _check_weights(cell, config, model, train.class_names)
      checked.add(weights)
    facts[cell] = _facts(config, train.size, model)
  return facts


def _check_weights(cell: Cell, config: Config, model: Any, class_names: Sequence[str]) -> None:
  shape = (*config.data.height_width, config.data.channels)
  try:
    head = config.init_head, class_names
    check_source(config.init_from, model, shape, config.position_resize, *head)
  except UserError as error:
    raise UserError(f'{cell.model} cannot be fine-tuned: {error}') from None


def _facts(config: Config, examples: int, model: Any) -> Facts:
  size, channels = config.data.height_width, config.data.channels
  parameters = build.count_parameters(build.abstract_params(model, size, channels))
  training = train_flops(model, size) * config.batch_size * config.total_steps
  return Facts(examples, parameters, forward_flops(model, size), training)
