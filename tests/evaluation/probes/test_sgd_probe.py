"""SGD at many learning rates equals NumPy's at each; the best one on held-out examples counts."""

import numpy as np
import pytest

from tests.helpers import clustered_features
from vit_jax.errors import UserError
from vit_jax.evaluation.probes import feature_splits, linear_probe, sgd_probe

TRAIN, TEST = clustered_features('train', 60), clustered_features('test', 45)


def numpy_fit(rows: np.ndarray, rate: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
  """Gradient descent with momentum on all rows at once, in float64."""
  x, y = TRAIN.values[rows].astype(np.float64), np.eye(3)[TRAIN.labels[rows]]
  kernel, bias = np.random.default_rng(0).normal(scale=0.01, size=(12, 3)), np.zeros(3)
  kernel_momentum = bias_momentum = 0.0
  for step in range(steps):
    exponentials = np.exp(x @ kernel + bias)
    errors = (exponentials / exponentials.sum(axis=1, keepdims=True) - y) / len(x)
    kernel_momentum = 0.9 * kernel_momentum + x.T @ errors
    bias_momentum = 0.9 * bias_momentum + errors.sum(axis=0)
    scaled = rate * len(x) / 256 * (1 + np.cos(np.pi * step / steps)) / 2
    kernel, bias = kernel - scaled * kernel_momentum, bias - scaled * bias_momentum
  return kernel, bias


def test_every_rate_equals_a_loop_in_numpy():
  rates, rows = (0.01, 0.1, 0.5), np.arange(5, 55)
  params = sgd_probe.fit(TRAIN, rows, rates, steps=20, batch_size=1_000, seed=0)
  for i, rate in enumerate(rates):
    kernel, bias = numpy_fit(rows, rate, 20)
    np.testing.assert_allclose(params['kernel'][i], kernel, atol=1e-5)
    np.testing.assert_allclose(params['bias'][i], bias, atol=1e-5)


def test_the_best_rate_on_the_held_out_examples_is_tested():
  rates = (1e-4, 0.3, 0.05)
  settings = {'steps': 20, 'batch_size': 1_000}
  metrics = sgd_probe.evaluate(TRAIN, TEST, learning_rates=rates, **settings)
  held_out = feature_splits.held_out(TRAIN)
  scores = {}
  for rate in sorted(rates):
    kernel, bias = numpy_fit(np.flatnonzero(~held_out), rate, 20)
    predictions = (TRAIN.values[held_out] @ kernel + bias).argmax(axis=1)
    scores[rate] = np.mean(predictions == TRAIN.labels[held_out])
  best = max(scores, key=lambda rate: scores[rate])
  kernel, bias = numpy_fit(np.flatnonzero(~held_out), best, 20)
  assert metrics == {
    'accuracy': np.mean((TEST.values @ kernel + bias).argmax(axis=1) == TEST.labels),
    'held_out_accuracy': scores[best],
    'learning_rate': best,
  }


def test_an_epoch_has_every_example_once():
  rows = np.arange(10, 21)
  batches = list(sgd_probe._batches(rows, 4, 11, np.random.default_rng(0)))
  assert {len(batch) for batch in batches} == {4}
  epochs = np.concatenate(batches).reshape(4, 11)
  assert (np.sort(epochs, axis=1) == rows).all() and (epochs[0] != epochs[1]).any()


def test_the_seed_decides():
  def kernel(seed):
    return sgd_probe.fit(TRAIN, np.arange(60), [0.1], 5, 16, seed)['kernel']

  np.testing.assert_array_equal(kernel(0), kernel(0))
  assert (kernel(0) != kernel(1)).any()


def test_a_rate_that_diverges_is_left_out_and_named(capsys):
  settings = {'steps': 10, 'batch_size': 1_000}
  metrics = sgd_probe.evaluate(TRAIN, TEST, learning_rates=[0.1], **settings)
  assert capsys.readouterr().err == ''
  with_others = sgd_probe.evaluate(TRAIN, TEST, learning_rates=[1e38, 0.1, 2e38], **settings)
  assert with_others == metrics
  warning = 'warning: the linear probe diverged at 2 learning rates (1e+38, 2e+38), left out.\n'
  assert capsys.readouterr().err == warning
  with pytest.raises(UserError, match=r'diverged at every learning rate \(1e\+38\); lower them'):
    sgd_probe.evaluate(TRAIN, TEST, learning_rates=[1e38], **settings)


def test_both_linear_probes_in_one_evaluation():
  settings = {'c_grid': [0.01], 'learning_rates': [0.1], 'steps': 3}
  metrics = linear_probe.evaluate(TRAIN, TEST, **settings)
  of_each = ('accuracy', 'held_out_accuracy')
  names = {f'{probe}_{name}' for probe in ('lbfgs', 'sgd') for name in of_each}
  assert metrics.keys() == {*names, 'lbfgs_c', 'sgd_learning_rate'}
  only_sgd = linear_probe.evaluate(TRAIN, TEST, **{**settings, 'c_grid': []})
  assert only_sgd == {name: metrics[name] for name in metrics if name.startswith('sgd')}
