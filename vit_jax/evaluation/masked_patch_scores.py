"""Exact scores of masked patch prediction: of single images, then summed and divided once."""

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, cast

import jax
import numpy as np

from vit_jax.errors import UserError
from vit_jax.evaluation.eval_step import run_batches
from vit_jax.models.masked_patches import MaskedPatchPredictor, draw_corruptions, score_patches
from vit_jax.models.pixels import scale_pixels


def make_masked_eval_step(
  model: MaskedPatchPredictor,
) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
  """Returns eval_step(params, batch) -> the scores of the B images; callers drop masked ones.

  The batch is {'image': (B, H, W, C) uint8, 'mask': (B,) bool, …}. The scores are arrays (B,), the
  same whatever the other images of the batch are, because the corruption of an image is a function
  of its pixels: 'mask', that of the batch; 'loss' and, except for pixels, 'accuracy', float32, as
  in `score_patches`.
  """

  def eval_step(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    images = batch['image']
    corruption = draw_corruptions(images, model.patch_size, key=None)
    predictions = model.apply({'params': params}, scale_pixels(images), corruption)
    loss, accuracy = score_patches(model, cast(jax.Array, predictions), images, corruption)
    scores = {'mask': batch['mask'], 'loss': loss}
    return scores if accuracy is None else scores | {'accuracy': accuracy}

  return eval_step


@dataclasses.dataclass(frozen=True)
class MaskedPatchResult:
  """The scores of a predictor.

  Attributes:
    examples: number of images scored.
    loss: mean over the images, of the means over their corrupted patches.
    accuracy: the same of the share of colors that are predicted; None where pixels are.
  """

  examples: int
  loss: float
  accuracy: float | None

  @property
  def score(self) -> float:
    """What the best checkpoint has the largest of."""
    return -self.loss

  @property
  def metrics(self) -> dict[str, float]:
    """What metrics.jsonl records."""
    accuracy = {} if self.accuracy is None else {'masked_patch_accuracy': self.accuracy}
    return {**accuracy, 'loss': self.loss, 'examples': self.examples}


def evaluate_masked_patches(
  eval_step: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any]
) -> MaskedPatchResult:
  """Scores every image once.

  Args:
    eval_step: as `make_masked_eval_step` makes it.
    params: the parameter tree.
    batches: padded and masked, as `DataLoader` yields them.

  Raises:
    UserError: if no image can be read.
    StoppedError: when the run must stop.
  """
  examples, sums = 0, collections.defaultdict(float)
  for scores in run_batches(eval_step, params, batches):
    mask = scores.pop('mask')
    examples += int(mask.sum())
    for name, values in scores.items():
      sums[name] += float(values[mask].sum(dtype=np.float64))
  if not examples:
    raise UserError('None of the test examples can be read, so there is nothing to score.')
  means = {name: total / examples for name, total in sums.items()}
  return MaskedPatchResult(examples, means['loss'], means.get('accuracy'))
