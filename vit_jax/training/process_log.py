"""What each process of a run prints, also in a file: `workdir/logs/<host>-<process>.log`.

Storage that fails or hangs neither ends nor stops a run: a thread writes.
"""

import contextlib
import os
import queue
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from etils import epath

from vit_jax.distributed.cluster import ProcessInfo
from vit_jax.errors import describe
from vit_jax.files import is_remote, real_path, user_path
from vit_jax.training.metrics_output import LocalFile, Output, Parts, Uploader, WriteFailures

_WAIT_SECONDS = 5.0  # for a line to be written
_MAX_EARLY_BYTES = 2**20  # that are kept until there is a workdir

_log: '_ProcessLog | None' = None  # inside `output_logged`


@contextlib.contextmanager
def output_logged(workdir: epath.PathLike, process: ProcessInfo | None) -> Iterator[None]:
  """Inside, what this process prints is also written to its log in the workdir.

  An error that leaves the block is written, too. The log begins with `open_log`, or with a warning
  or an error of a run whose workdir exists, so a start that fails leaves no workdir behind.

  Args:
    workdir: of the run, as the user names it.
    process: this one, as its launcher counts; None if it is alone.
  """
  global _log
  _log = log = _ProcessLog(workdir, process.process_id if process else 0)
  stdout, stderr = _LoggedStream(sys.stdout, log, False), _LoggedStream(sys.stderr, log, True)
  try:
    with (
      contextlib.redirect_stdout(cast(TextIO, stdout)),
      contextlib.redirect_stderr(cast(TextIO, stderr)),
    ):
      yield
  except BaseException as error:  # `command_line.run` reports it
    log.write(f'{describe(error)[2]}\n', is_urgent=True)
    raise
  finally:
    _log = None
    log.close()


def open_log(workdir: epath.Path) -> None:
  """Begins the log of this process, inside `output_logged`: the workdir is there."""
  if _log is not None:
    _log.open(workdir)


class _ProcessLog:
  """The log of this process: appended to from any thread."""

  def __init__(self, workdir: epath.PathLike, process_id: int):
    self._workdir, self._process_id = workdir, process_id
    self._name = f'{re.sub(r"[^A-Za-z0-9_.-]", "_", socket.gethostname())}-{process_id}'
    self._output: Output | None = None
    self._uploader: Uploader | None = None
    self._early = bytearray()  # printed before the log was opened
    self._num_writes = 0
    self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    self._idle = threading.Event()
    self._idle.set()
    # Storage may stop it for ever: the process must be able to end without it.
    threading.Thread(target=self._run, name='log', daemon=True).start()

  def write(self, text: str, is_urgent: bool) -> None:
    """Appends whole lines; returns once they are written, or after some seconds."""
    content = text.encode(errors='backslashreplace')
    self._put(lambda: self._append(content, is_urgent))

  def open(self, workdir: epath.Path) -> None:
    self._put(lambda: self._open(workdir))

  def close(self) -> None:
    """Writes what is left; gives up after some seconds."""
    if self._uploader:
      self._put(self._uploader.flush)
    self._tasks.put(None)

  def _put(self, task: Callable[[], None]) -> None:
    is_idle = self._idle.is_set()
    self._idle.clear()
    self._tasks.put(task)
    if is_idle:  # else the storage hangs, or this is the thread that writes
      self._idle.wait(_WAIT_SECONDS)

  def _run(self) -> None:
    while task := self._tasks.get():
      task()
      if self._tasks.empty():
        self._idle.set()
    if self._uploader:
      self._uploader.close()

  def _append(self, content: bytes, is_urgent: bool) -> None:
    if self._output is None:
      self._early += content[: _MAX_EARLY_BYTES - len(self._early)]
      if is_urgent:
        self._open_if_workdir_exists()
      return
    self._num_writes += 1
    self._output.append(self._num_writes, content)
    if self._uploader and is_urgent:
      self._uploader.flush()

  def _open_if_workdir_exists(self) -> None:
    with contextlib.suppress(Exception):  # of any client of a bucket, or a path that cannot exist
      workdir = real_path(user_path(self._workdir))
      if (workdir / 'config.json').exists():
        self._open(workdir)

  def _open(self, workdir: epath.Path) -> None:
    if self._output is not None:
      return
    folder, failures = workdir / 'logs', WriteFailures('log')
    if is_remote(workdir):
      start = time.strftime('%Y%m%dT%H%M%S', time.gmtime())
      self._uploader = Uploader(failures)
      self._output = Parts(
        self._uploader, lambda first: folder / f'{self._name}-{start}-{first:06}.log'
      )
    else:
      with contextlib.suppress(OSError):  # the file will tell
        folder.mkdir(parents=True, exist_ok=True)
      self._output = LocalFile(folder / f'{self._name}.log', failures)
    date = time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())
    header = f'--- {date}, process {self._process_id} on {socket.gethostname()}, PID {os.getpid()}'
    early, self._early = bytes(self._early), bytearray()
    self._append(f'{header}\n'.encode() + early, is_urgent=True)


class _LoggedStream:
  """A text stream whose whole lines are also logged, without those that draw a progress bar."""

  def __init__(self, stream: TextIO, log: _ProcessLog, is_urgent: bool):
    self._stream, self._log, self._is_urgent = stream, log, is_urgent
    self._line = ''  # the beginning of one

  def write(self, text: str) -> int:
    try:
      return self._stream.write(text)
    finally:
      self._log_lines(text)

  def _log_lines(self, text: str) -> None:
    is_empty = not self._line and not text.strip('\n')
    if text.startswith(('\r', '\x1b')) or is_empty:  # tqdm draws, or moves the cursor
      return
    lines, newline, self._line = (self._line + text).rpartition('\n')
    if newline:
      self._log.write(lines + newline, self._is_urgent)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)
