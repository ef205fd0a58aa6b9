"""Where the wall time of a run went, over all its starts: shares, step times, the largest loss."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.text import plural

# What each phase is called in a report, and what makes it shorter.
_PHASES = {
  'step': ('training steps', ''),
  'data_wait': (
    'waiting for data',
    'read with more processes (--config.data.workers), or prepare the data '
    '(python -m vit_jax.prepare_data)',
  ),
  'evaluation': ('evaluation', 'evaluate less often (a larger --config.eval_every)'),
  'save': ('saving', 'save less often (a larger --config.checkpoint.every), or to faster storage'),
  'start': (
    'imports and opening the data',
    'keep the environment and the data on fast storage, or restart less often',
  ),
  'initialization': (
    'initialization or restore',
    'restart less often, or keep the checkpoints on faster storage',
  ),
  'compile': (
    'compilation',
    'keep compiled programs for the next start (JAX_COMPILATION_CACHE_DIR on shared storage)',
  ),
  'profile': ('writing profiles', 'profile fewer steps'),
  'replayed': (
    'steps that were lost and done again',
    'save more often (a smaller --config.checkpoint.every)',
  ),
  'lost': (
    'lost: no process, or nothing known of it',
    'restart at once (launch/retry.sh), and log more often (a smaller --config.log_every)',
  ),
}


@dataclasses.dataclass(frozen=True)
class Record:
  """A stretch of a run's time: from the record before it, or from a start of the run.

  Attributes:
    start: the number of restarts before it.
    time: its end, in seconds since the epoch.
    step: the last step done by then.
    seconds: of each phase of `PhaseTimer`.
    data_wait: the share of its steps' time that the slowest process waited for data.
    slowest: that process, and its host; '' if it has no steps.
    is_finished: whether the run was finished by then.
  """

  start: int
  time: float
  step: int
  seconds: Mapping[str, float]
  data_wait: float = 0.0
  slowest: str = ''
  is_finished: bool = False


@dataclasses.dataclass(frozen=True)
class WallTime:
  """The wall time of a run.

  Attributes:
    seconds: of each phase of `PhaseTimer`, 'replayed' and 'lost'; they add up to the wall time.
    restarts: starts of the run but the first.
    step: the last one.
    step_seconds: 'p50', 'p99' and 'slowest' of the mean step times between two logs, with
      waiting for data; empty without a log.
    data_waits: the share of the steps' time that each process waited for data, as the slowest one
      between two logs.
  """

  seconds: Mapping[str, float]
  restarts: int
  step: int
  step_seconds: Mapping[str, float]
  data_waits: Mapping[str, float]

  @property
  def total(self) -> float:
    """Seconds from the first start to the last record."""
    return sum(self.seconds.values())

  @property
  def goodput(self) -> float:
    """The share of the time that went to training steps that count."""
    return self.seconds['step'] / max(self.total, 1e-9)

  @property
  def slowest_host(self) -> str | None:
    """The process that waited longest for data; None without a log."""
    return max(self.data_waits, key=self.data_waits.__getitem__, default=None)

  @property
  def advice(self) -> str:
    """A sentence about the largest loss, and what makes it smaller."""
    losses = {name: self.seconds[name] for name in _PHASES if name != 'step'}
    largest = max(losses, key=losses.__getitem__)
    name, remedy = _PHASES[largest]
    return f'the largest loss is {name} ({losses[largest] / max(self.total, 1e-9):.1%}): {remedy}.'

  def lines(self) -> list[str]:
    """The report for a terminal."""
    restarts = plural(self.restarts, 'restart')
    size, unit = (1, 's') if self.total < 3600 else (3600, 'h')
    lines = [f'{self.total / size:,.1f} {unit}, {restarts}, step {self.step:,}', '']
    for phase, (name, _) in _PHASES.items():
      seconds = self.seconds[phase]
      lines.append(f'{name:42}{seconds / max(self.total, 1e-9):7.1%}{seconds / size:12,.1f} {unit}')
    lines.append('')
    if times := self.step_seconds:
      lines.append(
        f'step time: p50 {times["p50"]:.4g} s, p99 {times["p99"]:.4g} s, slowest '
        f'{times["slowest"]:.4g} s (means of the steps between two logs)'
      )
    if (host := self.slowest_host) is not None:
      lines.append(f'waits longest for data: {host}, {self.data_waits[host]:.1%} of its steps')
    return [*lines, self.advice]

  def to_json(self) -> dict[str, Any]:
    """The same as one JSON object."""
    seconds = {name: self.seconds[name] for name in _PHASES}
    return {
      'seconds': self.total,
      'goodput': self.goodput,
      'restarts': self.restarts,
      'step': self.step,
      'phase_seconds': seconds,
      'phase_shares': {name: value / max(self.total, 1e-9) for name, value in seconds.items()},
      'step_seconds': dict(self.step_seconds),
      'data_wait': dict(self.data_waits),
      'slowest_host': self.slowest_host,
      'advice': self.advice,
    }


@dataclasses.dataclass(frozen=True)
class _Steps:
  """Steps (first, last] in a row, and their seconds, which are the same for each."""

  first: int
  last: int
  seconds: float

  def until(self, step: int) -> '_Steps':
    """Those of them up to a step."""
    last = min(max(step, self.first), self.last)
    share = (last - self.first) / (self.last - self.first)
    return _Steps(self.first, last, share * self.seconds)


def account(records: Sequence[Record]) -> WallTime:
  """Adds up the records of a run, in their order.

  A start repeats all steps past its first record's; their first time counts as 'replayed'. The
  time before it, since the last record, counts as 'lost', unless the run was finished.
  """
  seconds = dict.fromkeys(_PHASES, 0.0)
  kept: list[_Steps] = []
  times, counts, weights = [], [], []  # of a step; how many steps; their seconds
  waits: dict[str, float] = {}  # seconds
  before: Record | None = None
  for record in records:
    for phase, value in record.seconds.items():
      seconds[phase] = seconds.get(phase, 0.0) + value
    if before is not None and record.start != before.start:
      if not before.is_finished:
        began = record.time - sum(record.seconds.values())
        seconds['lost'] += max(began - before.time, 0)
      repeated = sum(each.seconds - each.until(record.step).seconds for each in kept)
      kept = [each.until(record.step) for each in kept if each.first < record.step]
      seconds['replayed'] += repeated
      seconds['step'] -= repeated
    elif before is not None and record.step > before.step:
      stepping = record.seconds.get('step', 0.0)
      kept.append(_Steps(before.step, record.step, stepping))
      counts.append(record.step - before.step)
      weights.append(stepping + record.seconds.get('data_wait', 0.0))
      times.append(weights[-1] / counts[-1])
      if record.slowest:
        wait = record.data_wait * weights[-1]
        waits[record.slowest] = waits.get(record.slowest, 0.0) + wait
    before = record
  step_seconds = {}
  if times:
    p50, p99 = np.percentile(times, (50, 99), weights=counts, method='inverted_cdf')
    step_seconds = {'p50': float(p50), 'p99': float(p99), 'slowest': max(times)}
  return WallTime(
    seconds,
    len({record.start for record in records}) - 1,
    before.step if before else 0,
    step_seconds,
    {process: wait / max(sum(weights), 1e-9) for process, wait in waits.items()},
  )
