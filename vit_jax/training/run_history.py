"""The record of a run's time, which outlives its restarts: metrics.jsonl and restarts.jsonl.

Each log is a record in metrics.jsonl. A run that resumes drops the lines past its step from there,
so they move to restarts.jsonl, which also has a record of each start and of each end but a kill.
"""

import contextlib
import json
import platform
import time
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from vit_jax.distributed.processes import broadcast_from_process_0, gather_from_all
from vit_jax.errors import NoProgressError
from vit_jax.files import read_text, write_text
from vit_jax.run_metrics import metrics_files, parse_lines
from vit_jax.text import printable
from vit_jax.training.phases import PhaseTimer, between
from vit_jax.training.wall_time import Record, account

_RESTARTS = 'train/restarts'
_WAIT, _SLOWEST = 'train/data_wait/max', 'train/data_wait/slowest_process'
_FAULTS = ('killed', 'LostPeerError', 'MachineError', 'HangError')  # ends that are restarted
_Line = dict[str, Any]


def read_records(workdir: epath.Path) -> list[Record]:
  """The records of a run in their order; lines of older versions, without a time, are skipped.

  Raises:
    OSError: for files that cannot be read.
  """
  return _to_records(_read_lines(workdir))


def _read_lines(workdir: epath.Path) -> list[_Line]:
  """The lines that are records, of both files, each once and in order."""
  files = metrics_files(workdir)
  logs = _only_time([line for file in files for line in parse_lines(read_text(file))])
  return _in_order([*_read_history(workdir), *logs])


def _read_history(workdir: epath.Path) -> list[_Line]:
  path = workdir / 'restarts.jsonl'
  return _only_time(parse_lines(read_text(path))) if path.exists() else []


def _only_time(lines: Sequence[_Line]) -> list[_Line]:
  """The lines that are records, without other metrics."""
  names = ('step', 'time', _RESTARTS, 'hosts', 'end', _WAIT, _SLOWEST)
  return [
    {key: x for key, x in line.items() if key in names or key.startswith('time/')}
    for line in lines
    if all(isinstance(line.get(name), (int, float)) for name in names[:3])
  ]


def _in_order(lines: Sequence[_Line]) -> list[_Line]:
  """By start, because the clocks of two starts may differ, and time; repeated lines once."""
  unique = {(line[_RESTARTS], line['time']): line for line in lines}
  return [unique[key] for key in sorted(unique)]


def _to_records(lines: Sequence[_Line]) -> list[Record]:
  records, hosts = [], []
  for line in lines:
    if 'hosts' in line:  # the first of a start
      hosts = line['hosts']
    records.append(
      Record(
        line[_RESTARTS],
        line['time'],
        line['step'],
        _numbers(line, 'time/'),
        _numbers(line, _WAIT).get('', 0.0),
        _name(line.get(_SLOWEST), hosts),
        line.get('end') == 'finished',
      )
    )
  return records


def _name(process: Any, hosts: Sequence[str]) -> str:
  if process not in range(len(hosts)):
    return '' if process is None else f'process {process}'
  return f'process {process} on {printable(str(hosts[process]))}'


def _numbers(line: _Line, prefix: str) -> dict[str, float]:
  return {
    key.removeprefix(prefix): x
    for key, x in line.items()
    if key.startswith(prefix) and isinstance(x, (int, float))
  }


def _count_futile_starts(lines: Sequence[_Line], first_step: int) -> int:
  """How many starts in a row, up to the last, began at this step and ended by no one's wish."""
  ends = {line[_RESTARTS]: line['end'] for line in lines if 'end' in line}
  count = 0
  for line in reversed([line for line in lines if 'hosts' in line]):
    if line['step'] != first_step:
      break
    count += ends.get(line[_RESTARTS], 'killed') in _FAULTS
  return count


class RunHistory:
  """Records where the time of a run goes, on process 0.

  As a context manager it records how the run ends.

  Attributes:
    start: the number of this start of the run, from 0.
  """

  def __init__(
    self, workdir: epath.Path, first_step: int, timer: PhaseTimer, max_restarts: int = 0
  ):
    """Records a start; all processes call it, before metrics.jsonl is opened to be continued.

    Args:
      workdir: of the run.
      first_step: of the checkpoint that it resumes from, or 0.
      timer: of this process.
      max_restarts: how many in a row may resume from the same step; 0: any number.

    Raises:
      NoProgressError: when there were more.
    """
    hosts = gather_from_all(platform.node())
    self._workdir, self._first_step, self._timer = workdir, first_step, timer
    self._enabled, self._last_step = jax.process_index() == 0, first_step
    self._recorded: dict[str, float] = {}  # the seconds in records so far
    earlier = _read_lines(workdir) if self._enabled else []
    starts = max((line[_RESTARTS] for line in earlier), default=-1) + 1
    self.start = broadcast_from_process_0(starts)
    num_futile = broadcast_from_process_0(_count_futile_starts(earlier, first_step))
    if 0 < max_restarts < num_futile:
      raise NoProgressError(
        f'The last {num_futile} starts of this run have all ended before a checkpoint after step '
        f'{first_step}; find out why (docs/pods.md), then rerun with a larger config.max_restarts, '
        f'now {max_restarts}, or 0: any number.'
      )
    line = self._next_line(first_step) | {'hosts': hosts}
    self._before = account(_to_records([*earlier, line]))
    self._seconds_before = self._recorded
    if self._enabled:
      self._append([*(each for each in earlier if each['step'] > first_step), line])

  def _next_line(self, step: int) -> _Line:
    seconds, now = self._timer.seconds(), time.time()
    spent = between(self._recorded, seconds)
    phases = {f'time/{name}': round(x, 6) for name, x in spent.items() if x}
    self._recorded, self._last_step = seconds, step
    return {'step': step, 'time': now, **phases, _RESTARTS: self.start}

  def _append(self, lines: list[_Line]) -> None:
    """Adds lines, each once: a start that was killed may have moved them before."""
    lines = _in_order([*_read_history(self._workdir), *lines])
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    write_text(self._workdir / 'restarts.jsonl', text)

  def __enter__(self) -> 'RunHistory':
    return self

  def __exit__(self, kind: type[BaseException] | None, *unused: Any) -> None:
    if not self._enabled:
      return
    step = max(self._first_step + self._timer.num_batches, self._last_step)
    end = 'finished' if kind is None else kind.__name__
    with contextlib.suppress(OSError):  # the error that ends the run is the one to report
      self._append([self._next_line(step) | {'end': end}])

  def log(self, step: int) -> dict[str, float]:
    """The time since the last record, for a line of metrics.jsonl.

    Returns:
      time, in seconds since the epoch; time/<phase>, seconds since the last record of this start;
      train/restarts of the run so far; train/goodput, the share of its wall time since the first
      start that went to training steps that count.
    """
    line = self._next_line(step)
    new = between(self._seconds_before, self._recorded)
    steps = self._before.seconds['step'] + new.get('step', 0.0)
    total = self._before.total + sum(new.values())
    del line['step']
    return {**line, 'train/goodput': steps / max(total, 1e-9)}
