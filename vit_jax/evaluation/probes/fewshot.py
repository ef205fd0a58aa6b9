"""Few-shot accuracy: linear regression on the frozen features of a few examples of each class.

The few-shot accuracy of the paper (Section 4.1: regularized least squares to targets of -1 and 1,
in closed form), by the protocol of big_vision (`evaluators/fewshot_lsr.py`): features are
standardized by the mean and standard deviation (+1e-5) of the examples that are drawn, a constant
feature of 100 stands for the bias, the L2 penalty is 2^10. The same examples are drawn, if the
order of the split is the same; ours is solved in float64, theirs in float32.

Shapes: C classes, K shots, D width of the features.
"""

import dataclasses
import statistics
from collections.abc import Sequence

import numpy as np

from vit_jax.errors import UserError
from vit_jax.evaluation.probes import feature_splits
from vit_jax.evaluation.probes.frozen_features import Features
from vit_jax.text import plural

_BIAS_FEATURE = 100.0
_L2_GRID = (2.0**6, 2.0**7, 2.0**8, 2.0**9, 2.0**10)  # kauldron's (evals/fewshot_evaluator.py)
_MAX_HELD_OUT = 10_000  # as in kauldron's example, which holds out train[-10000:]


def evaluate(
  train: Features,
  test: Features,
  *,
  shots: Sequence[int] = (1, 5, 10, 25),
  seeds: Sequence[int] = (0, 1, 2),
  l2: float | None = 2.0**10,
  drawn: 'Drawn | None' = None,
) -> dict[str, float]:
  """Scores classifiers of a few examples of each class.

  Args:
    train: the examples to draw from.
    test: the examples to score.
    shots: numbers of examples of each class.
    seeds: of the draws; examples drawn for fewer shots are among those for more.
    l2: the penalty; None chooses the one of 2^6 to 2^10 that is best on train examples that are not
      drawn: equally many of each class where there are, 10,000 or fewer.
    drawn: which examples of the split `train` has; None: all.

  Returns:
    For each number K of shots `accuracy_{K}shot`, the mean over the seeds; with several seeds
    `accuracy_{K}shot_std`, their sample standard deviation; with `l2=None` the chosen `l2_{K}shot`.

  Raises:
    UserError: if a class has fewer train examples than shots, or if none are left to choose the
      penalty on; and as `feature_splits.check_splits`.
  """
  feature_splits.check_splits(train, test)
  labels = train.labels if drawn is None else drawn.labels
  check_shots(labels, train.num_classes, shots, train.name)
  draws = [_shuffled_by_class(labels, train.num_classes, seed) for seed in seeds]
  unused = [_held_out(train, draw, max(shots)) for draw in draws] if l2 is None else []
  metrics = {}
  for count in shots:
    examples = [_first(draw, count) for draw in draws]
    if drawn is not None:
      examples = [np.searchsorted(drawn.rows, rows) for rows in examples]
    penalty = l2
    if penalty is None:
      means = [statistics.fmean(_accuracies(train, examples, value, unused)) for value in _L2_GRID]
      penalty = _L2_GRID[int(np.argmax(means))]
      metrics[f'l2_{count}shot'] = penalty
    accuracies = _accuracies(train, examples, penalty, [test] * len(draws))
    metrics[f'accuracy_{count}shot'] = statistics.fmean(accuracies)
    if len(accuracies) > 1:
      metrics[f'accuracy_{count}shot_std'] = statistics.stdev(accuracies)
  return metrics


def _accuracies(
  train: Features, draws: Sequence[np.ndarray], l2: float, splits: Sequence[Features]
) -> list[float]:
  """The accuracy of the classifier of each draw on its split."""
  classifiers = [fit(train.values[rows], train.num_classes, l2) for rows in draws]
  pairs = zip(splits, classifiers, strict=True)
  return [feature_splits.linear_accuracy(split, *classifier) for split, classifier in pairs]


def fit(examples: np.ndarray, num_classes: int, l2: float) -> tuple[np.ndarray, np.ndarray]:
  """Solves the regression in closed form, by the smaller of its two systems.

  Args:
    examples: (C * K, D) features, those of class 0 first.
    num_classes: C.
    l2: the penalty.

  Returns:
    (D, C) kernel, (C,) bias, both float64, of features that are not standardized.
  """
  from scipy import linalg  # takes long to import

  x = examples.astype(np.float64)
  mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
  x = np.column_stack([(x - mean) / std, np.full(len(x), _BIAS_FEATURE)])
  num_rows, width = x.shape
  if num_rows >= width:  # (D + 1) x (D + 1)
    of_classes = x.reshape(num_classes, -1, width).sum(axis=1).T
    products = 2 * of_classes - x.sum(axis=0)[:, None]  # of x and the targets
    gram = x.T @ x
    gram[np.diag_indices(width)] += l2
    weights = linalg.solve(gram, products, assume_a='pos', overwrite_a=True)
  else:  # (C * K) x (C * K)
    targets = 2 * np.repeat(np.eye(num_classes), num_rows // num_classes, axis=0) - 1
    gram = x @ x.T
    gram[np.diag_indices(num_rows)] += l2
    weights = x.T @ linalg.solve(gram, targets, assume_a='pos', overwrite_a=True)
  kernel = weights[:-1] / std[:, None]
  return kernel, _BIAS_FEATURE * weights[-1] - mean @ kernel


def check_shots(labels: np.ndarray, num_classes: int, shots: Sequence[int], name: str) -> None:
  """Raises `UserError` if a class has fewer examples in `name`, its labels (N,), than shots."""
  counts = np.bincount(labels[labels >= 0], minlength=num_classes)
  rarest, most = int(counts.argmin()), max(shots)
  if counts[rarest] < most:
    raise UserError(
      f'Class {rarest} of {name} has {plural(int(counts[rarest]), "example")}, '
      f'fewer than {plural(most, "shot")}.'
    )


@dataclasses.dataclass(frozen=True)
class Drawn:
  """The examples that are drawn of a split, so that no others need features.

  Attributes:
    labels: (N,) of all its examples.
    rows: which are drawn, ascending.
  """

  labels: np.ndarray
  rows: np.ndarray


def draw(
  labels: np.ndarray, num_classes: int, shots: Sequence[int], seeds: Sequence[int] = (0, 1, 2)
) -> Drawn:
  """What `evaluate` draws of a split with these labels, (N,), for these shots and seeds."""
  draws = [_first(_shuffled_by_class(labels, num_classes, seed), max(shots)) for seed in seeds]
  return Drawn(labels, np.unique(np.concatenate(draws)))


def _shuffled_by_class(labels: np.ndarray, num_classes: int, seed: int) -> list[np.ndarray]:
  """The indices of each class in the order in which big_vision draws them for a seed."""
  rng = np.random.default_rng(seed)
  by_class = feature_splits.indices_by_class(labels, num_classes)
  return [rng.permutation(indices) for indices in by_class]


def _first(by_class: Sequence[np.ndarray], count: int) -> np.ndarray:
  return np.concatenate([indices[:count] for indices in by_class])


def _held_out(train: Features, draw: Sequence[np.ndarray], most_shots: int) -> Features:
  """Examples that are drawn for no number of shots."""
  rows = _first([indices[most_shots:] for indices in draw], max(_MAX_HELD_OUT // len(draw), 1))
  if not len(rows):
    raise UserError(
      f'All examples of {train.name} are drawn for {plural(most_shots, "shot")}, so none are left '
      'to choose the L2 penalty on; set it, or ask for fewer shots.'
    )
  return dataclasses.replace(train, values=train.values[rows], labels=train.labels[rows])
