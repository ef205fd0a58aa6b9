"""Logistic regression equals scikit-learn's at the same C, and chooses C on a held-out tenth."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.helpers import clustered_features
from vit_jax.evaluation.probes import feature_splits, logistic_regression
from vit_jax.evaluation.probes.frozen_features import Features

TRAIN, TEST = clustered_features('train', 90), clustered_features('test', 45)


def scikit_learns(train: Features, c: float) -> LogisticRegression:
  solver = LogisticRegression(C=c, tol=1e-12, max_iter=1_000)
  return solver.fit(train.values.astype(np.float64), train.labels)


def subset(features: Features, rows: np.ndarray) -> Features:
  return dataclasses.replace(features, values=features.values[rows], labels=features.labels[rows])


@pytest.mark.parametrize('c', [1e-4, 1e-2])
def test_the_solution_equals_scikit_learns(c, monkeypatch):
  monkeypatch.setattr(logistic_regression, '_BLOCK', 40)
  kernel, bias = logistic_regression.fit(TRAIN, c, tolerance=1e-10)
  assert kernel.dtype == bias.dtype == np.float64
  expected = scikit_learns(TRAIN, c)
  np.testing.assert_allclose(kernel, expected.coef_.T, atol=1e-6)
  np.testing.assert_allclose(
    bias - bias[0], expected.intercept_ - expected.intercept_[0], atol=1e-5
  )
  assert not jax.config.jax_enable_x64


def test_c_is_chosen_on_the_held_out_examples_and_all_are_trained_on():
  grid = (1e-5, 1e-3, 1e-2)
  metrics = logistic_regression.evaluate(TRAIN, TEST, c_grid=grid, tolerance=1e-8)
  is_held_out = feature_splits.held_out(TRAIN)
  part, held_out = subset(TRAIN, ~is_held_out), subset(TRAIN, is_held_out)
  scores = []
  for c in grid:
    log_probabilities = scikit_learns(part, c).predict_log_proba(held_out.values)
    accuracy = np.mean(log_probabilities.argmax(axis=1) == held_out.labels)
    scores.append((accuracy, log_probabilities[np.arange(9), held_out.labels].mean()))
  best = grid[scores.index(max(scores))]
  assert metrics == {
    'accuracy': scikit_learns(TRAIN, best).score(TEST.values, TEST.labels),
    'held_out_accuracy': max(scores)[0],
    'c': best,
  }
  assert best != grid[0]


def test_a_class_without_train_examples_is_never_predicted():
  train = subset(TRAIN, TRAIN.labels != 1)
  kernel, bias = logistic_regression.fit(train, 1e-2, tolerance=1e-8)
  classifier = scikit_learns(train, 2e-2)  # of two classes its C is twice ours
  np.testing.assert_allclose(kernel[:, 2] - kernel[:, 0], classifier.coef_[0], atol=1e-3)
  expected = classifier.predict(TEST.values)
  np.testing.assert_array_equal((TEST.values @ kernel + bias).argmax(axis=1), expected)
  metrics = logistic_regression.evaluate(train, TEST, c_grid=[1e-2], tolerance=1e-8)
  assert metrics['accuracy'] == np.mean(expected == TEST.labels)


def test_neither_order_nor_numbering_matters():
  order = np.random.default_rng(0).permutation(90)
  numbers = np.array([2, 0, 1], np.int32)
  kernel, bias = logistic_regression.fit(TRAIN, 1e-2, tolerance=1e-10)
  other = dataclasses.replace(subset(TRAIN, order), labels=numbers[TRAIN.labels[order]])
  other_kernel, other_bias = logistic_regression.fit(other, 1e-2, tolerance=1e-10)
  np.testing.assert_allclose(other_kernel[:, numbers], kernel, atol=1e-6)
  np.testing.assert_allclose(other_bias[numbers] - other_bias[2], bias - bias[0], atol=1e-5)
