"""What the folder of a run tells: its config, its state, its curves, its plan, its pictures."""

import dataclasses
import time
from typing import Any

from etils import epath

from vit_jax.config import Config
from vit_jax.config.reading import read_json
from vit_jax.errors import UserError, first_line
from vit_jax.files import read_json_object, read_text
from vit_jax.run_metrics import METRICS_FILE, metrics_files, parse_lines, stream_metrics
from vit_jax.run_report import saved_pictures
from vit_jax.run_report.curves import MAX_INTERVALS, Curves
from vit_jax.run_report.saved_pictures import FIRST_BATCH, FOLDER, MISTAKES, Pictures

COMPILED_STEP = 'compiled_step.json'
_SILENT_SECONDS = 1800.0  # without a record, after which a run may have been killed
# How a run ended, by the record of its end.
_ENDS = {
  'finished': ('complete', ''),
  'PreemptedError': ('stopped', 'by SIGTERM; the same command resumes it'),
  'UnsavedError': ('stopped', 'by SIGTERM; the same command resumes it'),
  'KeyboardInterrupt': ('stopped', 'by the keyboard; the same command resumes it'),
  'NonFiniteLossError': ('failed', 'a loss or norm is not finite'),
  'DivergedError': ('failed', 'it has diverged'),
  'DeviceMemoryError': ('failed', 'the devices ran out of memory'),
  'HangError': ('failed', 'nothing finished any more'),
  'LostPeerError': ('failed', 'another process was lost'),
  'MachineError': ('failed', 'a fault of a machine or its storage'),
}


@dataclasses.dataclass(frozen=True)
class State:
  """Where a run stands.

  Attributes:
    name: running, complete, stopped, failed, or unknown.
    reason: more about it; '' if there is no more.
    restarts: the steps from which it was resumed.
  """

  name: str
  reason: str = ''
  restarts: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Run:
  """What is known of a run.

  Attributes:
    name: of its folder.
    path: its folder, or its metrics.jsonl.
    curves: of its metrics.
    state: where it stands.
    config: None if there is none, or none that this version can read; `note` then says why.
    plan: of `python -m vit_jax.plan --json`; {} without one.
    compiled: bytes and FLOPs of the compiled train step; {} in runs that did not record it.
    first_batch, mistakes: pictures; None without any.
  """

  name: str
  path: epath.Path
  curves: Curves
  state: State
  config: Config | None = None
  note: str = ''
  plan: dict[str, Any] = dataclasses.field(default_factory=dict)
  compiled: dict[str, Any] = dataclasses.field(default_factory=dict)
  first_batch: Pictures | None = None
  mistakes: Pictures | None = None

  @property
  def total_steps(self) -> int:
    """Of the whole run; 0 if that is unknown."""
    return self.config.total_steps if self.config else 0


def read_run(path: epath.Path, max_intervals: int = MAX_INTERVALS) -> Run:
  """Reads a run.

  Args:
    path: its folder, or a metrics.jsonl.
    max_intervals: of its curves.

  Raises:
    UserError: if there is none.
    OSError: for metrics that cannot be read.
  """
  is_file = path.suffix == '.jsonl' and not path.is_dir()
  if not (path.exists() if is_file else metrics_files(path) or (path / 'config.json').exists()):
    raise UserError(
      f'{path} has no {METRICS_FILE}; name the folder of a run, or the file of its metrics.'
    )
  curves = Curves(max_intervals)
  for line in stream_metrics(path):
    curves.add(line)
  if is_file and path.name != METRICS_FILE:
    return Run(path.name, path, curves, State('unknown'))
  return read_with_curves(path.parent if is_file else path, curves)


def read_with_curves(workdir: epath.Path, curves: Curves) -> Run:
  """Reads the small files of a run, whose curves are known."""
  config, note, folder = None, '', workdir / FOLDER
  if (workdir / 'config.json').exists():
    try:
      config = read_json(workdir / 'config.json')
    except UserError as error:  # of another version
      note = str(error)
  return Run(
    workdir.name,
    workdir,
    curves,
    _read_state(workdir, curves, config.total_steps if config else 0),
    config,
    note,
    _read_object(workdir / 'plan.json'),
    _read_object(folder / COMPILED_STEP),
    saved_pictures.read_pictures(folder / FIRST_BATCH),
    saved_pictures.read_pictures(folder / MISTAKES),
  )


def _read_object(path: epath.Path) -> dict[str, Any]:
  try:
    return read_json_object(path)
  except (OSError, ValueError):
    return {}


def _read_state(workdir: epath.Path, curves: Curves, total_steps: int) -> State:
  """From restarts.jsonl, which has a line for each start, and for each end but a kill."""
  path = workdir / 'restarts.jsonl'
  try:
    lines = parse_lines(read_text(path)) if path.exists() else []
  except (OSError, ValueError) as error:
    return State('unknown', f'{path.name} cannot be read ({first_line(error)})')
  if not lines:  # of an older version
    is_complete = 0 < total_steps <= curves.step
    return State('complete' if is_complete else 'unknown')
  numbers = [x for line in lines if type(x := line.get('train/restarts')) is int]
  last = max(numbers, default=0)
  restarts = tuple(
    line['step']
    for line in lines
    if 'hosts' in line and line.get('train/restarts') != 0 and type(line.get('step')) is int
  )
  of_last = [line for line in lines if line.get('train/restarts') == last]
  end = next((str(line['end']) for line in of_last if 'end' in line), None)
  if end is not None:
    return State(*_ENDS.get(end, ('failed', f'it ended with {end}')), restarts)
  times = [x for line in of_last if isinstance(x := line.get('time'), (int, float))]
  silence = time.time() - max([*times, curves.time or 0])
  if silence < _SILENT_SECONDS:
    return State('running', '', restarts)
  hours = f'{silence / 3600:,.1f} h'
  return State('unknown', f'no end is recorded, and nothing for {hours}: killed, or hung', restarts)
