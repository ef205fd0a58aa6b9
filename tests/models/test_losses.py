"""Losses, targets and correct predictions, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.losses import LOSSES, targets

LOGITS = np.random.default_rng(0).normal(0, 3, (6, 4)).astype(np.float32)
LABELS = np.array([0, 3, 1, 2, 2, 0], np.int32)
MULTI_HOT = np.array(
  [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1], [1, 0, 1, 0]], np.uint8
)


def softmax(logits, labels):
  exponentials = np.exp(logits.astype(float))
  probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
  return -(labels * np.log(probabilities)).sum(axis=-1)


def sigmoid(logits, labels):
  probabilities = 1 / (1 + np.exp(-logits.astype(float)))
  log_likelihood = labels * np.log(probabilities) + (1 - labels) * np.log(1 - probabilities)
  return -log_likelihood.sum(axis=-1)


@pytest.mark.parametrize('labels', [LABELS, MULTI_HOT], ids=['classes', 'multi-hot'])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize(('name', 'formula'), [('softmax', softmax), ('sigmoid', sigmoid)])
def test_losses_are_their_formulas(name, formula, smoothing, labels):
  multi_hot = np.eye(4)[labels] if labels.ndim == 1 else labels
  expected = multi_hot * (1 - smoothing) + smoothing / 4
  smoothed = targets(jnp.asarray(labels), 4, smoothing)
  assert smoothed.dtype == np.float32
  np.testing.assert_allclose(smoothed, expected, rtol=1e-6)
  loss = LOSSES[name](LOGITS, smoothed)
  assert (loss.shape, loss.dtype) == ((6,), np.float32)
  np.testing.assert_allclose(loss, formula(LOGITS, expected), rtol=1e-5)


def test_smoothed_class_targets_sum_to_one():
  smoothed = targets(jnp.asarray(LABELS), 4, 0.3)
  np.testing.assert_allclose(smoothed.sum(axis=-1), np.ones(6), rtol=1e-6)
  np.testing.assert_allclose(smoothed.max(axis=-1), np.full(6, 0.7 + 0.3 / 4), rtol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
def test_losses_and_gradients_stay_finite_for_large_logits(name):
  logits = jnp.float32([[1e4, -1e4, 0.0]])
  for label in range(3):
    one_hot = targets(jnp.int32([label]), 3)
    value, gradient = jax.value_and_grad(lambda x, y=one_hot: LOSSES[name](x, y).sum())(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()
