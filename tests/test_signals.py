"""Signal handlers of a block, with real signals."""

import signal
import threading

import pytest

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
