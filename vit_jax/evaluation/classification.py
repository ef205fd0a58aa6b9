"""Exact classification scores: of single examples, then counted and divided once; confusions."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.data.sources import Source
from vit_jax.errors import UserError
from vit_jax.evaluation.eval_step import MAX_SCORED_CLASSES, run_batches
from vit_jax.evaluation.probability_metrics import calibration_error, mean_average_precision

_MAX_NAMED = 3  # confusions, and classes
_MAX_SCORES = 2**29  # that are kept for the mean average precision: 2 GiB, and 0.5 GiB of labels


@dataclasses.dataclass(frozen=True)
class ExampleScores:
  """The scores of the N examples that could be read, in the order of the data.

  Attributes:
    index: (N,) int64, of the example in its source.
    top_class: (N,) int32.
    correct: (N,) bool, whether the top class is the label, or one of several.
    top_5_correct: (N,) bool, whether one of the five top classes is.
    loss: (N,) float32.
    confidence: (N,) float32, the probability of the top class.
    label: (N,) int32; None for multi-label data.
    labels: (N, C) uint8 of multi-label data; None if C exceeds `MAX_SCORED_CLASSES`, or N * C 2^29.
    scores: (N, C) float32, log probabilities; None without labels.
  """

  index: np.ndarray
  top_class: np.ndarray
  correct: np.ndarray
  top_5_correct: np.ndarray
  loss: np.ndarray
  confidence: np.ndarray
  label: np.ndarray | None = None
  labels: np.ndarray | None = None
  scores: np.ndarray | None = None

  def select(self, keep: np.ndarray) -> 'ExampleScores':
    """The scores of the examples for which `keep`, (N,) bool, is True."""
    arrays = {name: x for name, x in vars(self).items() if x is not None}
    return ExampleScores(**{name: x[keep] for name, x in arrays.items()})


@dataclasses.dataclass(frozen=True)
class Result:
  """The scores of a model.

  Attributes:
    examples: number of examples scored.
    correct: number of them whose top class is the label, or one of several labels.
    loss: mean over the examples: the negative log-likelihood of the label or, of a sigmoid model,
      of all classes' zeros and ones.
    confusion_matrix: (label, top class) -> number of examples, where that is not zero; empty for
      multi-label data.
    top_5_correct: number of examples of which one of the five top classes is correct.
    calibration_error: see `calibration_error`.
    mean_average_precision: of multi-label data, in [0, 1]; None if it is not computed.
    rows: the scores of each example.
  """

  examples: int
  correct: int
  loss: float
  confusion_matrix: Mapping[tuple[int, int], int]
  top_5_correct: int | None = None
  calibration_error: float | None = None
  mean_average_precision: float | None = None
  rows: ExampleScores | None = dataclasses.field(default=None, repr=False, compare=False)

  @property
  def accuracy(self) -> float:
    return self.correct / self.examples

  @property
  def score(self) -> float:
    """What the best checkpoint has the largest of."""
    return self.accuracy

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
    metrics: dict[str, float | None] = {'accuracy': self.accuracy}
    if self.top_5_correct is not None:
      metrics['top_5_accuracy'] = self.top_5_correct / self.examples
    if scores := self.class_scores.values():
      metrics['mean_per_class_accuracy'] = sum(c / n for c, n in scores) / len(scores)
    metrics |= {
      'mean_average_precision': self.mean_average_precision,
      'loss': self.loss,
      'expected_calibration_error': self.calibration_error,
      'examples': self.examples,
    }
    return {name: value for name, value in metrics.items() if value is not None}

  def confusion_array(self, num_classes: int) -> np.ndarray:
    """The confusion matrix, (num_classes, num_classes) int64: rows labels, columns top classes."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for pair, count in self.confusion_matrix.items():
      matrix[pair] = count
    return matrix

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


def keeps_labels(source: Source) -> bool:
  """Whether `score_examples` keeps all labels: one per example, or several of few classes."""
  is_small = source.size * source.num_classes <= _MAX_SCORES
  return not source.multi_label or (is_small and source.num_classes <= MAX_SCORED_CLASSES)


def score_examples(
  eval_step: Callable[[Any, Any], Any],
  params: Any,
  batches: Iterable[Any],
  keep_scores: bool = True,
) -> ExampleScores:
  """Scores every example once.

  Args:
    eval_step: (params, batch) -> the scores of a batch, as `make_eval_step` documents them.
    params: the parameter tree.
    batches: padded and masked, as `DataLoader` yields them.
    keep_scores: whether the scores of all classes of multi-label data are kept.

  Raises:
    UserError: if no example can be read.
    StoppedError: when the run must stop.
  """
  parts: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  first, num_scores = 0, 0
  for scores in run_batches(eval_step, params, batches):
    mask = scores.pop('mask')
    num_scores += scores['labels'].size if 'labels' in scores else 0
    too_many = ('labels', 'scores') if num_scores > _MAX_SCORES else ()
    for name in too_many or (() if keep_scores else ('scores',)):
      scores.pop(name, None)
      parts.pop(name, None)
    scores['index'] = np.arange(first, first + len(mask))
    first += len(mask)
    for name, values in scores.items():
      parts[name].append(values[mask])
  if not sum(map(len, parts['index'])):
    raise UserError('None of the test examples can be read, so there is nothing to score.')
  return ExampleScores(**{name: np.concatenate(arrays) for name, arrays in parts.items()})


def evaluate(eval_step: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any]) -> Result:
  """Scores every example once, as `score_examples`, and sums up."""
  rows = score_examples(eval_step, params, batches)
  precision, pairs = None, {}
  if rows.labels is not None and rows.scores is not None:
    precision = mean_average_precision(rows.labels, rows.scores)
    rows = dataclasses.replace(rows, scores=None)
  if rows.label is not None:
    counted = np.unique(np.stack([rows.label, rows.top_class]), axis=1, return_counts=True)
    pairs = {
      (label, top): count
      for (label, top), count in zip(*(x.T.tolist() for x in counted), strict=True)
    }
  return Result(
    len(rows.index),
    int(rows.correct.sum()),
    float(rows.loss.mean(dtype=np.float64)),
    pairs,
    int(rows.top_5_correct.sum()),
    calibration_error(rows.confidence, rows.correct),
    precision,
    rows,
  )
