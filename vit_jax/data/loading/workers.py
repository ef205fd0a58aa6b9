"""Processes that read examples, past the interpreter's lock that threads share.

A worker is told what to read in lines of JSON, and writes into memory that it shares with the
process that started it. It imports no JAX, ignores the keyboard and SIGTERM (which reach the whole
group of a run), and ends when its pipe does, however its parent ended.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.config import AugmentConfig
from vit_jax.data.loading import shared_memory
from vit_jax.data.loading.reader import ReadConfig, make_reader
from vit_jax.errors import BadExampleError, LostPeerError, UserError

# Signals to the group are for the parent, also while a worker still imports.
_PROGRAM = """
import signal
for number in (signal.SIGINT, signal.SIGTERM):
  signal.signal(number, signal.SIG_IGN)
from vit_jax.data.loading import workers
workers.serve()
"""
_ERRORS = {'BadExampleError': BadExampleError, 'UserError': UserError}


@dataclasses.dataclass(frozen=True)
class Shared:
  """Where in the shared file the slots of a recipe lie.

  Attributes:
    recipe: what is read.
    fingerprint: of the source, which the worker must find the same.
    rows: of a slot.
    count: of slots.
    offset: of the first, in bytes.
  """

  recipe: ReadConfig
  fingerprint: str
  rows: int
  count: int
  offset: int


class Worker:
  """The parent's end of a worker process; one thread may use it at a time."""

  def __init__(self, shared: Sequence[Shared], file: int):
    # Large arrays come and go: the memory is kept rather than asked for again each time.
    keep = {'MALLOC_MMAP_THRESHOLD_': str(2**26), 'MALLOC_TRIM_THRESHOLD_': str(2**28)}
    environment = keep | os.environ | {'OMP_NUM_THREADS': '1'}
    root = str(pathlib.Path(__file__).resolve().parents[3])
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, (root, environment.get('PYTHONPATH'))))
    self._process = subprocess.Popen(
      [sys.executable, '-c', _PROGRAM, str(file)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      pass_fds=(file,),
      env=environment,
      text=True,
    )
    self._send([dataclasses.asdict(part) for part in shared])

  def _send(self, message: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # its end is noticed when the answer is read
      self._process.stdin.write(json.dumps(message) + '\n')
      self._process.stdin.flush()

  def read(self, task: Mapping[str, Any]) -> dict[int, str]:
    """Has a task done, as `serve` takes it; returns the bad examples that were met.

    Raises:
      UserError: that the worker met.
      LostPeerError: when the process has ended.
      RuntimeError: for a bug, with the worker's traceback.
    """
    self._send(task)
    line = self._process.stdout.readline()
    if not line:
      code = self._process.wait()
      why = f'signal {-code}' if code < 0 else f'exit code {code}'
      hint = '; memory may have run out' if code == -signal.SIGKILL else ''
      raise LostPeerError(f'A worker that reads data ended ({why}{hint}); start the run again.')
    answer = json.loads(line)
    if 'kind' in answer:
      raise _ERRORS.get(answer['kind'], RuntimeError)(answer['message'])
    return {int(index): message for index, message in answer['bad'].items()}

  def stop(self) -> None:
    """Lets the process end: at once when it is idle, else after its task."""
    with contextlib.suppress(OSError):
      self._process.stdin.close()

  def close(self) -> None:
    """Waits a moment for its end, then kills it; it has nothing to lose."""
    try:
      self._process.wait(timeout=1)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()


def _shared_from_json(fields: Mapping[str, Any]) -> Shared:
  recipe = dict(fields['recipe'])
  recipe['image_size'] = tuple(recipe['image_size'])
  if recipe['augment'] is not None:
    recipe['augment'] = AugmentConfig(**recipe['augment'])
  return Shared(**{**fields, 'recipe': ReadConfig(**recipe)})


def _open(parts: Sequence[Mapping[str, Any]], file: int) -> list[Any]:
  """The readers and slots of all recipes."""
  readers = []
  for part in (_shared_from_json(part) for part in parts):
    reader = make_reader(part.recipe)
    if reader.source.fingerprint != part.fingerprint:
      raise UserError(f'{reader.source.name} changed while the run was starting; start it again.')
    slots = shared_memory.slots_in(file, reader.shapes, part.rows, part.count, part.offset)
    readers.append((reader, slots))
  return readers


def _read(readers: Sequence[Any], task: Mapping[str, Any]) -> dict[int, str]:
  """Does the task {'recipe', 'slot', 'first' row, 'indices', 'positions'}."""
  reader, slots = readers[task['recipe']]
  slot = slots[task['slot']]
  return reader.read_rows(task['indices'], task['positions'], task['first'], slot)


def _answer(error: Exception) -> dict[str, str]:
  kind = type(error).__name__
  return {'kind': kind, 'message': str(error) if kind in _ERRORS else traceback.format_exc()}


def serve() -> None:
  """What a worker process does: the recipes on the first line, then one task a line."""
  file, answers = int(sys.argv[1]), os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what a library prints must not get among the answers
  readers, failure = [], None
  try:
    readers = _open(json.loads(sys.stdin.readline() or '[]'), file)
  except Exception as error:  # noqa: BLE001 - the answer to each task
    failure = _answer(error)
  for line in sys.stdin:
    try:
      answer = failure or {'bad': _read(readers, json.loads(line))}
    except Exception as error:  # noqa: BLE001 - the parent raises it again
      answer = _answer(error)
    try:
      print(json.dumps(answer), file=answers, flush=True)
    except BrokenPipeError:
      os._exit(0)
