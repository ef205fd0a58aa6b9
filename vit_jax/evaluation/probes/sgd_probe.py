"""Linear classifiers of frozen features, trained by SGD at many learning rates at once.

The protocol of DINOv2 (`eval/linear.py`): 13 learning rates from 1e-5 to 0.1, times batch size /
256; momentum 0.9, no weight decay, a cosine schedule to zero, 12,500 steps; kernels start at normal
values of standard deviation 0.01, biases at zero. Its batches are 128 images a GPU: of eight GPUs
1,024, the default here, with which 12,500 steps are ten epochs of ImageNet.

Different here: features are computed once, so images are not augmented; the rate is chosen on a
tenth of the train examples, which no classifier is trained on, where DINOv2 chooses on its
validation data; all classifiers start at the same kernel.

Shapes: L learning rates, B batch, D width of the features, C classes.
"""

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import signals
from vit_jax.distributed.processes import check_stop
from vit_jax.errors import UserError
from vit_jax.evaluation.probes import feature_splits
from vit_jax.evaluation.probes.frozen_features import Features
from vit_jax.text import plural

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
_MOMENTUM = optax.trace(decay=0.9)
_SYNC_STEPS = 50  # batches that may wait for the device
_BLOCK = 4_096

Params = dict[str, Any]  # kernel (L, D, C), bias (L, C)


def evaluate(
  train: Features,
  test: Features,
  *,
  learning_rates: Sequence[float] = LEARNING_RATES,
  steps: int = 12_500,
  batch_size: int = 1_024,
  seed: int = 0,
) -> dict[str, float]:
  """Chooses the learning rate on a tenth of the train examples, scores the test examples.

  Args:
    train: the examples to train on.
    test: the examples to score.
    learning_rates: the rates to choose from, each for a batch of 256; of equal accuracies the
      lowest wins. One that diverges is left out, which a warning says.
    steps: of SGD.
    batch_size: at most the number of examples to train on; the rates are scaled by it.
    seed: of the initial kernel and of the order of the examples.

  Returns:
    `accuracy`; `held_out_accuracy` and `learning_rate` of the chosen rate, before it is scaled.

  Raises:
    UserError: if all rates diverge, or if no class has two train examples; and as
      `feature_splits.check_splits`.
  """
  feature_splits.check_splits(train, test)
  held_out = feature_splits.held_out(train)
  rates = sorted(learning_rates)
  params = fit(train, np.flatnonzero(~held_out), rates, steps, batch_size, seed)
  is_finite = np.array([_is_finite(params, i) for i in range(len(rates))])
  _report_diverged(rates, is_finite)
  accuracies = np.where(is_finite, _accuracies(params, train, np.flatnonzero(held_out)), -1)
  best = int(np.argmax(accuracies))
  kernel, bias = params['kernel'][best], params['bias'][best]
  return {
    'accuracy': feature_splits.linear_accuracy(test, kernel, bias),
    'held_out_accuracy': float(accuracies[best]),
    'learning_rate': rates[best],
  }


def fit(
  train: Features,
  rows: np.ndarray,
  learning_rates: Sequence[float],
  steps: int,
  batch_size: int,
  seed: int,
) -> dict[str, np.ndarray]:
  """Trains one classifier for each learning rate, all on the same batches.

  Args:
    train: the examples.
    rows: indices of those to train on.
    learning_rates, steps, batch_size, seed: as in `evaluate`.

  Returns:
    {'kernel': (L, D, C), 'bias': (L, C)} float32.
  """
  batch_size = min(batch_size, len(rows))
  rates = np.array(learning_rates) * batch_size / 256
  rng = np.random.default_rng(seed)
  count, width = len(rates), train.values.shape[1]
  kernel = rng.normal(scale=0.01, size=(width, train.num_classes)).astype(np.float32)
  params = {
    'kernel': jnp.tile(kernel[None], (count, 1, 1)),
    'bias': jnp.zeros((count, train.num_classes)),
  }
  state = params, _MOMENTUM.init(params)
  for step, batch in enumerate(_batches(rows, batch_size, steps, rng)):
    scaled = (rates * (1 + np.cos(np.pi * step / steps)) / 2).astype(np.float32)
    state = _train_step(state, train.values[batch], train.labels[batch], scaled)
    if step % _SYNC_STEPS == 0:
      signals.check_interrupted()
      check_stop()
      jax.block_until_ready(state)
  return jax.device_get(state[0])


def _batches(
  rows: np.ndarray, batch_size: int, steps: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
  """Epoch after epoch in a new order; a batch may reach into the next epoch."""
  queue = rows[:0]
  for _ in range(steps):
    if len(queue) < batch_size:
      queue = np.concatenate([queue, rng.permutation(rows)])
    yield queue[:batch_size]
    queue = queue[batch_size:]


@functools.partial(jax.jit, donate_argnums=0)
def _train_step(
  state: tuple[Params, optax.OptState], values: jax.Array, labels: jax.Array, rates: jax.Array
) -> tuple[Params, optax.OptState]:
  """One step of all classifiers: values (B, D), labels (B,), rates (L,)."""

  def loss(params: Params) -> jax.Array:
    logits = _logits(params, values)
    labels_of_all = jnp.broadcast_to(labels[None], logits.shape[:2])
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels_of_all)
    return losses.mean(axis=1).sum()  # of one classifier: the gradients do not mix

  params, momentum = state
  updates, momentum = _MOMENTUM.update(jax.grad(loss)(params), momentum)
  return jax.tree.map(lambda p, u: p - _to_rank(rates, u.ndim) * u, params, updates), momentum


def _to_rank(rates: jax.Array, rank: int) -> jax.Array:
  return rates.reshape(-1, *[1] * (rank - 1))


def _logits(params: Params, values: jax.Array) -> jax.Array:
  """(B, D) -> (L, B, C)."""
  products = jnp.einsum('bd,ldc->lbc', values, params['kernel'], precision='highest')
  return products + params['bias'][:, None]


@jax.jit
def _count_correct(params: Params, values: jax.Array, labels: jax.Array) -> jax.Array:
  """The number of correct examples of each classifier, (L,)."""
  return jnp.sum(_logits(params, values).argmax(axis=-1) == labels[None], axis=1)


def _accuracies(params: Params, features: Features, rows: np.ndarray) -> np.ndarray:
  """The accuracy of each classifier on some examples, (L,)."""
  params, correct = jax.device_put(params), np.zeros(len(params['bias']), np.int64)
  for block in feature_splits.row_blocks(len(rows), _BLOCK):
    examples = rows[block]
    correct += jax.device_get(
      _count_correct(params, features.values[examples], features.labels[examples])
    )
  return correct / len(rows)


def _is_finite(params: Params, i: int) -> bool:
  return all(np.isfinite(values[i]).all() for values in params.values())


def _report_diverged(rates: Sequence[float], is_finite: np.ndarray) -> None:
  """Prints a warning that names the rates that diverged; raises `UserError` if all did."""
  names = ', '.join(f'{rate:g}' for rate, fine in zip(rates, is_finite, strict=True) if not fine)
  if not is_finite.any():
    raise UserError(f'The linear probe diverged at every learning rate ({names}); lower them.')
  if names and jax.process_index() == 0:
    count = plural(int((~is_finite).sum()), 'learning rate')
    text = f'warning: the linear probe diverged at {count} ({names}), left out.'
    print(text, file=sys.stderr, flush=True)
