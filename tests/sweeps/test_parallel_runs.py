"""Several runs at a time: no signal is lost, and each has cores of its own."""

import signal
import sys
import threading
import time
import types

import pytest

from vit_jax.errors import PreemptedError, UserError
from vit_jax.sweeps import parallel_runs
from vit_jax.sweeps.parallel_runs import run_in_parallel
from vit_jax.sweeps.point_runs import Run, run_to_end


class Sleep(Run):
  """A process that sleeps instead of training."""

  @property
  def command(self) -> list[str]:
    return [sys.executable, '-c', 'import time; time.sleep(20)']


def send_sigterm_unnoticed(log) -> None:
  """As if it had arrived just before the main thread began to wait: that is not interrupted."""
  while not log.exists():
    time.sleep(0.02)
  time.sleep(0.2)  # until the main thread waits
  signal.pthread_kill(threading.get_ident(), signal.SIGTERM)


@pytest.mark.parametrize(
  'execute',
  [lambda run: run_in_parallel([run], 1, lambda *_: None), run_to_end],
  ids=['in parallel', 'alone'],
)
def test_sigterm_is_handled_while_waiting(tmp_path, execute):
  run = Sleep('a', (), tmp_path)
  threading.Thread(target=send_sigterm_unnoticed, args=(tmp_path / 'log.txt',)).start()
  start = time.monotonic()
  with pytest.raises(PreemptedError, match='rerun the same command'):
    execute(run)
  assert time.monotonic() - start < 15


def test_after_sigterm_no_run_starts():
  children = parallel_runs._Children()
  children.stop(signal.SIGTERM)
  with pytest.raises(PreemptedError, match='rerun the same command'):
    children.start(['true'])


def test_runs_at_a_time_need_the_cpu(monkeypatch):
  backend = types.SimpleNamespace(stdout='tpu\n')
  monkeypatch.setattr(parallel_runs.subprocess, 'run', lambda *args, **kwargs: backend)
  with pytest.raises(UserError, match='--jobs must be 1 on a tpu'):
    parallel_runs.check_no_accelerator()
