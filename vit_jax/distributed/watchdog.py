"""Ends a run in which nothing finishes any more, and leaves the stacks of its threads."""

import contextlib
import faulthandler
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from vit_jax.errors import HangError

_CHECK_SECONDS = 1
_WRITE_SECONDS = 30  # for the stacks, which may have to go to the storage that hangs


class Watchdog:
  """A context manager; inside, a thread looks whether anything still finishes.

  Args:
    folder: for the stacks, which is created when it is needed.
    timeout: seconds in which something must finish.
    end: ends the process, given the `HangError`; the thread calls it after writing the stacks.
  """

  def __init__(self, folder: epath.Path, timeout: float, end: Callable[[HangError], Any]):
    self._folder, self._timeout, self._end = folder, timeout, end
    self._last_progress = time.monotonic()
    self._closed = threading.Event()

  def report_progress(self) -> None:
    """Something has finished: a step, a batch of an evaluation, a save, a compilation."""
    self._last_progress = time.monotonic()

  def __enter__(self) -> 'Watchdog':
    self.report_progress()
    threading.Thread(target=self._watch, name='watchdog', daemon=True).start()
    return self

  def __exit__(self, *unused: Any) -> None:
    self._closed.set()

  def _watch(self) -> None:
    while (left := self._last_progress + self._timeout - time.monotonic()) > 0:
      if self._closed.wait(min(left, _CHECK_SECONDS)):
        return
    self.write_stacks()
    self._end(
      HangError(
        f'Nothing has finished for {self._timeout:g} s on {socket.gethostname()}; the stacks of '
        f'all threads are in {self._folder}; rerun the same command to resume from the last '
        'checkpoint.'
      )
    )

  def write_stacks(self) -> None:
    """Writes the stacks of all threads to the folder; gives up after 30 s, or where it fails."""
    with tempfile.TemporaryFile('w+') as file:
      faulthandler.dump_traceback(file)
      file.seek(0)
      text = file.read()

    def write() -> None:
      with contextlib.suppress(OSError):
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f'{time.strftime("%Y%m%dT%H%M%S")}-{socket.gethostname()}-{os.getpid()}.txt'
        (self._folder / name).write_text(text)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(_WRITE_SECONDS)
