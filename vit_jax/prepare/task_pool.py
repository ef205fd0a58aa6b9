"""Tasks on worker processes that end with the process that started them, however it ends.

Workers are new interpreters that import what their function needs and nothing else. Ctrl-C is
left to the parent; a parent that was killed is noticed at the next word to it.
"""

import contextlib
import multiprocessing
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

from vit_jax.errors import RunError, UserError

_TELL_EVERY = 0.1  # seconds
_PATIENCE = 2  # seconds for a worker to end by itself
Tell = Callable[[int], None]


class _Teller:
  """Sends counts of what was done to the parent, not more often than needed."""

  def __init__(self, pipe: connection.Connection):
    self._pipe, self._count, self._last = pipe, 0, time.monotonic()

  def __call__(self, count: int) -> None:
    self._count += count
    if time.monotonic() - self._last > _TELL_EVERY:
      self.flush()

  def flush(self) -> None:
    self._pipe.send(('told', self._count))
    self._count, self._last = 0, time.monotonic()


def _serve(pipe: connection.Connection, function: Callable[[Any, Tell], Any]) -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
    while True:
      task, tell = pipe.recv(), _Teller(pipe)
      try:
        answer = ('done', function(task, tell))
      except (BrokenPipeError, ConnectionResetError):
        return
      except (RunError, OSError) as error:
        answer = ('failed', error)
      except Exception:  # noqa: BLE001 - it is raised in the parent
        answer = ('bug', traceback.format_exc())
      tell.flush()
      pipe.send(answer)


@contextlib.contextmanager
def _keyboard_ignored() -> Iterator[None]:
  """Processes that start meanwhile ignore Ctrl-C from their first moment on."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)


class _Worker:
  """A process and what it is doing."""

  def __init__(self, function: Callable[[Any, Tell], Any]):
    context = multiprocessing.get_context('spawn')
    self.pipe, theirs = context.Pipe()
    self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    with _keyboard_ignored():
      self.process.start()
    theirs.close()
    self.task = -1

  def receive(self) -> tuple[str, Any]:
    try:
      return self.pipe.recv()
    except (EOFError, ConnectionResetError):
      self.process.join()
      code = self.process.exitcode
      hint = '; memory may have run out: try fewer --workers' if code == -signal.SIGKILL else ''
      raise UserError(f'A worker process has ended (exit code {code}{hint}); run again.') from None

  def end(self) -> None:
    """Waits for the process, whose pipe is closed: it ends at its next word to the parent."""
    self.process.join(_PATIENCE)
    self.process.terminate()
    self.process.join()


def run_tasks(
  function: Callable[[Any, Tell], Any], tasks: Sequence[Any], workers: int, tell: Tell
) -> Iterator[tuple[int, Any]]:
  """Does tasks on processes; yields (number of the task, its result) as they are done.

  Args:
    function: (task, tell) -> result, at the top level of a module.
    tasks: that can be pickled.
    workers: processes.
    tell: is given the counts that the function tells.

  Raises:
    RunError, OSError: that a task has raised.
    RuntimeError: for any other error in a task, with its traceback.
  """
  waiting = list(enumerate(tasks))[::-1]
  team: list[_Worker] = []
  try:
    team += (_Worker(function) for _ in range(min(workers, len(waiting))))
    busy = {worker.pipe: worker for worker in team}
    for worker in team:
      worker.task, task = waiting.pop()
      worker.pipe.send(task)
    while busy:
      for pipe in connection.wait(list(busy)):
        worker = busy[pipe]
        kind, content = worker.receive()
        if kind == 'told':
          tell(content)
        elif kind == 'done':
          yield worker.task, content
          if waiting:
            worker.task, task = waiting.pop()
            worker.pipe.send(task)
          else:
            del busy[pipe]
        elif kind == 'failed':
          raise content
        else:
          raise RuntimeError(f'in a worker process:\n{content}')
  finally:
    for worker in team:
      worker.pipe.close()
    for worker in team:
      worker.end()
