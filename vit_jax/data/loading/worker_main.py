"""The worker process: `python -m vit_jax.data.loading.worker_main`; see workers.py.

The first line of stdin holds the streams, each further line a task. The answer to each is a line on
stdout: {'bad': {index: message}}, or {'error': type, 'message'}. It imports no JAX.
"""

import json
import os
import sys
import traceback
from typing import Any

from vit_jax.data.loading.reader import Reader, make_reader
from vit_jax.data.loading.shared_memory import Slot, map_slots
from vit_jax.data.loading.workers import ERRORS, SharedStream
from vit_jax.errors import UserError


def _open_stream(fields: dict[str, Any]) -> tuple[Reader, list[Slot]]:
  """Opens the data of a `SharedStream` and maps its slots."""
  stream = SharedStream.from_json(fields)
  reader = make_reader(stream.config)
  if reader.source.fingerprint != stream.fingerprint:
    raise UserError(
      f'{reader.source.name} changed while the run was starting; rerun the same command.'
    )
  return reader, map_slots(stream.file, reader.shapes, stream.rows, stream.count)


def _error_answer(error: Exception) -> dict[str, str]:
  name = type(error).__name__
  return {'error': name, 'message': str(error) if name in ERRORS else traceback.format_exc()}


def main() -> None:
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what a library prints must not mix with the answers
  streams = None
  for line in sys.stdin:
    try:
      answer = {'bad': {}}
      if streams is None:
        streams = [_open_stream(fields) for fields in json.loads(line)]
      else:
        stream, slot, *rows = json.loads(line)
        reader, slots = streams[stream]
        answer['bad'] = reader.read_rows(*rows, slots[slot])
    except Exception as error:  # noqa: BLE001 - the parent raises it again
      answer = _error_answer(error)
    try:
      print(json.dumps(answer), file=answers, flush=True)
    except BrokenPipeError:
      os._exit(0)


if __name__ == '__main__':
  main()
