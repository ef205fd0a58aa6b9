"""The runs of a sweep or an experiment: processes of vit_jax.main, and what became of them."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal

from etils import epath

from vit_jax import signals
from vit_jax.errors import NonFiniteLossError, PreemptedError, UserError
from vit_jax.files import read_json_object, write_text
from vit_jax.prepare.file_lock import try_lock
from vit_jax.run_metrics import read_metrics
from vit_jax.text import printable, shortened

Status = Literal['finished', 'diverged', 'failed', 'unfinished']
StartProcess = Callable[..., subprocess.Popen]
_POLL_SECONDS = 0.5
_ELAPSED = 'elapsed.json'


@dataclasses.dataclass(frozen=True)
class Run:
  """A run of vit_jax.main: `flags` are all but its workdir, which is `folder` (local)."""

  name: str
  flags: tuple[str, ...]
  folder: pathlib.Path

  @property
  def command(self) -> list[str]:
    return [sys.executable, '-m', 'vit_jax.main', *self.flags, f'--workdir={self.folder}']


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a run.

  Attributes:
    status: 'unfinished' if it never ended, or was stopped.
    metrics: of the test data after the last step, once it is finished: {'accuracy': 0.9, …}.
    message: why it failed or diverged.
    evals: the metrics of `config.evals` after the last step: {'fewshot/accuracy_10shot': 0.5, …}.
  """

  status: Status
  metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
  message: str = ''
  evals: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def is_final(self) -> bool:
    """Whether running it again would change nothing."""
    return self.status in ('finished', 'diverged')


def _last_metrics(run: Run) -> dict[str, Any] | None:
  """All metrics of the evaluation after the last step: {'test/accuracy': 0.9, …}; None before."""
  folder = epath.Path(run.folder)
  if not (folder / 'model').exists():  # written last
    return None
  try:
    total_steps = read_json_object(folder / 'config.json')['total_steps']
    last = next(line for line in reversed(read_metrics(folder)) if 'test/accuracy' in line)
    return last if last['step'] == total_steps else None
  except (OSError, ValueError, KeyError, TypeError, StopIteration):
    return None


def read_outcome(run: Run) -> Outcome:
  """What the folder of a run tells."""
  if last := _last_metrics(run):
    metrics = {key.removeprefix('test/'): x for key, x in last.items() if key.startswith('test/')}
    others = {key: x for key, x in last.items() if '/' in key and not key.startswith('test/')}
    return Outcome('finished', metrics, evals=others)
  try:
    record = read_json_object(epath.Path(run.folder) / 'exit.json')
    code, message = record['exit_code'], printable(record['message'])
  except (OSError, ValueError, KeyError, TypeError):
    return Outcome('unfinished')
  return Outcome('diverged' if code == NonFiniteLossError.exit_code else 'failed', {}, message)


def _wait_for_lock(file: BinaryIO, run: Run) -> None:
  """The lock of a run is held by its process, too, which may outlive the sweep that started it."""
  if try_lock(file) is not False:
    return
  print(f'{run.name}: waiting for the process that runs it already …', file=sys.stderr, flush=True)
  while try_lock(file) is False:
    signals.check_interrupted()
    time.sleep(_POLL_SECONDS)


def _wait_for(child: subprocess.Popen) -> int:
  """Returns its exit code; handles a signal that arrives as a wait begins at the next one."""
  while True:
    with contextlib.suppress(subprocess.TimeoutExpired):
      return child.wait(_POLL_SECONDS)


def _execute(run: Run, log: BinaryIO, lock: BinaryIO, start: StartProcess) -> int:
  """Runs the command to its end; Ctrl-C and SIGTERM are passed on to it. Returns its exit code."""
  child = None
  try:
    with signals.delayed(signal.SIGINT):
      child = start(
        run.command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(lock.fileno(),) if os.name == 'posix' else (),
        start_new_session=True,  # so that the terminal sends Ctrl-C to the sweep only
      )
    with signals.handled(signal.SIGTERM, lambda *_: child.terminate()):
      return _wait_for(child)
  except KeyboardInterrupt:
    if child:
      child.send_signal(signal.SIGINT)
      child.wait()
    raise


def _last_line(log: pathlib.Path, start: int) -> str:
  with log.open('rb') as file:
    file.seek(start)
    text = file.read().decode(errors='replace').strip()
  return printable(shortened(text.splitlines()[-1], 500)) if text else ''


def seconds_of(run: Run) -> float | None:
  """How long a run took, all tries together; None if that is unknown."""
  try:
    return float(read_json_object(epath.Path(run.folder) / _ELAPSED)['seconds'])
  except (OSError, ValueError, KeyError, TypeError):
    return None


@contextlib.contextmanager
def _timed(run: Run) -> Iterator[None]:
  start = time.monotonic()
  try:
    yield
  finally:
    seconds = (seconds_of(run) or 0) + time.monotonic() - start
    write_text(epath.Path(run.folder) / _ELAPSED, json.dumps({'seconds': round(seconds, 1)}) + '\n')


def run_to_end(run: Run, start: StartProcess = subprocess.Popen) -> Outcome:
  """Runs or resumes a run, in a process of its own, unless that would change nothing.

  Its folder gets log.txt, all that it prints, elapsed.json, how long it took, and exit.json, why it
  failed. If another process runs it already, waits for that one first.

  Args:
    run: what to run.
    start: starts its process, as `subprocess.Popen` does.

  Raises:
    KeyboardInterrupt: after Ctrl-C.
    PreemptedError: after SIGTERM.
    UserError: when the folder cannot be written.
  """
  path, record = run.folder / 'log.txt', run.folder / 'exit.json'
  try:
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / '.lock').open('ab') as lock, path.open('ab') as log:
      _wait_for_lock(lock, run)
      if (outcome := read_outcome(run)).is_final:
        return outcome
      record.unlink(missing_ok=True)
      end_of_log = os.fstat(log.fileno()).st_size
      with _timed(run):
        code = _execute(run, log, lock, start)
      if code in (signals.INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
      if code in (PreemptedError.exit_code, -signal.SIGTERM):
        raise PreemptedError(f'{run.name} received SIGTERM; rerun the same command to resume.')
      if code:
        killed = f'killed by signal {-code}' if code < 0 else ''
        message = killed or _last_line(path, end_of_log).removeprefix('error: ')
        write_text(record, json.dumps({'exit_code': code, 'message': message}) + '\n')
  except OSError as error:
    reason = error.strerror or error
    raise UserError(f'{error.filename or run.folder} cannot be written: {reason}.') from None
  return read_outcome(run)
