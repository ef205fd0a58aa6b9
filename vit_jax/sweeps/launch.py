"""From a sweep to its results: runs its points, chooses, runs the final one, reports."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence

from vit_jax.errors import NonFiniteLossError, RunError, UserError
from vit_jax.sweeps.grid import Point
from vit_jax.sweeps.point_runs import Outcome, Run, read_outcome, run_to_end
from vit_jax.sweeps.slurm_jobs import parse_parameters, run_jobs
from vit_jax.sweeps.sweep_plan import Sweep, check_data, choose, open_folder
from vit_jax.sweeps.sweep_report import as_markdown, summarize, write_report
from vit_jax.text import format_metric, plural

Launcher = Callable[[Sequence[Run]], None]


def _log(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _run_here(runs: Sequence[Run]) -> None:
  """Runs one after another, each in its own process."""
  for number, run in enumerate(runs, 1):
    _log(f'{number}/{len(runs)} {run.name}: see {run.folder}/log.txt')
    start = time.monotonic()
    try:
      outcome = run_to_end(run)
    except KeyboardInterrupt:
      raise KeyboardInterrupt('rerun the same command to continue the sweep') from None
    accuracy = outcome.metrics.get('accuracy')
    what = outcome.status if accuracy is None else format_metric('accuracy', accuracy)
    _log(f'  {what} in {time.monotonic() - start:.0f} s {outcome.message}'.rstrip())


def make_launcher(sweep: Sweep, name: str, parameters: Sequence[str]) -> Launcher:
  """What runs the runs: 'local', here; 'slurm', as jobs with these parameters of submitit."""
  if name == 'local':
    if parameters:
      raise UserError('--slurm needs --launcher=slurm.')
    return _run_here
  parsed = parse_parameters(parameters)
  return lambda runs: run_jobs(runs, sweep.workdir / 'slurm', parsed)


def _outcomes(sweep: Sweep) -> list[Outcome]:
  return [read_outcome(sweep.point_run(point)) for point in sweep.points]


def _remaining(sweep: Sweep) -> list[Run]:
  runs = [sweep.point_run(point) for point in sweep.points]
  return [run for run in runs if not read_outcome(run).is_final]


def print_commands(sweep: Sweep) -> None:
  """Prints the commands that remain, one a line; that of the final run once the others ended."""
  open_folder(sweep)
  runs = _remaining(sweep)
  if not runs and (chosen := choose(sweep.points, _outcomes(sweep))):
    runs = [sweep.final_run(chosen)]
    runs = [run for run in runs if not read_outcome(run).is_final]
  for run in runs:
    print(shlex.join(run.command))


def collect(sweep: Sweep, as_json: bool) -> None:
  """Reports what the folder of the sweep has, and runs nothing."""
  open_folder(sweep)
  outcomes = _outcomes(sweep)
  chosen = choose(sweep.points, outcomes)
  _report(sweep, outcomes, read_outcome(sweep.final_run(chosen)) if chosen else None, as_json)


def _report(sweep: Sweep, outcomes: list[Outcome], final: Outcome | None, as_json: bool) -> None:
  result = summarize(sweep, outcomes, final)
  if note := write_report(sweep, result):
    _log(note)
  text = json.dumps(result, indent=2) if as_json else as_markdown(result).rstrip()
  print(text, flush=True)


def run_sweep(sweep: Sweep, launcher: Launcher, as_json: bool) -> None:
  """Runs what remains of a sweep, and reports.

  Raises:
    UserError: before anything runs, for data or a folder that cannot be used.
    NonFiniteLossError: when all runs diverged.
    RunError: when a run failed; others are finished and reported.
  """
  check_data(sweep)
  open_folder(sweep)
  remaining = _remaining(sweep)
  if done := len(sweep.points) - len(remaining):
    _log(f'{plural(done, "run")} of {len(sweep.points)} finished before')
  if remaining:
    launcher(remaining)
  outcomes, final = _outcomes(sweep), None
  chosen = choose(sweep.points, outcomes)
  if chosen:
    final = _run_final(sweep.final_run(chosen), launcher)
  _report(sweep, outcomes, final, as_json)
  _check_all_finished(sweep.points, outcomes, final)


def _run_final(run: Run, launcher: Launcher) -> Outcome:
  if not read_outcome(run).is_final:
    launcher([run])
  return read_outcome(run)


def _check_all_finished(
  points: Sequence[Point], outcomes: Sequence[Outcome], final: Outcome | None
) -> None:
  failed = [
    (point, outcome)
    for point, outcome in zip(points, outcomes, strict=True)
    if not outcome.is_final
  ]
  if failed:
    point, outcome = failed[0]
    raise RunError(
      f'{plural(len(failed), "run")} of {len(points)} failed, first {point.name} '
      f'({outcome.message.rstrip(".") or outcome.status}); rerun the command to try again.'
    )
  if final is None:
    raise NonFiniteLossError('The runs of all points diverged; try lower learning rates.')
  if final.status != 'finished':
    error = NonFiniteLossError if final.status == 'diverged' else RunError
    message = final.message.rstrip('.') or final.status
    raise error(f'The run on all training data {final.status}: {message}.')
