"""Trackers get the metrics of a run as metrics.jsonl does: Weights & Biases, or any function.

They are called by process 0. What a tracker raises is one warning, and never ends the run.
"""

import contextlib
import importlib
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from vit_jax.errors import UserError, first_line
from vit_jax.files import cache_folder, is_remote, read_text, write_text

Track = Callable[[int, dict[str, float]], object]
_RUN_ID = 'wandb_run_id.txt'


class Tracker:
  """Passes metrics on to what `config.tracker` names.

  Raises:
    UserError: for a name of no tracker, or a package that is missing.
  """

  def __init__(self, name: str):
    self._name, self._has_failed = name, False
    is_silent = not name or jax.process_index() != 0
    self._track: Track | None = None if is_silent or name == 'wandb' else _find_function(name)
    self._wandb = None if is_silent or name != 'wandb' else _import_wandb()

  @contextlib.contextmanager
  def running(self, config: Mapping[str, Any], workdir: epath.Path) -> Iterator[None]:
    """Inside, `__call__` reaches the tracker. `config` has its fields by their names."""
    if self._wandb is None:
      yield
      return
    run = None
    with self._no_errors():
      run = _start_wandb(self._wandb, config, workdir)
      self._track = lambda step, metrics: run.log({'step': step, **metrics})
    try:
      yield
    except BaseException:
      self._finish(run, 1)
      raise
    self._finish(run, 0)

  def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
    """Passes the metrics of a step on."""
    if self._track is not None:
      with self._no_errors():
        self._track(step, dict(metrics))

  def _finish(self, run: Any, exit_code: int) -> None:
    if run is not None:
      with self._no_errors():
        run.finish(exit_code=exit_code)

  @contextlib.contextmanager
  def _no_errors(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # noqa: BLE001 - a tracker may raise anything
      if not self._has_failed:
        self._has_failed = True
        reason = f'{type(error).__name__}: {first_line(error)}'.rstrip('.')
        text = f'tracker: {self._name} has failed ({reason}); training continues'
        print(text, file=sys.stderr, flush=True)


def _find_function(name: str) -> Track:
  module, _, function = name.partition(':')
  if not module or not function:
    raise UserError(
      f'config.tracker is {name!r}; it takes wandb, or package.module:function for a function that '
      'is called with each step and its metrics.'
    )
  try:
    track = getattr(importlib.import_module(module), function)
  except Exception as error:  # noqa: BLE001 - a module may raise anything
    raise UserError(f'config.tracker is {name!r}, which cannot be imported: {error}.') from None
  if not callable(track):
    raise UserError(f'config.tracker is {name!r}, which is not a function.')
  return track


def _import_wandb() -> Any:
  try:
    return importlib.import_module('wandb')  # optional, and without types
  except ImportError:
    raise UserError(
      "config.tracker=wandb needs the package wandb; pip install 'vit_jax[wandb]'."
    ) from None


def _start_wandb(wandb: Any, config: Mapping[str, Any], workdir: epath.Path) -> Any:
  """The run of Weights & Biases that belongs to a workdir: a new one, or the one before."""
  path = workdir / _RUN_ID
  is_resumed = path.exists()
  run_id = read_text(path).strip() if is_resumed else secrets.token_hex(8)
  folder = cache_folder() if is_remote(workdir) else workdir
  folder.mkdir(parents=True, exist_ok=True)
  run = wandb.init(
    id=run_id,
    name=workdir.name,
    dir=str(folder),
    config=dict(config),
    resume='allow',
    allow_val_change=True,  # fields that may differ when a run is resumed
    settings=wandb.Settings(console='off'),  # what is printed is in workdir/logs
  )
  if not is_resumed:
    write_text(path, run_id + '\n')
  # A resumed run repeats steps, which Weights & Biases drops unless they are a metric of their own.
  run.define_metric('*', step_metric='step')
  return run
