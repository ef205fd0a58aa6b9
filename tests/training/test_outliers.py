"""Updates with outlying gradient norms leave parameters and moments alone, and are counted."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import BATCH, KEY, assert_same_tree, first_state, jit, make_model
from vit_jax.config import OptimizerConfig, StepConfig
from vit_jax.training.optimizer import make_optimizer
from vit_jax.training.outliers import OutlierState, skip_outliers
from vit_jax.training.step import TrainState, make_train_step

PARAMS = {'kernel': jnp.ones((2, 2))}


def rate(step):
  return 0.1 / (1 + jnp.asarray(step, jnp.float32))


def gradient(norm):
  return {'kernel': jnp.full((2, 2), norm / 2, jnp.float32)}


def run_updates(norms, factor=3.0, decay=0.75):
  """Applies gradients of these norms; returns the updates and the states after each."""
  optimizer = skip_outliers(optax.sgd(rate, momentum=0.9), factor, decay)
  state, history, update = optimizer.init(PARAMS), [], jax.jit(optimizer.update)
  for norm in norms:
    updates, state = update(gradient(norm), state)
    history.append((updates, state))
  return history


def skipped(history):
  return [int(state[-1].skipped) for _, state in history]


def test_an_outlier_changes_no_moment_and_the_learning_rate_goes_on():
  history = run_updates([1, 1, 1, 1, 50, 1])
  assert skipped(history) == [0, 0, 0, 0, 1, 1]
  assert [int(state[-1].skipped_in_a_row) for _, state in history] == [0, 0, 0, 0, 1, 0]
  assert not np.any(history[4][0]['kernel'])
  assert_same_tree(history[4][1][0], history[3][1][0])  # momentum
  assert int(history[4][1][1].count) == 5  # of the schedule
  # As plain SGD without that gradient, at the learning rate of the sixth step.
  momentum = 0.5 * sum(0.9**i for i in range(5))
  np.testing.assert_allclose(history[5][0]['kernel'], -rate(5) * momentum, rtol=1e-6)


def test_the_first_norms_only_make_the_mean():
  assert skipped(run_updates([1, 1, 1, 50]))[-1] == 0
  assert skipped(run_updates([1, 1, 1, 1, 50]))[-1] == 1
  assert skipped(run_updates([1, 1, 1, 1, 2.9]))[-1] == 0  # the mean is 1


def test_a_lasting_change_of_the_norms_ends_the_skipping():
  history = run_updates([1] * 4 + [50] * 12)
  assert 0 < skipped(history)[-1] < 12
  assert int(history[-1][1][-1].skipped_in_a_row) == 0


@pytest.mark.parametrize('norm', [np.nan, np.inf])
def test_a_norm_that_is_not_finite_leaves_the_mean(norm):
  history = run_updates([1, 1, 1, 1, norm, 1])
  assert skipped(history) == [0, 0, 0, 0, 1, 1]
  before, after = history[3][1][-1], history[4][1][-1]
  assert (after.sum_of_norms, after.num_norms) == (before.sum_of_norms, before.num_norms)
  assert np.all(np.isfinite(history[4][0]['kernel']))


def test_the_train_step_counts_skipped_updates():
  """A label that gives a large gradient: 1,000 times the loss."""
  config = OptimizerConfig(skip_factor=3.0, skip_decay=0.5)
  optimizer, start = make_optimizer(config, rate), first_state()
  state = TrainState(start.step, start.params, optimizer.init(start.params), None)
  step = jit(make_train_step(make_model(), optimizer, rate, StepConfig()))
  state, _ = step(state, BATCH, KEY)
  state, metrics = step(state, BATCH, KEY)
  assert metrics['train/skipped_updates'] == 0
  norms = state.opt_state[-1]._replace(sum_of_norms=jnp.float32(1e-6))  # so that all are outliers
  state = dataclasses.replace(state, opt_state=(*state.opt_state[:-1], norms))
  after, metrics = step(state, BATCH, KEY)
  assert metrics['train/skipped_updates'] == metrics['train/skipped_in_a_row'] == 1
  assert_same_tree(after.params, state.params)
  assert after.step == state.step + 1


def test_without_it_state_and_metrics_are_as_ever():
  optimizer, start = make_optimizer(OptimizerConfig(), rate), first_state()
  state: Any = optimizer.init(start.params)
  assert not any(isinstance(entry, OutlierState) for entry in state)
  state = TrainState(start.step, start.params, state, None)
  step = make_train_step(make_model(), optimizer, rate, StepConfig())
  _, metrics = jax.eval_shape(step, state, BATCH, KEY)
  assert not any('skipped' in name for name in metrics)
