"""What the evaluations on frozen features share: checks, examples by class, linear classifiers.

Shapes: N examples, D width of the features, C classes.
"""

from collections.abc import Iterator

import numpy as np

from vit_jax import signals
from vit_jax.distributed.processes import check_stop
from vit_jax.errors import UserError
from vit_jax.evaluation.probes.frozen_features import Features
from vit_jax.text import plural

_HELD_OUT = 0.1


def row_blocks(num_rows: int, size: int) -> Iterator[slice]:
  """Slices of at most `size` rows; Ctrl-C or SIGTERM ends the loop over them."""
  for start in range(0, num_rows, size):
    signals.check_interrupted()
    check_stop()
    yield slice(start, min(start + size, num_rows))


def check_splits(train: Features, test: Features) -> None:
  """Checks that a classifier of the train examples can be tested on the test examples.

  Raises:
    UserError: for splits that are empty, differ in their classes or have the same examples, and
      for features that are not finite.
  """
  for features in (train, test):
    if not len(features.labels):
      raise UserError(f'{features.name} has no examples, so nothing can be evaluated on it.')
    for rows in row_blocks(len(features.labels), 16_384):
      finite = np.isfinite(features.values[rows]).all(axis=1)
      if not finite.all():
        example = rows.start + int(np.argmin(finite))
        raise UserError(
          f'The features of example {example} of {features.name} are not finite; '
          'check the weights of the model.'
        )
  if train.num_classes != test.num_classes:
    raise UserError(
      f'{train.name} has {plural(train.num_classes, "class")}, '
      f'but {test.name} has {test.num_classes}.'
    )
  if _are_equal(train, test):
    raise UserError(
      f'{train.name} and {test.name} are the same {plural(len(test.labels), "example")}; '
      'test on a split that is not trained on.'
    )


def _are_equal(train: Features, test: Features) -> bool:
  if train.values.shape != test.values.shape or not np.array_equal(train.labels, test.labels):
    return False
  blocks = row_blocks(len(train.labels), 16_384)
  return all(np.array_equal(train.values[rows], test.values[rows]) for rows in blocks)


def indices_by_class(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
  """The indices of the examples of each class, ascending."""
  order = np.argsort(labels, kind='stable')
  return np.split(order, np.searchsorted(labels[order], np.arange(1, num_classes)))


def held_out(train: Features, seed: int = 0) -> np.ndarray:
  """Holds out a tenth of each class, at random: (N,) bool.

  At least one of a class with two examples, none of a class with one.

  Raises:
    UserError: if no class has two examples.
  """
  rng = np.random.default_rng(seed)
  chosen = np.zeros(len(train.labels), bool)
  for indices in indices_by_class(train.labels, train.num_classes):
    count = max(round(_HELD_OUT * len(indices)), min(len(indices) - 1, 1), 0)
    chosen[rng.permutation(indices)[:count]] = True
  if not chosen.any():
    raise UserError(
      f'{train.name} has no class with two examples, so none can be held out to choose '
      'how to train a probe.'
    )
  return chosen


def linear_accuracy(features: Features, kernel: np.ndarray, bias: np.ndarray) -> float:
  """The accuracy of a linear classifier, computed in float64; of equal scores the first wins.

  Args:
    features: the N examples.
    kernel: (D, C).
    bias: (C,).
  """
  kernel, bias = kernel.astype(np.float64), bias.astype(np.float64)
  correct = 0
  for rows in row_blocks(len(features.labels), 4_096):
    scores = features.values[rows].astype(np.float64) @ kernel + bias
    correct += int(np.count_nonzero(scores.argmax(axis=1) == features.labels[rows]))
  return correct / len(features.labels)
