"""Runs on a cluster that SLURM schedules, through submitit (optional)."""

import importlib
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.errors import UserError, first_line
from vit_jax.sweeps.point_runs import Run, read_outcome, run_to_end
from vit_jax.text import printable


def parse_parameters(texts: Sequence[str]) -> dict[str, Any]:
  """{'timeout_min': 600} of 'timeout_min=600'; raises `UserError` for other syntax."""
  parameters: dict[str, Any] = {}
  for text in texts:
    name, equals, value = text.partition('=')
    if not equals or not name.isidentifier():
      raise UserError(f'--slurm is {text!r}; it takes NAME=VALUE, such as timeout_min=600.')
    parameters[name] = int(value) if value.isdecimal() else value
  return parameters


def _run(run: Run) -> None:
  """Runs one task of a job; all tasks of a job are the processes of one distributed run."""
  rank = importlib.import_module('submitit').JobEnvironment().global_rank
  if rank == 0:
    run_to_end(run)
  elif not read_outcome(run).is_final:
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / f'log-{rank}.txt').open('ab') as log:
      subprocess.run(run.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)


def run_jobs(
  runs: Sequence[Run], folder: pathlib.Path, parameters: Mapping[str, Any], cluster: str = 'slurm'
) -> None:
  """Runs all, as a job array, and returns when they have ended; Ctrl-C cancels the jobs.

  Args:
    runs: independent of each other.
    folder: for what the jobs print, shared by all machines.
    parameters: of submitit's executor, such as timeout_min, nodes, tasks_per_node, gpus_per_node.
    cluster: 'slurm', or 'local' for processes of this machine.

  Raises:
    UserError: without submitit or SLURM, or for parameters that they do not know.
  """
  try:
    submitit = importlib.import_module('submitit')
  except ImportError:
    raise UserError(
      "--launcher=slurm needs submitit; pip install 'vit_jax[sweep]' installs it."
    ) from None
  failed_job = submitit.core.utils.FailedJobError
  submit_errors = (RuntimeError, NameError, TypeError, ValueError, failed_job)
  try:
    executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
    executor.update_parameters(**{'name': 'vit_jax_sweep', **parameters})
    jobs = executor.map_array(_run, list(runs))
  except submit_errors as error:
    raise UserError(f'SLURM does not take the jobs ({first_line(error)}).') from None
  try:
    for job in jobs:
      job.wait()
  except KeyboardInterrupt:
    for job in jobs:
      job.cancel()
    raise
  for run, job in zip(runs, jobs, strict=True):
    if (error := job.exception()) is not None:
      reason = printable(first_line(error))
      print(f'{run.name}: its job failed ({reason}), see {folder}', file=sys.stderr)
