"""A run that diverges goes back to its last checkpoint and skips the batches since then.

Each time is recorded in `workdir/rollbacks.json` before training continues, so that a restart skips
the same batches. All processes see the same metrics, so they go back together.
"""

import dataclasses
import functools
import gc
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from vit_jax.checkpoints.damage import checkpoint_steps
from vit_jax.config import Config
from vit_jax.config.reading import read_json
from vit_jax.data.loading.skipping import batch_numbers, merge_ranges
from vit_jax.errors import DivergedError, NonFiniteLossError, UserError, first_line
from vit_jax.files import parse_json, read_text, write_text
from vit_jax.training.workdir import resolve_workdir

ROLLBACKS_FILE = 'rollbacks.json'
Train = Callable[..., dict[str, float]]  # train_and_evaluate


def fetch_sound(step: int, metrics: dict[str, Any], after_skipped: int) -> dict[str, float]:
  """Fetches the metrics of a step.

  Args:
    step: number of the step.
    metrics: scalars on the devices.
    after_skipped: the number of updates skipped in a row that is too many; 0: any number may be.

  Raises:
    NonFiniteLossError: for a loss or a norm that is not finite.
    DivergedError: for too many skipped updates.
  """
  values = {name: float(value) for name, value in jax.device_get(metrics).items()}
  for name in ('train/loss', 'train/gradient_norm', 'train/parameter_norm'):
    if not np.isfinite(values[name]):
      raise NonFiniteLossError(
        f'{name} is {values[name]} at step {step}; earlier checkpoints are kept. A lower '
        'learning rate, a longer warmup or config.optimizer.clip_norm may help.',
        step,
      )
  if 0 < after_skipped <= values.get('train/skipped_in_a_row', 0):
    raise DivergedError(
      f'The updates of {after_skipped} steps in a row were skipped up to step {step}, because of '
      'their gradient norms; earlier checkpoints are kept. A lower learning rate may help.',
      step,
    )
  return values


def with_rollbacks(train: Train) -> Train:
  """Decorates `train_and_evaluate`: at most `config.rollback.limit` times it begins again."""

  @functools.wraps(train)
  def train_again(
    config: Config, workdir: epath.PathLike, start: float | None = None
  ) -> dict[str, float]:
    while True:
      try:
        return train(config, workdir, start)
      except DivergedError as error:
        if config.rollback.limit == 0:
          raise
        line = _record(resolve_workdir(workdir), config.rollback.limit, error)
      if jax.process_index() == 0:
        print(line, flush=True)
      start = None  # of this attempt: now
      gc.collect()  # the state of the attempt, which the exception held

  return train_again


def skip_recorded(config: Config, workdir: epath.Path) -> Config:
  """The config of a run, with the batches in `data.skip_batches` that its rollbacks skip, too."""
  ranges = [tuple(rollback['batches']) for rollback in _read(workdir / ROLLBACKS_FILE)]
  if not ranges:
    return config
  skipped = merge_ranges([*config.data.skip_batches, *ranges])
  return dataclasses.replace(config, data=dataclasses.replace(config.data, skip_batches=skipped))


def _record(workdir: epath.Path, limit: int, error: DivergedError) -> str:
  """Records the batches to skip; returns a line for the user. Raises `error` at the limit."""
  rollbacks = _read(workdir / ROLLBACKS_FILE)
  if len(rollbacks) >= limit or error.step is None:
    raise error
  last_good = next(iter(checkpoint_steps(workdir)), 0)
  skipped = read_json(workdir / 'config.json').data.skip_batches
  first, last = batch_numbers(np.array([last_good, error.step - 1]), skipped).tolist()
  rollback = {
    'diverged_at_step': error.step,
    'checkpoint': last_good,
    'batches': [first, last + 1],
    'reason': str(error),
  }
  multihost_utils.sync_global_devices('all processes have read the rollbacks')
  if jax.process_index() == 0:
    content = json.dumps([*rollbacks, rollback], indent=2) + '\n'
    write_text(workdir / ROLLBACKS_FILE, content)
  multihost_utils.sync_global_devices('the rollback is recorded')
  return (
    f'{error} Going back to step {last_good}; batches {first} to {last} of the data are skipped '
    f'(rollback {len(rollbacks) + 1} of {limit}).'
  )


def _read(path: epath.Path) -> list[dict[str, Any]]:
  """The rollbacks of a run, oldest first."""
  try:
    rollbacks = parse_json(read_text(path))
    for first, stop in (rollback['batches'] for rollback in rollbacks):
      if not (type(first) is type(stop) is int and 0 <= first < stop):
        raise ValueError(f'[{first}, {stop}] are no batches')
  except FileNotFoundError:
    return []
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise UserError(
      f'{path} cannot be read ({first_line(error)}); remove it to train on the batches that it '
      'skips, too.'
    ) from None
  return rollbacks
