"""Signal handlers of a block, with real signals; Ctrl-C in real processes."""

import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.helpers import SANDBOX, TINY, start
from vit_jax import signals


def test_a_signal_is_handled_inside_the_block_only():
  previous, received = signal.getsignal(signal.SIGUSR1), []
  with signals.handled(signal.SIGUSR1, lambda number, frame: received.append(number)):
    signal.raise_signal(signal.SIGUSR1)
  assert received == [signal.SIGUSR1]
  assert signal.getsignal(signal.SIGUSR1) == previous


def test_the_previous_handler_is_restored_after_an_error():
  previous = signal.getsignal(signal.SIGUSR1)
  with pytest.raises(ValueError, match='inside'):
    with signals.handled(signal.SIGUSR1, signal.SIG_IGN):
      raise ValueError('inside')
  assert signal.getsignal(signal.SIGUSR1) == previous


def test_a_delayed_signal_is_handled_once_after_the_block():
  finished = False
  with signals.handled(signal.SIGINT, signal.default_int_handler):
    with pytest.raises(KeyboardInterrupt):
      with signals.delayed(signal.SIGINT):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        finished = True
    assert finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_delayed_signal_that_is_ignored_stays_ignored():
  with signals.handled(signal.SIGINT, signal.SIG_IGN):
    with signals.delayed(signal.SIGINT):
      signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_other_threads_change_no_handler():
  handlers = []

  def run():
    with signals.handled(signal.SIGINT, signal.SIG_IGN), signals.delayed(signal.SIGINT):
      handlers.append(signal.getsignal(signal.SIGINT))

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert handlers == [signal.getsignal(signal.SIGINT)]


LOST = """
import gc, signal
def interrupt(phase, info):
  if phase == 'start':
    signal.raise_signal(signal.SIGINT)  # the exception is discarded
def main():
  gc.callbacks.append(interrupt)
  gc.collect()
  gc.callbacks.remove(interrupt)
  print('lost')
  while True:
    signals.check_interrupted()
"""
# The second thread ends the process while the main one waits for a reader of its output.
SLOW = """
import signal, sys, time, types
def main():
  signals._GRACE_SECONDS = 0.1
  sys.stdout = types.SimpleNamespace(flush=lambda: time.sleep(60))
  signal.raise_signal(signal.SIGINT)
"""
SWALLOWED = """
import signal
def main():
  try:
    signal.raise_signal(signal.SIGINT)
  except KeyboardInterrupt:
    raise ValueError('of a library')
"""
# A function that returns to Python only at its end, hours later.
BUSY = """
import hashlib, threading
def main():
  threading.Timer(0.2, lambda: print('busy', flush=True)).start()
  hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)
"""


def start_command(code: str, **kwargs) -> subprocess.Popen:
  """Runs `main` of some code as a command."""
  before, after = 'from vit_jax import command_line, signals', 'command_line.run(main)'
  return subprocess.Popen(
    [sys.executable, '-c', f'{before}\n{code}\n{after}'],
    cwd=SANDBOX,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **kwargs,
  )


@pytest.mark.parametrize('code', [LOST, SWALLOWED, SLOW])
def test_an_interrupt_ends_the_command_and_is_reported_once(code):
  process = start_command(code)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 130
  assert err == 'interrupted by the keyboard.\n'


@pytest.mark.parametrize(('grace', 'count'), [(0.1, 1), (3600, 2)])
def test_a_command_inside_of_a_library_ends_soon_or_at_the_second_interrupt(grace, count):
  process = start_command(f'signals._GRACE_SECONDS = {grace}\n{BUSY}')
  assert process.stdout.readline() == 'busy\n'
  process.send_signal(signal.SIGINT)
  while count > 1 and process.poll() is None:  # signals that wait together count as one
    process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=60)
  assert (process.returncode, err) == (130, 'interrupted by the keyboard.\n')


def test_an_interrupt_that_the_parent_ignores_is_ignored():
  code = 'import signal\ndef main():\n  signal.raise_signal(signal.SIGINT)\n  print("done")'
  with signals.handled(signal.SIGINT, signal.SIG_IGN):  # inherited, as by a job of a script
    process = start_command(code)
  assert process.communicate(timeout=60) == ('done\n', '')
  assert process.returncode == 0


@pytest.mark.parametrize('prefix', ['', 'workdir ', 'step 8/'])
def test_a_run_is_interrupted_while_it_imports_compiles_and_trains(prefix, tmp_path):
  flags = ('--config.total_steps=100000', '--config.log_every=4', '--config.eval_every=5')
  process = start('main', '--config=configs/quickstart.py', *TINY, *flags, f'--workdir={tmp_path}')
  if prefix:
    assert any(line.startswith(prefix) for line in process.stdout)
  else:
    while 'jaxlib' not in pathlib.Path(f'/proc/{process.pid}/maps').read_text():
      pass
  process.send_signal(signal.SIGINT)
  sent = time.monotonic()
  _, err = process.communicate(timeout=60)
  assert time.monotonic() - sent < 10
  assert process.returncode == 130, err
  assert err.splitlines()[-1].startswith('interrupted by the keyboard')
  assert 'Traceback' not in err
