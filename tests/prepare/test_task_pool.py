"""The worker processes of prepare_data: results, progress, errors, and workers that die."""

import os
import signal
import time

import pytest

from vit_jax.errors import BadExampleError, UserError
from vit_jax.prepare.task_pool import run_tasks


def square(task, progress):
  progress(task)
  return task**2


def raise_task(task, progress):
  raise task


def process_id(task, progress):
  return os.getpid()


def die(task, progress):
  os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_middle_of_a_message(task, progress):
  os.write(progress._pipe.fileno(), (1000).to_bytes(4) + b'not a thousand bytes')
  die(task, progress)


def report_forever(task, progress):
  while True:
    progress(1)
    time.sleep(0.01)


def test_results_and_progress_arrive():
  progress = []
  assert dict(run_tasks(square, range(5), 2, progress.append)) == {i: i**2 for i in range(5)}
  assert sum(progress) == sum(range(5))
  assert list(run_tasks(square, [], 2, progress.append)) == []


def test_progress_arrives_while_a_task_runs():
  class Stop(Exception):
    pass

  def stop(count):
    if count:
      raise Stop

  started = time.monotonic()
  with pytest.raises(Stop):
    list(run_tasks(report_forever, [0, 1], 2, stop))
  assert time.monotonic() - started < 60  # the workers have ended, too


@pytest.mark.parametrize(
  'error', [BadExampleError('x.jpg is empty.'), OSError(28, 'No space left')]
)
def test_expected_errors_are_raised_as_they_are(error):
  with pytest.raises(type(error), match='empty|No space left'):
    list(run_tasks(raise_task, [error], 1, print))


def test_bugs_are_raised_with_their_traceback():
  with pytest.raises(RuntimeError, match='(?s)in a worker process:.*raise_task.*KeyError: 3'):
    list(run_tasks(raise_task, [KeyError(3)], 1, print))


@pytest.mark.parametrize('function', [die, die_in_the_middle_of_a_message])
def test_a_killed_worker_is_one_sentence(function):
  with pytest.raises(UserError, match=r'died \(exit code -9; memory may .* fewer --workers\); run'):
    list(run_tasks(function, [0, 1], 2, print))


def test_a_worker_that_is_killed_between_tasks_is_one_sentence():
  results = run_tasks(process_id, range(3), 1, print)
  _, pid = next(results)
  os.kill(pid, signal.SIGKILL)
  os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
  with pytest.raises(UserError, match=r'died \(exit code -9'):
    next(results)
