"""ImageNet-ReaL (arXiv 2006.07159): an image is correct if the top class is one of its labels."""

from collections.abc import Callable, Iterable
from typing import Any

from vit_jax.errors import UserError
from vit_jax.evaluation.classification import ExampleScores, score_examples


def evaluate(
  eval_step: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any]
) -> tuple[dict[str, float], ExampleScores]:
  """Scores the images that have a label.

  Args:
    eval_step: of the 1,000 classes, as for `score_examples`.
    params: the parameter tree.
    batches: of a source `with_real_labels`.

  Returns:
    ({'accuracy', 'examples', 'examples_without_label'}, the scores of the images with a label). The
    loss and the confidence say nothing about several labels and are no metrics.

  Raises:
    UserError: if there is no image with a label.
    StoppedError: when the run must stop.
  """
  rows = score_examples(eval_step, params, batches, keep_scores=False)
  assert rows.labels is not None  # 50,000 images of 1,000 classes are below its limit
  scored = rows.select(rows.labels.any(axis=1))
  examples, total = len(scored.index), len(rows.index)
  if not examples:
    raise UserError('None of the images has a ReaL label, so there is nothing to score.')
  accuracy = int(scored.correct.sum()) / examples
  metrics = {'accuracy': accuracy, 'examples': examples, 'examples_without_label': total - examples}
  return metrics, scored
