"""The worker process: `python -m vit_jax.data.loading.worker_main FILE`; see workers.py.

Stdin brings the streams on its first line, then one task a line; each task is answered by one line
on stdout: {'bad': {index: message}}, or {'error': type, 'message'}. It imports no JAX.
"""

import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.data.loading.reader import Reader, make_reader
from vit_jax.data.loading.shared_memory import Slot, map_slots
from vit_jax.data.loading.workers import ERRORS, SharedStream
from vit_jax.errors import UserError


def _open_stream(stream: SharedStream, file: int) -> tuple[Reader, list[Slot]]:
  """Opens the data of a stream and maps its slots.

  Raises:
    UserError: for data that cannot be opened, or differs from what the parent opened.
  """
  reader = make_reader(stream.config)
  if reader.source.fingerprint != stream.fingerprint:
    raise UserError(
      f'{reader.source.name} changed while the run was starting; rerun the same command.'
    )
  return reader, map_slots(file, reader.shapes, stream.rows, stream.count, stream.offset)


def _read(streams: Sequence[tuple[Reader, list[Slot]]], task: Mapping[str, Any]) -> dict[int, str]:
  """Performs a task of `Worker.read`; returns the bad examples."""
  reader, slots = streams[task['stream']]
  slot = slots[task['slot']]
  return reader.read_rows(task['indices'], task['positions'], task['first_row'], slot)


def _error_answer(error: Exception) -> dict[str, str]:
  name = type(error).__name__
  return {'error': name, 'message': str(error) if name in ERRORS else traceback.format_exc()}


def main() -> None:
  file, answers = int(sys.argv[1]), os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what a library prints must not mix with the answers
  streams, startup_error = [], None
  try:
    for fields in json.loads(sys.stdin.readline() or '[]'):
      streams.append(_open_stream(SharedStream.from_json(fields), file))
  except Exception as error:  # noqa: BLE001 - the answer to each task
    startup_error = _error_answer(error)
  for line in sys.stdin:
    try:
      answer = startup_error or {'bad': _read(streams, json.loads(line))}
    except Exception as error:  # noqa: BLE001 - the parent raises it again
      answer = _error_answer(error)
    try:
      print(json.dumps(answer), file=answers, flush=True)
    except BrokenPipeError:
      os._exit(0)


if __name__ == '__main__':
  main()
