"""Exact classification accuracy: sums over masked batches, divided once; and what is confused."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from vit_jax import signals
from vit_jax.distributed.processes import check_stop
from vit_jax.errors import UserError

_MAX_NAMED = 3  # confusions, and classes


@dataclasses.dataclass(frozen=True)
class Result:
  """The scores of a model.

  Attributes:
    examples: number of examples scored.
    correct: number of them whose top class is the label, or one of several labels.
    loss: mean over the examples.
    confusion_matrix: (label, top class) -> number of examples, where that is not zero; empty for
      multi-label data.
  """

  examples: int
  correct: int
  loss: float
  confusion_matrix: Mapping[tuple[int, int], int]

  @property
  def accuracy(self) -> float:
    return self.correct / self.examples

  @property
  def class_scores(self) -> dict[int, tuple[int, int]]:
    """Class -> (correct, examples), for classes that have examples."""
    examples: collections.Counter[int] = collections.Counter()
    for (label, _), count in self.confusion_matrix.items():
      examples[label] += count
    matrix = self.confusion_matrix
    return {label: (matrix.get((label, label), 0), examples[label]) for label in sorted(examples)}

  @property
  def metrics(self) -> dict[str, float]:
    """What metrics.jsonl records. The mean accuracy of the classes weighs all of them alike."""
    metrics = {'accuracy': self.accuracy}
    if scores := self.class_scores.values():
      metrics['mean_per_class_accuracy'] = sum(c / n for c, n in scores) / len(scores)
    return metrics | {'loss': self.loss, 'examples': self.examples}

  def confusions(self) -> list[tuple[int, int, int, int]]:
    """Returns (label, top class, count, examples of the label), the most frequent first."""
    scores = self.class_scores
    wrong = [
      (*pair, count, scores[pair[0]][1])
      for pair, count in self.confusion_matrix.items()
      if pair[0] != pair[1]
    ]
    return sorted(wrong, key=lambda each: (-each[2], each[3], *each[:2]))

  def mistakes(self, class_names: Sequence[str]) -> list[str]:
    """Returns two lines, the pairs most confused and the classes least recognized, or none."""
    pairs = [
      f'{class_names[label]} as {class_names[other]} ({count:,} of {total:,})'
      for label, other, count, total in self.confusions()[:_MAX_NAMED]
    ]
    if not pairs:
      return []
    scores = sorted(self.class_scores.items(), key=lambda each: each[1][0] / each[1][1])
    classes = [
      f'{class_names[label]} {correct / total:.0%} ({correct:,} of {total:,})'
      for label, (correct, total) in scores[:_MAX_NAMED]
      if correct < total
    ]
    return [f'most confused: {", ".join(pairs)}', f'lowest accuracy: {", ".join(classes)}']


def evaluate(eval_step: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any]) -> Result:
  """Scores every example once.

  Args:
    eval_step: (params, batch) -> the scores of a batch, as `make_eval_step` documents them.
    params: the parameter tree.
    batches: padded and masked, as `DataLoader` yields them.

  Raises:
    UserError: if no example can be read.
    StoppedError: when the run must stop.
  """
  examples, correct, loss = 0, 0, 0.0
  pairs: collections.Counter[tuple[int, int]] = collections.Counter()  # (label, top class)
  for batch in batches:
    signals.check_interrupted()
    scores = jax.device_get(eval_step(params, batch))
    examples += scores['examples'].item()
    correct += scores['correct'].item()
    loss += scores['loss'].item()
    if 'label' in scores:
      pairs.update(zip(scores['label'].tolist(), scores['top_class'].tolist(), strict=True))
    check_stop()
  if not examples:
    raise UserError('None of the test examples can be read, so there is nothing to score.')
  del pairs[-1, -1]  # padding and bad examples
  return Result(examples, correct, loss / examples, pairs)
