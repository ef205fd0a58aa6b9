"""Where the time of a process goes: every moment belongs to one phase, so the phases add up."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax


class PhaseTimer:
  """Divides the time of the main thread among phases; the first one is 'start'.

  Attributes:
    num_batches: how many of the batches of `steps` were used up.
  """

  def __init__(self, start: float | None = None):
    """`start`: the `time.monotonic()` at which the process began; None: now."""
    self._phase, self._since = 'start', time.monotonic() if start is None else start
    self._seconds: dict[str, float] = {}
    self.num_batches = 0

  def switch(self, phase: str) -> str:
    """Begins a phase; returns the one that ends."""
    now = time.monotonic()
    self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
    previous, self._phase, self._since = self._phase, phase, now
    return previous

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """A phase for the time of a block, which a profile shows, too."""
    previous = self.switch(name)
    try:
      with jax.profiler.TraceAnnotation(name):
        yield
    finally:
      self.switch(previous)

  @contextlib.contextmanager
  def followed_by(self, name: str) -> Iterator[None]:
    """Begins a phase at the end of a block, however it ends."""
    try:
      yield
    finally:
      self.switch(name)

  def steps(self, batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; until each is ready the phase is 'data_wait', and then 'step'."""
    while True:
      with self.phase('data_wait'):
        batch = next(batches, None)
      if batch is None:
        return
      self.switch('step')
      yield batch
      self.num_batches += 1

  def seconds(self) -> dict[str, float]:
    """The seconds of each phase since the start; their sum is the time since then."""
    self.switch(self._phase)
    return dict(self._seconds)


def between(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
  """The seconds of each phase between two calls of `PhaseTimer.seconds`."""
  return {name: value - before.get(name, 0.0) for name, value in now.items()}
