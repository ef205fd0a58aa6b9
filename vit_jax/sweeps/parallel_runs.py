"""Several runs at a time on the CPU, each on its share of the cores."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

from vit_jax import signals
from vit_jax.errors import PreemptedError, UserError
from vit_jax.hardware import num_cores
from vit_jax.sweeps.point_runs import Outcome, Run, run_to_end

_POLL_SECONDS = 0.5
_BACKEND = 'import jax; print(jax.default_backend())'


class _Children:
  """The running processes, to which signals are passed on."""

  def __init__(self):
    self._lock = threading.RLock()
    self._running: list[subprocess.Popen] = []
    self._stopped_by = 0  # number of a signal

  def start(self, *args: Any, **kwargs: Any) -> subprocess.Popen:
    """As `subprocess.Popen`; raises `KeyboardInterrupt` or `PreemptedError` once they stop."""
    with self._lock:
      if self._stopped_by == signal.SIGTERM:
        raise PreemptedError('received SIGTERM; rerun the same command to resume.')
      if self._stopped_by:
        raise KeyboardInterrupt
      child = subprocess.Popen(*args, **kwargs)
      self._running = [each for each in self._running if each.poll() is None] + [child]
      return child

  def stop(self, number: int) -> None:
    """Sends a signal to all; none is started after it."""
    with self._lock:
      self._stopped_by = number
      for child in self._running:
        child.send_signal(number)


def share_cores(jobs: int) -> list[set[int]]:
  """Divides the cores that this process may use; [] where a process cannot be kept to some.

  Raises:
    UserError: for more jobs than cores.
  """
  if not 1 <= jobs <= max(num_cores(), 1):
    raise UserError(f'--jobs is {jobs}; this machine has cores for 1 to {num_cores()}.')
  if not hasattr(os, 'sched_setaffinity'):
    return []
  cores = sorted(os.sched_getaffinity(0))
  return [
    set(cores[job * len(cores) // jobs : (job + 1) * len(cores) // jobs]) for job in range(jobs)
  ]


def check_no_accelerator() -> None:
  """Raises `UserError` if the runs would share an accelerator; this process does not take it."""
  command = [sys.executable, '-c', _BACKEND]
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  if (backend := result.stdout.strip()) not in ('', 'cpu'):
    raise UserError(
      f'--jobs must be 1 on a {backend}, which takes one run at a time; JAX_PLATFORMS=cpu leaves '
      'it out.'
    )


def run_in_parallel(runs: Sequence[Run], jobs: int, on_end: Callable[[Run, Outcome], None]) -> None:
  """Runs or resumes all, `jobs` at a time, each on its share of the cores.

  Args:
    runs: independent of each other, in the order in which they start.
    jobs: how many at a time.
    on_end: called with each run that ended, one call at a time, in another thread.

  Raises:
    KeyboardInterrupt: after Ctrl-C, which is passed on.
    PreemptedError: after SIGTERM, which is passed on.
    UserError: as `run_to_end` and `share_cores`.
  """
  shares, children, reporting = queue.SimpleQueue(), _Children(), threading.Lock()
  for share in share_cores(jobs) or [set()] * jobs:
    shares.put(share)

  def take_share() -> None:
    if share := shares.get():
      os.sched_setaffinity(0, share)  # of this thread, and of the processes that it starts

  def run_one(run: Run) -> None:
    outcome = run_to_end(run, children.start)
    with reporting:
      on_end(run, outcome)

  with contextlib.ExitStack() as stack:
    pool = stack.enter_context(futures.ThreadPoolExecutor(jobs, initializer=take_share))
    stack.enter_context(signals.handled(signal.SIGTERM, lambda *_: children.stop(signal.SIGTERM)))
    pending = {pool.submit(run_one, run) for run in runs}
    try:
      while pending:
        # Wakes up often: Python handles a signal that arrives as a wait begins only at its end.
        ended, pending = futures.wait(pending, _POLL_SECONDS, futures.FIRST_COMPLETED)
        for each in ended:
          each.result()
    except BaseException as error:
      if isinstance(error, KeyboardInterrupt):
        children.stop(signal.SIGINT)
      for each in pending:
        each.cancel()
      raise
