"""Starts and talks to the worker processes that read examples outside of the interpreter's lock.

A worker (worker_main.py) receives tasks as lines of JSON on its stdin and writes examples into
memory that it shares with its parent. SIGINT and SIGTERM, which reach the whole process group of a
run, are blocked in it from the start. It ends when its pipe closes, however its parent ended.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.config import AugmentConfig, Preprocessing
from vit_jax.data.loading.reader import ReadConfig
from vit_jax.errors import BadExampleError, LostPeerError, UserError

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


class Worker:
  """The parent's handle of a worker process; only one thread may use it at a time."""

  def __init__(self, streams: Sequence[SharedStream]):
    """Starts a process that reads `streams`."""
    # Large arrays are allocated again and again: let malloc keep their memory.
    malloc = {'MALLOC_MMAP_THRESHOLD_': str(2**26), 'MALLOC_TRIM_THRESHOLD_': str(2**28)}
    environment = malloc | os.environ | {'OMP_NUM_THREADS': '1'}
    root = str(pathlib.Path(__file__).resolve().parents[3])
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, (root, environment.get('PYTHONPATH'))))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
      signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # inherited
      process = subprocess.Popen(
        [sys.executable, '-m', 'vit_jax.data.loading.worker_main'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[stream.file for stream in streams],
        env=environment,
        text=True,
      )
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert process.stdin is not None and process.stdout is not None  # pipes
    self._process, self._stdin, self._stdout = process, process.stdin, process.stdout
    self._send([dataclasses.asdict(stream) for stream in streams])

  def _send(self, message: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # `read` notices that the process has ended
      self._stdin.write(json.dumps(message) + '\n')
      self._stdin.flush()

  def read(
    self, stream: int, slot: int, indices: list[int], positions: list[int], first_row: int
  ) -> dict[int, str]:
    """Lets the worker call `Reader.read_rows` for a slot of a stream (a number).

    Returns:
      The bad examples: {index: error message}.

    Raises:
      UserError: the one that the worker raised.
      LostPeerError: when the process has ended.
      RuntimeError: for a bug, with the worker's traceback.
    """
    self._send([stream, slot, indices, positions, first_row])
    line = self._stdout.readline()
    if not line:
      code = self._process.wait()
      reason = f'signal {-code}' if code < 0 else f'exit code {code}'
      hint = ', perhaps out of memory' if code == -signal.SIGKILL else ''
      raise LostPeerError(
        f'A worker process that reads data ended ({reason}{hint}); rerun the same command to '
        'resume.'
      )
    answer = json.loads(line)
    if 'error' in answer:
      raise ERRORS.get(answer['error'], RuntimeError)(answer['message'])
    return {int(index): message for index, message in answer['bad'].items()}

  def stop(self) -> None:
    """Asks the process to end: at once if it is idle, else after its task."""
    with contextlib.suppress(OSError):
      self._stdin.close()

  def close(self) -> None:
    """Waits a second for the process to end, then kills it: it has no state to lose."""
    try:
      self._process.wait(timeout=1)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._stdout.close()
