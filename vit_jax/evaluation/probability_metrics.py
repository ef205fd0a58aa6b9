"""Calibration of probabilities, and precision of the scores of several labels."""

import numpy as np

_NUM_BINS = 15


def calibration_bins(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
  """Counts the examples of 15 bins of the confidence, for a reliability diagram.

  Args:
    confidence, correct: as for `calibration_error`; finite.

  Returns:
    (3, 15) float64, for each bin the number of its examples, the number of the correct ones, and
    the sum of their confidences.
  """
  confidence = confidence.astype(np.float64)
  bins = np.clip(np.ceil(confidence * _NUM_BINS).astype(int) - 1, 0, _NUM_BINS - 1)
  weights = (np.ones_like(confidence), correct, confidence)
  return np.stack([np.bincount(bins, each, _NUM_BINS) for each in weights])


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
  """The expected calibration error: 15 bins of equal width (Guo et al., arXiv 1706.04599).

  Args:
    confidence: (N,) in [0, 1], the probability of the top class. A bin has those above its lower
      edge, up to its upper one; the first has 0, too.
    correct: (N,) bool.

  Returns:
    The mean over the examples of the distance between the accuracy of their bin and its mean
    confidence, in [0, 1]; NaN for a confidence that is not finite.
  """
  if not np.isfinite(confidence).all():
    return float('nan')
  _, num_correct, sums = calibration_bins(confidence, correct)
  return float(np.abs(num_correct - sums).sum() / len(confidence))


def mean_average_precision(labels: np.ndarray, scores: np.ndarray) -> float | None:
  """The mean of the classes' average precisions, as scikit-learn defines that of one class.

  Args:
    labels: (N, C) of zeros and ones.
    scores: (N, C) float; a larger one ranks an example higher.

  Returns:
    The mean over the classes that have examples, in [0, 1]; None without any; NaN for a score that
    is not finite.
  """
  from sklearn.metrics import average_precision_score  # which takes a second to import

  classes = np.flatnonzero(labels.any(axis=0))
  if not np.isfinite(scores).all():
    return float('nan')
  precisions = [average_precision_score(labels[:, c], scores[:, c]) for c in classes]
  return float(np.mean(precisions)) if precisions else None
