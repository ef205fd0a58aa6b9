"""Starts and talks to the worker processes that read examples outside of the interpreter's lock.

A worker (worker_main.py) answers once it has opened the data. It receives tasks as lines of JSON on
its stdin and writes examples into memory that it shares with its parent. SIGINT and SIGTERM, which
reach the whole process group of a run, are blocked in it from the start. It ends when its pipe
closes, however its parent ended. One that ends or hangs is replaced once.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.config import AugmentConfig, Preprocessing
from vit_jax.data.loading.reader import ReadConfig
from vit_jax.data.sources import Source
from vit_jax.errors import BadExampleError, LostPeerError, UserError
from vit_jax.text import printable

TASK_LIMIT = 300.0  # seconds
_START_LIMIT = 3600.0  # seconds, to open the data: listing millions of files takes long
_KILL_SECONDS = 1
_NAMES_SECONDS = 5
_MAX_NAMES = 3

ERRORS = {'BadExampleError': BadExampleError, 'UserError': UserError}  # raised again by the parent


@dataclasses.dataclass(frozen=True)
class SharedStream:
  """A stream as a worker sees it."""

  config: ReadConfig
  fingerprint: str  # of the source; the worker must open the same data
  rows: int  # of a slot
  count: int  # of slots
  file: int  # descriptor of the memory of the slots

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> 'SharedStream':
    """Restores what JSON made of `dataclasses.asdict`."""
    config = fields['config'] | {'image_size': tuple(fields['config']['image_size'])}
    config['preprocessing'] = Preprocessing(**config['preprocessing'])
    if config['augment'] is not None:
      config['augment'] = AugmentConfig(**config['augment'])
    return cls(**{**fields, 'config': ReadConfig(**config)})


class _LostWorkerError(Exception):
  """The process ended, or did not answer in time; the message completes 'the worker …'."""


class _Process:
  """A worker process; only one thread may use it at a time, but any may stop it."""

  def __init__(self, streams: Sequence[SharedStream]):
    """Starts a process that reads `streams`."""
    # Large arrays are allocated again and again: let malloc keep their memory.
    malloc = {'MALLOC_MMAP_THRESHOLD_': str(2**26), 'MALLOC_TRIM_THRESHOLD_': str(2**28)}
    environment = malloc | os.environ | {'OMP_NUM_THREADS': '1'}
    root = str(pathlib.Path(__file__).resolve().parents[3])
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, (root, environment.get('PYTHONPATH'))))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
      blocked = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # which are for the run
      signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # inherited
      self._process = subprocess.Popen(
        [sys.executable, '-m', 'vit_jax.data.loading.worker_main'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[stream.file for stream in streams],
        env=environment,
      )
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert self._process.stdin is not None and self._process.stdout is not None  # pipes
    self._stdin, self._stdout = self._process.stdin, self._process.stdout
    self.pid, self._is_ready, self._is_stopped = self._process.pid, False, False
    self._send([dataclasses.asdict(stream) for stream in streams])

  def _send(self, message: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # `_receive` notices that the process has ended
      self._stdin.write(json.dumps(message).encode() + b'\n')
      self._stdin.flush()

  def _receive(self, limit: float) -> dict[str, Any]:
    """Waits for a line; raises `_LostWorkerError` at its end, or after `limit` seconds."""
    line, deadline, poll = b'', time.monotonic() + limit, select.poll()
    poll.register(self._stdout, select.POLLIN)
    while not line.endswith(b'\n'):
      # Not longer than a second, to notice `stop` even if the process cannot be killed.
      if self._is_stopped or time.monotonic() > deadline:
        raise _LostWorkerError(f'has not answered for {limit:g} s (do its files hang?)')
      if not poll.poll(1000 * min(1, limit)):
        continue
      data = os.read(self._stdout.fileno(), 2**16)
      if not data:
        raise _LostWorkerError(f'ended ({self._reason()})')
      line += data
    answer = json.loads(line)
    if 'error' in answer:
      raise ERRORS.get(answer['error'], RuntimeError)(answer['message'])
    return answer

  def _reason(self) -> str:
    code = self._process.wait()
    hint = ', perhaps out of memory' if code == -signal.SIGKILL else ''
    return f'signal {-code}{hint}' if code < 0 else f'exit code {code}'

  def read(self, task: Sequence[Any], limit: float) -> dict[int, str]:
    """Lets the process call `Reader.read_rows`; see `Worker.read`."""
    if not self._is_ready:
      self._receive(_START_LIMIT)
      self._is_ready = True
    self._send(task)
    return {int(index): message for index, message in self._receive(limit)['bad'].items()}

  def stop(self) -> None:
    """Asks the process to end: at once if it is idle, else after its task."""
    self._is_stopped = True
    with contextlib.suppress(OSError):
      self._stdin.close()

  def close(self, seconds: float = 0) -> None:
    """Waits for the process to end, then kills it: it has no state to lose."""
    try:
      self._process.wait(seconds)
    except subprocess.TimeoutExpired:
      self._process.kill()
      with contextlib.suppress(subprocess.TimeoutExpired):  # while its file system hangs
        self._process.wait(_KILL_SECONDS)
    self._stdout.close()


class Worker:
  """A worker process, which is replaced once; only one thread may use it at a time."""

  def __init__(
    self, number: int, streams: Sequence[SharedStream], sources: Sequence[Source], limit: float
  ):
    """Starts a process.

    Args:
      number: of the worker, for messages.
      streams: what it reads.
      sources: of the streams; they name examples in messages.
      limit: seconds that a task may take.
    """
    self._number, self._streams, self._sources, self._limit = number, streams, sources, limit
    self._process, self._is_replaced, self._is_stopped = _Process(streams), False, False
    self._lock = threading.Lock()  # of a replacement, against `stop`

  def read(
    self, stream: int, slot: int, indices: list[int], positions: list[int], first_row: int
  ) -> dict[int, str]:
    """Lets the worker call `Reader.read_rows` for a slot of a stream (a number).

    If its process ends or does not answer, another one reads the rows again, one by one.

    Returns:
      The bad examples: {index: error message}.

    Raises:
      UserError: the one that the worker raised.
      LostPeerError: when the other process is lost, too; it names the examples.
      RuntimeError: for a bug, with the worker's traceback.
    """
    try:
      return self._process.read([stream, slot, indices, positions, first_row], self._limit)
    except _LostWorkerError as error:
      self._replace(error, stream, indices)
    bad: dict[int, str] = {}
    for row, (index, position) in enumerate(zip(indices, positions, strict=True), first_row):
      try:
        bad |= self._process.read([stream, slot, [index], [position], row], self._limit)
      except _LostWorkerError as error:
        self._replace(error, stream, [index])
    return bad

  def _replace(self, error: _LostWorkerError, stream: int, indices: Sequence[int]) -> None:
    """Starts another process; raises `LostPeerError` if this is not the first time."""
    if self._is_stopped:
      raise LostPeerError('The data loader is closed.')
    text = (
      f'worker {self._number} (process {self._process.pid}) {error} '
      f'while it read {_names(self._sources[stream], indices)}'
    )
    with self._lock:
      if self._is_replaced or self._is_stopped:
        raise LostPeerError(
          f'{text[0].upper()}{text[1:]}, and it had been replaced once; check these files and '
          'the storage, then rerun the same command to resume.'
        )
      print(f'warning: {printable(text)}; another process reads on.', file=sys.stderr, flush=True)
      self._process.stop()
      self._process.close()
      self._process, self._is_replaced = _Process(self._streams), True

  def stop(self) -> None:
    """Asks the process to end: at once if it is idle, else after its task."""
    with self._lock:
      self._is_stopped = True
      self._process.stop()

  def close(self, seconds: float) -> None:
    """Waits for the process to end, then kills it."""
    self._process.close(seconds)


def _names(source: Source, indices: Sequence[int]) -> str:
  """Names the first examples; by their indices if their files hang."""
  indices = [index for index in indices if index >= 0]
  names = [f'example {index} of {source.name}' for index in indices[:_MAX_NAMES]]

  def look_up() -> None:
    names[:] = [source.describe(index) for index in indices[:_MAX_NAMES]]

  thread = threading.Thread(target=look_up, daemon=True)
  thread.start()
  thread.join(_NAMES_SECONDS)
  others = len(indices) - len(names)
  return ', '.join(names) + (f' and {others} more' if others else '')
