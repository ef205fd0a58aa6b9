"""The state that a run begins with: of a checkpoint, another run, other weights, or the seed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from vit_jax.checkpoints.damage import has_checkpoint
from vit_jax.checkpoints.manager import Checkpointer
from vit_jax.config import Config
from vit_jax.data.sources import Source
from vit_jax.distributed.processes import broadcast_from_process_0
from vit_jax.retries import storage_error, with_retries
from vit_jax.training.preflight import inspect_data
from vit_jax.training.program import Program
from vit_jax.training.resume_from import copy_state, find_source
from vit_jax.training.step import TrainState
from vit_jax.training.workdir import open_workdir
from vit_jax.weights.adapt import LoadReport, load_params
from vit_jax.weights.initial_weights import read_inherited, write_inherited


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a run begins.

  Attributes:
    checkpointer: of its workdir.
    first_step: number of steps done; 0 without a checkpoint.
    params: loaded from `config.init_from`; None without it.
    notes: lines for the user.
  """

  checkpointer: Checkpointer
  first_step: int
  params: Any
  notes: tuple[str, ...]

  def make_state(self, program: Program) -> TrainState:
    """Restores or initializes the state; `params` are donated."""
    if self.first_step:
      return self.checkpointer.restore(self.first_step, program.abstract_state)
    return program.init(self.params)


def open_start(
  config: Config,
  program: Program,
  train: Source,
  test: Source,
  facts: Mapping[str, Any],
  workdir: epath.Path,
) -> Start:
  """Opens the workdir, and finds where the run begins; reads no state yet.

  Args:
    config: of the run, with whole numbers of steps.
    program: of the run.
    train, test: its data.
    facts: of the data, from `check_same_on_all_processes`.
    workdir: absolute.

  Raises:
    UserError: for weights or states that do not fit, data that an inspection refuses, or a workdir
      that cannot be used.
  """
  params, report, source = None, None, None
  if not broadcast_from_process_0(has_checkpoint(workdir)):
    if card := inspect_data(config.data, train, test):
      print(card, flush=True)
    if config.resume_from:
      source = find_source(config, facts)
    elif config.init_from:
      params, report = _load_params(config, program, train)
  note = open_workdir(config, facts, workdir)
  if source is not None:
    note = copy_state(source, program.abstract_state, workdir, config.checkpoint.keep)
    _write_inherited(workdir, read_inherited(source.workdir))
  if report is not None:
    inherited = {'license': report.license, 'position_resize': report.position_resize}
    _write_inherited(workdir, {'source': report.source, **inherited})
  checkpointer = Checkpointer(workdir, config.checkpoint.keep, config.checkpoint.keep_every)
  first_step = broadcast_from_process_0(checkpointer.latest_step() or 0)
  notes = (*checkpointer.warnings, note, str(report or ''))
  return Start(checkpointer, first_step, params, tuple(filter(None, notes)))


def _write_inherited(workdir: epath.Path, inherited: dict[str, Any]) -> None:
  """On process 0; the models of the run inherit it."""
  try:
    if jax.process_index() == 0:
      with_retries(write_inherited, workdir, inherited)
  except OSError as error:
    raise storage_error(f'The workdir {workdir} cannot be written', error) from None


def _load_params(config: Config, program: Program, train: Source) -> tuple[Any, LoadReport]:
  """The parameters of `config.init_from`, adapted to the model and sharded."""
  return load_params(
    config.init_from,
    program.model,
    program.image_shape,
    config.position_resize,
    program.param_shardings,
    config.data.test.preprocessing,
    config.init_head,
    train.class_names,
  )
