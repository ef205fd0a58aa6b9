"""Exact classification accuracy: sums over masked batches, divided once."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from vit_jax import signals
from vit_jax.errors import UserError


def evaluate(
  eval_step: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any]
) -> dict[str, float]:
  """Scores every example once.

  Args:
    eval_step: (params, batch) -> {'examples', 'correct', 'loss'}, sums over the batch.
    params: the parameter tree.
    batches: padded and masked, as `DataLoader` yields them.

  Returns:
    {'accuracy': in [0, 1], 'loss': mean over the examples, 'examples': number of examples}

  Raises:
    UserError: if no example can be read.
  """
  examples, correct, loss = 0, 0, 0.0
  for batch in batches:
    signals.check_interrupted()
    sums = jax.device_get(eval_step(params, batch))
    examples += sums['examples'].item()
    correct += sums['correct'].item()
    loss += sums['loss'].item()
  if not examples:
    raise UserError('None of the test examples can be read, so there is nothing to score.')
  return {'accuracy': correct / examples, 'loss': loss / examples, 'examples': examples}
