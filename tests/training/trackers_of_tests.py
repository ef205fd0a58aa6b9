"""Functions that tests name as `config.tracker`."""

import json
import os

NO_FUNCTION = 3
calls: list[tuple[int, dict[str, float]]] = []


def record(step: int, metrics: dict[str, float]) -> None:
  calls.append((step, metrics))


def append(step: int, metrics: dict[str, float]) -> None:
  with open(os.environ['VIT_JAX_TEST_TRACKED'], 'a') as file:
    file.write(json.dumps({'step': step, **metrics}) + '\n')


def fail(step: int, metrics: dict[str, float]) -> None:
  raise RuntimeError(f'no connection\nat step {step}')
