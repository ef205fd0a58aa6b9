"""Handles signals: context managers, and Ctrl-C and SIGTERM, which always end a command.

Python discards an exception of a signal handler that happens to run inside of a callback, such as
JAX's at garbage collection; so a KeyboardInterrupt alone may be lost. It runs no handler at all
while the main thread is in a library, such as a compiler.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from vit_jax import errors

INTERRUPTED = 130  # exit code after Ctrl-C
_GRACE_SECONDS = 5  # between Ctrl-C and the end of the process, whatever it is doing
_interrupted = threading.Event()
# By the number of a signal: seconds after it, and what then ends the process.
_deadlines: dict[int, tuple[float, Callable[[], Any]]] = {}
_profile_requested = threading.Event()
_kept_open: list[socket.socket] = []


def was_interrupted() -> bool:
  """Returns True once Ctrl-C was pressed, inside `interruptible`."""
  return _interrupted.is_set()


def check_interrupted() -> None:
  """Raises the `KeyboardInterrupt` that may have been lost; for each round of a long loop."""
  if _interrupted.is_set():
    raise KeyboardInterrupt


def _exit_now(*unused: Any) -> NoReturn:
  # Without the lock after a second, the main thread is writing to a stream that nobody reads.
  if errors.interrupt_lock.acquire(timeout=1) and not errors.interrupt_reported.is_set():
    with contextlib.suppress(OSError):
      os.write(2, b'interrupted by the keyboard.\n')
    errors.interrupt_reported.set()
  os._exit(INTERRUPTED)


def exit_on_interrupt() -> None:
  """Lets Ctrl-C end the process at once: while modules are imported, there is nothing to tidy."""
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _exit_now)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
  """Ctrl-C raises `KeyboardInterrupt`; after five more seconds, or a second one, it exits.

  The deadlines of `handled_until` hold inside. Does nothing outside the main thread; a Ctrl-C that
  is ignored or handled otherwise stays so.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  # The interpreter writes the number of a signal to the socket as soon as it arrives.
  received, sent = socket.socketpair()
  sent.setblocking(False)
  threading.Thread(target=_watch, args=(received,), name='signals', daemon=True).start()
  previous = signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)
  try:
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _exit_now):
      _deadlines[signal.SIGINT] = _GRACE_SECONDS, _exit_now
      with handled(signal.SIGINT, _interrupt), _discarded_silently():
        yield
    else:
      yield
  finally:
    if _interrupted.is_set():
      _kept_open.append(sent)  # the thread has to see the process end
    else:
      _deadlines.pop(signal.SIGINT, None)
      signal.set_wakeup_fd(previous)
      sent.close()


@contextlib.contextmanager
def _discarded_silently() -> Iterator[None]:
  """Prints no traceback of a `KeyboardInterrupt` that is discarded: `check_interrupted` knows."""
  previous = sys.unraisablehook

  def print_others(unraisable: Any) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
      previous(unraisable)

  sys.unraisablehook = print_others
  try:
    yield
  finally:
    sys.unraisablehook = previous


def _interrupt(*unused: Any) -> NoReturn:
  if _interrupted.is_set():
    _exit_now()
  _interrupted.set()
  raise KeyboardInterrupt


def _watch(received: socket.socket) -> None:
  """Ends the process at the deadlines of signals, or at a second SIGINT."""
  started: set[int] = set()
  with received:
    while byte := received.recv(1):
      number = byte[0]
      if number in _deadlines and number not in started:
        started.add(number)
        timer = threading.Timer(_deadlines[number][0], _end_at_deadline, (number,))
        timer.daemon = True
        timer.start()
      elif number in _deadlines and number == signal.SIGINT:
        _exit_now()


def _end_at_deadline(number: int) -> None:
  if number in _deadlines:
    _deadlines[number][1]()


@contextlib.contextmanager
def handled(number: int, handler: Callable[..., Any] | signal.Handlers) -> Iterator[None]:
  """Installs a signal handler inside the block; does nothing outside the main thread."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  previous = signal.signal(number, handler)
  try:
    yield
  finally:
    signal.signal(number, previous)


@contextlib.contextmanager
def handled_until(
  number: int, handler: Callable[..., Any], seconds: float, end: Callable[[], Any]
) -> Iterator[None]:
  """As `handled`; `end` must end the process if the block lasts for `seconds` after the signal.

  A thread calls it, even while the main thread is in a library; inside of `interruptible` alone.
  """
  with handled(number, handler):
    _deadlines[number] = seconds, end
    try:
      yield
    finally:
      del _deadlines[number]


@contextlib.contextmanager
def delayed(number: int) -> Iterator[None]:
  """Defers a signal that arrives inside the block to its end; several count as one."""
  received: list[tuple[Any, ...]] = []
  previous = signal.getsignal(number)
  with handled(number, lambda *arguments: received.append(arguments)):
    yield
  if received and callable(previous):
    previous(*received[0])


def accept_profile_requests() -> None:
  """SIGUSR1 asks for a profile, whatever the process is doing, rather than ending it."""
  if hasattr(signal, 'SIGUSR1'):  # not on Windows
    signal.signal(signal.SIGUSR1, lambda *unused: _profile_requested.set())


def take_profile_request() -> bool:
  """Returns True once for each profile that was asked for."""
  is_requested = _profile_requested.is_set()
  _profile_requested.clear()
  return is_requested
