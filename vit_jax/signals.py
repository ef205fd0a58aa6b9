"""Context managers that handle a signal."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


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
def delayed(number: int) -> Iterator[None]:
  """Defers a signal that arrives inside the block to its end; several count as one."""
  received: list[tuple[Any, ...]] = []
  previous = signal.getsignal(number)
  with handled(number, lambda *arguments: received.append(arguments)):
    yield
  if received and callable(previous):
    previous(*received[0])
