"""The step that scores one batch, example by example, and running a step on all batches."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import signals
from vit_jax.distributed.processes import check_stop
from vit_jax.models.build import Model
from vit_jax.models.losses import LOSSES, targets
from vit_jax.models.pixels import scale_pixels

TOP_K = 5
# The scores of more classes are not returned; of 2,048 they have 8 kB an example.
MAX_SCORED_CLASSES = 2048
# Logits to scores that rank the examples of a class: log probabilities, which do not saturate.
_SCORES = {'softmax': jax.nn.log_softmax, 'sigmoid': jax.nn.log_sigmoid}
_PROBABILITIES = {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}


def make_eval_step(
  model: Model,
  loss: str,
  class_subset: tuple[int, ...] | None = None,
  to_logits: Callable[[jax.Array], jax.Array] = lambda outputs: outputs,
) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
  """Returns eval_step(params, batch) -> the scores of the B examples, without `jit` and shardings.

  The batch is {'image': (B, H, W, C) uint8, 'label': (B,) int32 or (B, classes) uint8, 'mask':
  (B,) bool}; callers drop masked examples. The scores are arrays (B,), the same whatever the other
  examples of the batch are:

    mask: bool, that of the batch.
    label: int32 (only for one label per example).
    top_class: int32.
    correct: bool, whether the top class is the label, or one of several.
    top_5_correct: bool, whether one of the five top classes is; all classes if there are fewer.
    loss: float32.
    confidence: float32, the probability of the top class.

  For several labels per example, of at most `MAX_SCORED_CLASSES` classes, also 'labels' (B,
  classes) uint8 and 'scores' (B, classes) float32, log probabilities.

  Args:
    model: with its head.
    loss: a key of LOSSES.
    class_subset: the outputs that are scored, in the order of the classes of the data; all others
      are left out before anything is computed. None: all outputs, in their order.
    to_logits: from the outputs of the model (B, D) to logits (B, C).
  """
  indices = None if class_subset is None else np.array(class_subset, np.int32)

  def eval_step(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    labels = batch['label']
    outputs = model.apply({'params': params}, scale_pixels(batch['image']))
    logits = to_logits(cast(jax.Array, outputs))
    logits = logits if indices is None else logits[:, indices]
    num_classes = logits.shape[1]
    _, top = jax.lax.top_k(logits, min(TOP_K, num_classes))
    if labels.ndim == 1:
      is_label = top == labels[:, None]
    else:
      is_label = jnp.take_along_axis(labels, top, axis=1) > 0
    confidence = jnp.take_along_axis(_PROBABILITIES[loss](logits), top[:, :1], axis=1)
    scores = {
      'mask': batch['mask'],
      'top_class': top[:, 0],
      'correct': is_label[:, 0],
      'top_5_correct': is_label.any(axis=1),
      'loss': LOSSES[loss](logits, targets(labels, num_classes)),
      'confidence': confidence[:, 0],
    }
    if labels.ndim == 1:
      return scores | {'label': labels}
    if num_classes <= MAX_SCORED_CLASSES:
      scores |= {'labels': labels, 'scores': _SCORES[loss](logits)}
    return scores

  return eval_step


def run_batches(
  step: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any]
) -> Iterator[dict[str, Any]]:
  """Yields what a step returns for each batch, as NumPy arrays.

  They are fetched once the next batch is running, so that the devices do not wait for this process.

  Args:
    step: (params, batch) -> a dict of arrays that are on all devices; jitted.
    params: the parameter tree.
    batches: padded and masked, as `DataLoader` yields them.

  Raises:
    StoppedError: when the run must stop.
  """
  previous = None
  for batch in batches:
    signals.check_interrupted()
    current = step(params, batch)
    if previous is not None:
      yield jax.device_get(previous)
    previous = current
    check_stop()
  if previous is not None:
    yield jax.device_get(previous)
