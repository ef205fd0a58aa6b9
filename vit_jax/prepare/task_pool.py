"""Runs tasks on worker processes that never outlive the process that started them.

Workers are new interpreters that import only what the tasks need. They leave Ctrl-C to the parent,
and notice that it was killed when they next report progress.

`concurrent.futures.ProcessPoolExecutor` does not serve: its workers share one pipe for results, so
it waits forever when one is killed while it sends a result; it cannot stop tasks that are running,
and its workers outlive a parent that was killed.
"""

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

from vit_jax import signals
from vit_jax.errors import RunError, UserError

_REPORT_EVERY = 0.1  # seconds
_EXIT_TIMEOUT = 2  # seconds for a worker to exit by itself

# Called with the number of examples that are done since the last call.
ReportProgress = Callable[[int], object]
Task = Callable[[Any, ReportProgress], Any]


class _ProgressSender:
  """Sends progress to the parent, at most every `_REPORT_EVERY` seconds."""

  def __init__(self, pipe: connection.Connection):
    self._pipe, self._count, self._last_sent = pipe, 0, time.monotonic()

  def __call__(self, count: int) -> None:
    self._count += count
    if time.monotonic() - self._last_sent > _REPORT_EVERY:
      self.flush()

  def flush(self) -> None:
    self._pipe.send(('progress', self._count))
    self._count, self._last_sent = 0, time.monotonic()


def _run_worker(pipe: connection.Connection, function: Task) -> None:
  """The main function of a worker: runs the tasks that arrive until the parent is gone."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
    while True:
      task, progress = pipe.recv(), _ProgressSender(pipe)
      try:
        message = ('result', function(task, progress))
      except (BrokenPipeError, ConnectionResetError):
        return
      except (RunError, OSError) as error:
        message = ('error', error)
      except Exception:  # noqa: BLE001 - it is raised in the parent
        message = ('traceback', traceback.format_exc())
      progress.flush()
      pipe.send(message)


class _Worker:
  """A worker process, its pipe, and the index of its task."""

  def __init__(self, function: Task):
    context = multiprocessing.get_context('spawn')
    self.pipe, worker_end = context.Pipe()
    self.process = context.Process(target=_run_worker, args=(worker_end, function), daemon=True)
    with signals.handled(signal.SIGINT, signal.SIG_IGN):  # inherited: ignored from the first moment
      self.process.start()
    worker_end.close()
    self.task_index = -1

  def start_task(self, index: int, task: Any) -> None:
    self.task_index = index
    with contextlib.suppress(OSError):  # the process has died; `receive` reports it
      self.pipe.send(task)

  def receive(self) -> tuple[str, Any]:
    """Returns (kind, content) of the next message; raises `UserError` if the process has died."""
    try:
      return self.pipe.recv()
    except (EOFError, OSError):  # OSError: in the middle of a message
      self.process.join()
      code = self.process.exitcode
      hint = '; memory may have run out: use fewer --workers' if code == -signal.SIGKILL else ''
      raise UserError(f'A worker process died (exit code {code}{hint}); run again.') from None


def run_tasks(
  function: Task, tasks: Sequence[Any], num_workers: int, progress: ReportProgress
) -> Iterator[tuple[int, Any]]:
  """Runs tasks on worker processes; yields (index of the task, its result) as they finish.

  Args:
    function: (task, progress) -> result, at the top level of a module; tasks are picklable.
    tasks, num_workers: what to run, on how many processes.
    progress: called in this process with the counts that `function` reports.

  Raises:
    RunError, OSError: as a task raised it.
    RuntimeError: for any other exception in a task, with its traceback.
    UserError: when a worker process dies.
  """
  queue = iter(enumerate(tasks))
  workers: list[_Worker] = []
  try:
    workers += (_Worker(function) for _ in range(min(num_workers, len(tasks))))
    for worker in workers:
      worker.start_task(*next(queue))
    busy = list(workers)
    while busy:
      ready = connection.wait([worker.pipe for worker in busy])
      for worker in [worker for worker in busy if worker.pipe in ready]:
        kind, content = worker.receive()
        if kind == 'progress':
          progress(content)
        elif kind == 'result':
          yield worker.task_index, content
          if (next_task := next(queue, None)) is not None:
            worker.start_task(*next_task)
          else:
            busy.remove(worker)
        elif kind == 'error':
          raise content
        else:
          raise RuntimeError(f'in a worker process:\n{content}')
  finally:
    for worker in workers:
      worker.pipe.close()  # the process notices that
    for worker in workers:
      worker.process.join(_EXIT_TIMEOUT)
      worker.process.terminate()
      worker.process.join()
