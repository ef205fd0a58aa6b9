"""Few-shot regression equals an independent float64 solver, on the examples of big_vision."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from tests.helpers import clustered_features
from vit_jax.errors import UserError
from vit_jax.evaluation.probes import fewshot
from vit_jax.evaluation.probes.frozen_features import Features

TRAIN, TEST = clustered_features('train', 120), clustered_features('test', 60)


def reference_accuracy(train: Features, test: Features, shots: int, seed: int, l2: float) -> float:
  """The protocol, word by word, with scikit-learn's Ridge."""
  rng = np.random.default_rng(seed)
  rows = np.concatenate(
    [rng.permutation(np.where(train.labels == c)[0])[:shots] for c in range(train.num_classes)]
  )
  x = train.values[rows].astype(np.float64)
  mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5

  def design(values):
    return np.pad((values - mean) / std, ((0, 0), (0, 1)), constant_values=100.0)

  targets = np.where(train.labels[rows][:, None] == np.arange(train.num_classes), 1.0, -1.0)
  ridge = Ridge(alpha=l2, fit_intercept=False, solver='svd').fit(design(x), targets)
  return np.mean(ridge.predict(design(test.values)).argmax(axis=1) == test.labels)


@pytest.mark.parametrize('shots', [1, 2, 10])  # 3, 6 and 30 examples of width 12
@pytest.mark.parametrize('l2', [0.5, 2.0**10])
def test_accuracies_equal_those_of_ridge_regression(shots, l2):
  metrics = fewshot.evaluate(TRAIN, TEST, shots=[shots], seeds=(0, 5), l2=l2)
  expected = [reference_accuracy(TRAIN, TEST, shots, seed, l2) for seed in (0, 5)]
  assert 0.35 < metrics[f'accuracy_{shots}shot'] < 1
  assert metrics == {
    f'accuracy_{shots}shot': pytest.approx(np.mean(expected)),
    f'accuracy_{shots}shot_std': pytest.approx(np.std(expected, ddof=1)),
  }


@pytest.mark.parametrize('shots', [1, 3, 4, 5, 40])  # 13 unknowns of a class; 9, 12, 15 examples
@pytest.mark.parametrize('l2', [1e-3, 2.0**10])
def test_weights_solve_the_least_squares_problem(shots, l2):
  values = np.random.default_rng(shots).normal(3, 2, (3 * shots, 12)).astype(np.float32)
  values[:, 4] = 7  # constant
  kernel, bias = fewshot.fit(values, 3, l2)
  x = values.astype(np.float64)
  x = np.pad((x - x.mean(0)) / (x.std(0) + 1e-5), ((0, 0), (0, 1)), constant_values=100.0)
  targets = np.where(np.repeat(np.arange(3), shots)[:, None] == np.arange(3), 1.0, -1.0)
  system = np.concatenate([x, np.sqrt(l2) * np.eye(13)])
  weights = np.linalg.lstsq(system, np.concatenate([targets, np.zeros((13, 3))]))[0]
  np.testing.assert_allclose(values @ kernel + bias, x @ weights, atol=1e-9)


def test_the_penalty_is_the_best_one_on_examples_that_are_not_drawn():
  metrics = fewshot.evaluate(TRAIN, TEST, shots=[2, 5], seeds=[1], l2=None)
  rng = np.random.default_rng(1)
  draw = [rng.permutation(np.where(TRAIN.labels == c)[0]) for c in range(3)]
  rest = np.concatenate([indices[5:] for indices in draw])
  held_out = dataclasses.replace(TRAIN, values=TRAIN.values[rest], labels=TRAIN.labels[rest])
  for shots in (2, 5):
    grid = [2.0**power for power in range(6, 11)]
    scores = [reference_accuracy(TRAIN, held_out, shots, 1, l2) for l2 in grid]
    best = grid[int(np.argmax(scores))]
    assert metrics[f'l2_{shots}shot'] == best
    assert metrics[f'accuracy_{shots}shot'] == reference_accuracy(TRAIN, TEST, shots, 1, best)


def test_the_numbering_of_the_classes_does_not_matter():
  shuffled = np.array([2, 0, 1], np.int32)
  train, test = (dataclasses.replace(each, labels=shuffled[each.labels]) for each in (TRAIN, TEST))
  # All examples are drawn, so that both draws have the same ones.
  metrics = fewshot.evaluate(train, test, shots=[40])
  assert metrics == fewshot.evaluate(TRAIN, TEST, shots=[40])
  assert metrics['accuracy_40shot_std'] == 0


def test_too_few_examples_are_named():
  keep = np.flatnonzero((TRAIN.labels != 1) | (np.arange(120) < 12))
  train = dataclasses.replace(TRAIN, values=TRAIN.values[keep], labels=TRAIN.labels[keep])
  assert fewshot.evaluate(train, TEST, shots=[4]).keys() == {'accuracy_4shot', 'accuracy_4shot_std'}
  with pytest.raises(UserError, match='^Class 1 of train has 4 examples, fewer than 5 shots'):
    fewshot.evaluate(train, TEST, shots=[1, 5])
  with pytest.raises(UserError, match='drawn for 40 shots, so none are left to choose the L2'):
    fewshot.evaluate(TRAIN, TEST, shots=[40], l2=None)


def test_no_other_features_are_needed_than_those_of_the_examples_that_are_drawn():
  shots = (2, 5)
  drawn = fewshot.draw(TRAIN.labels, TRAIN.num_classes, shots)
  rows = drawn.rows
  assert 15 < len(rows) <= 3 * 5 * TRAIN.num_classes
  few = dataclasses.replace(TRAIN, values=TRAIN.values[rows], labels=TRAIN.labels[rows])
  assert fewshot.evaluate(few, TEST, shots=shots, drawn=drawn) == fewshot.evaluate(
    TRAIN, TEST, shots=shots
  )
