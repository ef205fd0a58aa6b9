"""The pure train step: accumulation, moving average, randomness."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import (
  BATCH,
  IMAGES,
  KEY,
  MULTI_HOT,
  assert_close,
  first_state,
  jit,
  make_model,
  rate,
)
from vit_jax.config import StepConfig
from vit_jax.training import step as step_lib


def make_step(
  accumulation_steps=1, ema_decay=0.0, ema_warmup=False, loss='softmax', smoothing=0.0, **fields
):
  train_step = step_lib.make_train_step(
    make_model(**fields),
    optax.sgd(rate, momentum=0.9),
    rate,
    StepConfig(
      batch_size=8,
      loss=loss,
      label_smoothing=smoothing,
      ema_decay=ema_decay,
      ema_warmup=ema_warmup,
      accumulation_steps=accumulation_steps,
    ),
  )
  return jit(train_step)


@pytest.fixture(scope='module')
def state():
  return first_state()


@pytest.fixture(scope='module')
def plain():
  return make_step()


@pytest.fixture(scope='module')
def with_dropout():
  return make_step(dropout_rate=0.5)


@pytest.fixture(scope='module')
def logits(state) -> np.ndarray:
  images = IMAGES.astype(np.float32) / 127.5 - 1
  return np.asarray(jit(make_model().apply)({'params': state.params}, images), float)


def equal(one, two) -> bool:
  return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, two)))


def test_first_state(state):
  assert (state.step, state.step.dtype) == (0, np.int32)
  assert state.ema_params is None and state.eval_params is state.params
  averaging = first_state(use_ema=True)
  assert equal(averaging.ema_params, state.params) and equal(averaging.params, state.params)


def test_first_parameters_are_a_function_of_the_seed():
  optimizer = optax.sgd(0.1)
  init = jit(lambda seed: step_lib.init_state(make_model(), optimizer, (8, 8, 3), seed).params)
  assert equal(init(0), init(0))
  assert not equal(init(0)['embedding'], init(1)['embedding'])


def test_loss_of_a_step(plain, state, logits):
  _, metrics = plain(state, BATCH, KEY)
  shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  expected = -np.log(shares[np.arange(8), BATCH['label']]).mean()
  np.testing.assert_allclose(metrics['train/loss'], expected, rtol=1e-5)


def test_sigmoid_loss_of_smoothed_multi_hot_labels(state, logits):
  train_step = make_step(loss='sigmoid', smoothing=0.3)
  _, metrics = train_step(state, {'image': IMAGES, 'label': MULTI_HOT}, KEY)
  share, wanted = 1 / (1 + np.exp(-logits)), MULTI_HOT * 0.7 + 0.1
  expected = -(wanted * np.log(share) + (1 - wanted) * np.log(1 - share)).sum(axis=-1).mean()
  np.testing.assert_allclose(metrics['train/loss'], expected, rtol=1e-5)


def test_steps_count_and_learn(plain, state):
  rates, losses = [], []
  for i in range(5):
    state, metrics = plain(state, BATCH, KEY)
    assert state.step == i + 1
    rates.append(metrics['train/learning_rate'])
    losses.append(metrics['train/loss'])
  np.testing.assert_allclose(rates, 0.1 / np.arange(1, 6), rtol=1e-6)
  assert losses[-1] < 0.9 * losses[0]
  assert {value.dtype for value in metrics.values()} == {np.dtype(np.float32)}


def test_the_reported_gradient_norm_is_that_of_the_update(plain, state):
  after, metrics = plain(state, BATCH, KEY)
  change = jax.tree.map(lambda a, b: np.square((b - a) / 0.1).sum(), state.params, after.params)
  norm = np.sqrt(sum(jax.tree.leaves(change)))
  np.testing.assert_allclose(norm, metrics['train/gradient_norm'], rtol=1e-4)


def test_step_is_a_pure_function(with_dropout, state):
  before = jax.tree.map(np.array, state)
  assert equal(with_dropout(state, BATCH, KEY), with_dropout(state, BATCH, KEY))
  assert equal(state, before)


def test_dropout_differs_by_step_number_and_by_key(with_dropout, state):
  def loss(state, key):
    return float(with_dropout(state, BATCH, key)[1]['train/loss'])

  numbers = {loss(state.replace(step=jnp.int32(i)), KEY) for i in range(3)}
  keys = {loss(state, jax.random.key(i)) for i in range(3)}
  assert len(numbers) == len(keys) == 3


def test_accumulation_gives_the_whole_batch(plain, state):
  accumulating = make_step(accumulation_steps=4)
  for _ in range(2):
    expected, wanted = plain(state, BATCH, KEY)
    actual, metrics = accumulating(state, BATCH, KEY)
    assert_close(metrics, wanted)
    assert_close(actual.params, expected.params)
    state = expected


def test_accumulated_parts_drop_different_units(with_dropout, state):
  """Eight parts average out the noise of dropout as well as eight rows do."""
  accumulating = make_step(accumulation_steps=8, dropout_rate=0.5)
  same = jax.tree.map(lambda x: np.repeat(x[:1], 8, axis=0), BATCH)
  keys = [jax.random.key(i) for i in range(30)]
  parts, rows = (
    np.std([float(train_step(state, same, key)[1]['train/loss']) for key in keys])
    for train_step in (accumulating, with_dropout)
  )
  assert 0.5 < parts / rows < 1.8  # 2.8 if all parts dropped the same


def test_moving_average_is_its_recurrence():
  train_step, state = make_step(ema_decay=0.8), first_state(use_ema=True)
  expected = jax.tree.map(np.array, state.ema_params)
  for _ in range(3):
    state, _ = train_step(state, BATCH, KEY)
    expected = jax.tree.map(lambda a, p: 0.8 * a + 0.2 * p, expected, state.params)
  assert_close(state.ema_params, expected)
  assert state.eval_params is state.ema_params
  assert not equal(state.ema_params, state.params)


def test_warmup_of_the_moving_average_is_its_recurrence():
  """As tf.train.ExponentialMovingAverage(0.3, num_updates=t): 2/11, 3/12, then 0.3."""
  train_step, state = make_step(ema_decay=0.3, ema_warmup=True), first_state(use_ema=True)
  expected = jax.tree.map(np.array, state.ema_params)
  for t in range(1, 5):
    state, _ = train_step(state, BATCH, KEY)
    decay = [2 / 11, 3 / 12, 0.3, 0.3][t - 1]
    expected = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, expected, state.params)  # noqa: B023
  assert_close(state.ema_params, expected)
