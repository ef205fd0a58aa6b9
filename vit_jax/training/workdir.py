"""The folder of a run: found, opened, and one folder for all processes."""

import secrets
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from vit_jax.checkpoints.damage import checkpoint_steps, has_checkpoint
from vit_jax.config import Config, check_same_run, write_config
from vit_jax.config.reading import read_json
from vit_jax.data.loading.skipping import check_skipped
from vit_jax.distributed.processes import broadcast_from_process_0
from vit_jax.errors import UserError, first_line
from vit_jax.files import real_path, user_path
from vit_jax.retries import storage_error, with_retries
from vit_jax.training.same_data import check_same_as_before, write_facts
from vit_jax.weights.save import check_replaceable


def resolve_workdir(workdir: epath.PathLike) -> epath.Path:
  """The workdir as an absolute path; it need not exist, but must be reachable.

  Raises:
    UserError: when it is not.
  """
  path = real_path(user_path(workdir))
  try:
    with_retries(path.exists)
  except ImportError as error:
    raise UserError(
      f'The workdir {path} cannot be reached ({first_line(error)}); '
      "pip install 'vit_jax[gcs]' installs what gs:// needs."
    ) from None
  except OSError as error:
    raise storage_error(f'The workdir {path} cannot be reached', error) from None
  return path


def open_workdir(config: Config, facts: Mapping[str, Any], workdir: epath.Path) -> str:
  """Creates the workdir with its config.json, or checks that it belongs to this config and data.

  Args:
    config: of the run.
    facts: of its data, from `check_same_on_all_processes`.
    workdir: absolute.

  Returns:
    A note for the user, or ''.

  Raises:
    UserError: when it cannot be written, holds another run, or is not shared by all hosts.
  """
  path, note = workdir / 'config.json', ''
  try:
    with_retries(workdir.mkdir, parents=True, exist_ok=True)
    with_retries(check_replaceable, workdir / 'model')
    if with_retries(path.exists):
      check_same_run(config, path)
      before, steps = read_json(path).data.skip_batches, checkpoint_steps(workdir)
      check_skipped(before, config.data.skip_batches, max(steps, default=0))
    elif has_checkpoint(workdir):
      raise UserError(f'{workdir} has checkpoints but no config.json; choose another --workdir.')
    if has_checkpoint(workdir):
      note = check_same_as_before(facts, workdir)
    if jax.process_index() == 0:
      write_config(config, path)
      write_facts(facts, workdir)
    _check_shared(workdir)
  except OSError as error:
    raise storage_error(f'The workdir {workdir} cannot be written', error) from None
  return note


def _check_shared(workdir: epath.Path) -> None:
  """Raises `UserError` unless all processes see what process 0 writes."""
  if jax.process_count() == 1:
    return
  probe = workdir / f'.shared_{broadcast_from_process_0(secrets.randbits(31))}'
  if jax.process_index() == 0:
    with_retries(probe.touch)
  multihost_utils.sync_global_devices('process 0 has written the probe')
  is_visible = np.ravel(multihost_utils.process_allgather(np.bool_(with_retries(probe.exists))))
  if jax.process_index() == 0:
    with_retries(probe.unlink, missing_ok=True)
  if not is_visible.all():
    raise UserError(
      f'The workdir {workdir} is not one folder for all processes: process '
      f'{is_visible.argmin()} does not see what process 0 writes; name a shared folder with '
      '--workdir.'
    )
