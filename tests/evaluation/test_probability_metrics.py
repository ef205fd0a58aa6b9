"""Calibration equals a direct count, the mean average precision scikit-learn's."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vit_jax.evaluation.probability_metrics import (
  calibration_bins,
  calibration_error,
  mean_average_precision,
)

RNG = np.random.default_rng(0)


def test_calibration_equals_a_direct_count():
  confidence = np.float32(RNG.random(500))
  confidence[:4] = 0, 1, 1 / 3, 0.2  # 1/3 and 1/5 end a bin
  correct = RNG.random(500) < confidence**2
  total = 0.0
  for m in range(15):
    inside = [
      i for i, p in enumerate(confidence) if m / 15 < p <= (m + 1) / 15 or (m == 0 and p == 0)
    ]
    if inside:
      gap = np.mean(correct[inside]) - np.mean(confidence[inside], dtype=float)
      total += len(inside) / 500 * abs(gap)
  assert calibration_error(confidence, correct) == pytest.approx(total, rel=1e-12)


def test_bins_count_their_examples():
  confidence = np.float32([0, 0.05, 0.5, 0.52, 1])
  bins = calibration_bins(confidence, np.array([False, True, True, True, False]))
  assert bins.shape == (3, 15)
  np.testing.assert_allclose(bins[:, [0, 7, 14]], [[2, 2, 1], [1, 2, 0], [0.05, 1.02, 1]])
  assert bins[0].sum() == 5


def test_a_perfect_and_a_blind_model():
  assert calibration_error(np.float32([1, 1]), np.array([True, True])) == 0
  assert calibration_error(np.float32([1, 1]), np.array([False, False])) == 1
  assert math.isnan(calibration_error(np.float32([1, np.nan]), np.array([True, True])))


def test_average_precision_is_that_of_sklearn():
  labels = RNG.integers(0, 2, (40, 4), dtype=np.uint8)
  scores = np.float32(RNG.integers(0, 9, (40, 4)))  # with ties
  expected = average_precision_score(labels, scores, average='macro')
  assert mean_average_precision(labels, scores) == pytest.approx(expected)
  without = np.concatenate([labels, np.zeros((40, 1), np.uint8)], axis=1)  # a class without images
  more = np.concatenate([scores, np.ones((40, 1), np.float32)], axis=1)
  assert mean_average_precision(without, more) == pytest.approx(expected)
  assert mean_average_precision(labels * 0, scores) is None
  assert math.isnan(mean_average_precision(labels, scores * np.nan) or 0)
