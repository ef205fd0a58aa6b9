"""Signal handlers for the time of a block."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def handled(number: int, handler: Callable[..., Any] | signal.Handlers) -> Iterator[None]:
  """Handles a signal with `handler` inside the block; outside the main thread nothing changes."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(number, handler)
  try:
    yield
  finally:
    signal.signal(number, before)


@contextlib.contextmanager
def delayed(number: int) -> Iterator[None]:
  """A signal that arrives inside the block is handled after it."""
  arrived: list[tuple[Any, ...]] = []
  before = signal.getsignal(number)
  with handled(number, lambda *arguments: arrived.append(arguments)):
    yield
  if arrived and callable(before):
    before(*arrived[0])
