"""The runs of a sweep: real processes of vit_jax.main, and what became of them."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any, BinaryIO, Literal

from etils import epath

from vit_jax import signals
from vit_jax.errors import NonFiniteLossError, PreemptedError, UserError
from vit_jax.files import parse_json, read_json_object, read_text, write_text
from vit_jax.prepare.file_lock import try_lock
from vit_jax.text import printable, shortened

Status = Literal['finished', 'diverged', 'failed', 'unfinished']
_POLL_SECONDS = 0.5


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
  """What became of a run; the metrics are those of its last evaluation, once it is finished."""

  status: Status
  metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
  message: str = ''

  @property
  def is_final(self) -> bool:
    """Whether running it again would change nothing."""
    return self.status in ('finished', 'diverged')


def _last_metrics(run: Run) -> dict[str, Any] | None:
  """The metrics of the test data after the last step: {'accuracy': 0.9, …}; None before."""
  folder = epath.Path(run.folder)
  if not (folder / 'model').exists():  # written last
    return None
  try:
    total_steps = read_json_object(folder / 'config.json')['total_steps']
    lines = [parse_json(line) for line in read_text(folder / 'metrics.jsonl').splitlines()]
    last = next(line for line in reversed(lines) if 'test/accuracy' in line)
    if last['step'] != total_steps:
      return None
    return {key.removeprefix('test/'): x for key, x in last.items() if key.startswith('test/')}
  except (OSError, ValueError, KeyError, TypeError, StopIteration):
    return None


def read_outcome(run: Run) -> Outcome:
  """What the folder of a run tells."""
  if metrics := _last_metrics(run):
    return Outcome('finished', metrics)
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


def _execute(run: Run, log: BinaryIO, lock: BinaryIO) -> int:
  """Runs the command to its end; Ctrl-C and SIGTERM are passed on to it. Returns its exit code."""
  child = None
  try:
    with signals.delayed(signal.SIGINT):
      child = subprocess.Popen(
        run.command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(lock.fileno(),) if os.name == 'posix' else (),
        start_new_session=True,  # so that the terminal sends Ctrl-C to the sweep only
      )
    with signals.handled(signal.SIGTERM, lambda *_: child.terminate()):
      return child.wait()
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


def run_to_end(run: Run) -> Outcome:
  """Runs or resumes a run, in a process of its own, unless that would change nothing.

  Its folder gets log.txt, all that it prints, and exit.json, why it failed. If another process
  runs it already, waits for that one first.

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
      start = os.fstat(log.fileno()).st_size
      code = _execute(run, log, lock)
      if code in (signals.INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
      if code in (PreemptedError.exit_code, -signal.SIGTERM):
        raise PreemptedError(f'{run.name} received SIGTERM; rerun the same command to resume.')
      if code:
        killed = f'killed by signal {-code}' if code < 0 else ''
        message = killed or _last_line(path, start).removeprefix('error: ')
        write_text(record, json.dumps({'exit_code': code, 'message': message}) + '\n')
  except OSError as error:
    reason = error.strerror or error
    raise UserError(f'{error.filename or run.folder} cannot be written: {reason}.') from None
  return read_outcome(run)
