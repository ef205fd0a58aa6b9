"""Exact classification accuracy: sums over masked batches, divided once."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from vit_jax.errors import UserError


def evaluate(
  eval_step: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any]
) -> dict[str, float]:
  """Scores every example once.

  Args:
    eval_step: (params, batch) -> {'examples', 'correct', 'loss'}, sums over one batch.
    params: the parameter tree.
    batches: padded and masked, from `data.loader.DataLoader`.

  Returns:
    {'accuracy': share in [0, 1], 'loss': mean, 'examples': how many were scored}
  """
  sums = {'examples': 0, 'correct': 0, 'loss': 0.0}
  for batch in batches:
    part = jax.device_get(eval_step(params, batch))
    sums = {name: total + part[name].item() for name, total in sums.items()}
  if not sums['examples']:
    raise UserError('None of the test examples can be read, so there is nothing to score.')
  return {
    'accuracy': sums['correct'] / sums['examples'],
    'loss': sums['loss'] / sums['examples'],
    'examples': sums['examples'],
  }
