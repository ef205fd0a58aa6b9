"""SAM and GSAM: updates against plain NumPy, the radius, the same curve on every mesh."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from tests.helpers import (
  BATCH,
  IMAGES,
  KEY,
  SHARDED_MODEL,
  assert_close,
  first_state,
  jit,
  make_model,
  rate,
  train_on_noise,
)
from vit_jax.config import Config, ScheduleConfig, StepConfig, replace_fields
from vit_jax.errors import UserError
from vit_jax.training import step as step_lib
from vit_jax.training.optimizer import make_schedule
from vit_jax.training.sharpness import make_rho

RHO = 0.5
CURVE = {
  **SHARDED_MODEL,
  'total_steps': 3,
  'batch_size': 16,
  'sam_rho': 0.3,
  'sam_rho_min': 0.1,
  'gsam_alpha': 0.6,
  'model.dtype': 'float32',
  'optimizer.weight_decay': 0.1,
  'schedule.learning_rate': 0.01,
  'ema_decay': 0.9,
  'mixup_alpha': 0.5,
}


class SoftmaxRegression(nn.Module):
  num_classes: int = 3

  @nn.compact
  def __call__(self, images, deterministic=True, examples=None):
    return nn.Dense(self.num_classes, name='head')(images.reshape(len(images), -1))


def numpy_gradient(params, pixels, labels):
  kernel, bias = params
  logits = pixels @ kernel + bias[None]
  shares = np.exp(logits - logits.max(axis=1, keepdims=True))
  shares /= shares.sum(axis=1, keepdims=True)
  error = (shares - np.eye(3)[labels]) / len(labels)
  return [pixels.T @ error, error.sum(axis=0)]


def norm(arrays) -> float:
  return np.sqrt(sum(np.square(x).sum() for x in arrays))


def numpy_update(params, pixels, labels, rho, alpha, learning_rate):
  clean = numpy_gradient(params, pixels, labels)
  perturbed = [x + rho * g / norm(clean) for x, g in zip(params, clean, strict=True)]
  sharp = numpy_gradient(perturbed, pixels, labels)
  unit = [g / norm(sharp) for g in sharp]
  along = sum((a * b).sum() for a, b in zip(clean, unit, strict=True))
  orthogonal = [g - along * u for g, u in zip(clean, unit, strict=True)]
  grads = [g - alpha * o for g, o in zip(sharp, orthogonal, strict=True)]
  return [x - learning_rate * g for x, g in zip(params, grads, strict=True)], norm(grads)


@pytest.mark.parametrize('alpha', [0.0, 0.7])
def test_two_updates_are_those_of_numpy(alpha):
  rng = np.random.default_rng(2)
  arrays = [rng.normal(0, 0.1, (192, 3)), rng.normal(0, 0.1, 3)]
  params = {'head': dict(zip(('kernel', 'bias'), map(np.float32, arrays), strict=True))}
  optimizer = optax.sgd(rate)
  state = step_lib.init_state(SoftmaxRegression(), optimizer, (8, 8, 3), 0, params)
  config = StepConfig(batch_size=8, sam_rho=RHO, gsam_alpha=alpha)
  rho = lambda step: RHO / (1 + step)  # noqa: E731
  train_step = jit(step_lib.make_train_step(SoftmaxRegression(), optimizer, rate, config, rho))
  pixels = IMAGES.reshape(8, -1) / 127.5 - 1
  for i in range(2):
    state, metrics = train_step(state, BATCH, KEY)
    arguments = (pixels, BATCH['label'], RHO / (1 + i), alpha, float(rate(i)))
    arrays, gradient_norm = numpy_update(arrays, *arguments)
    np.testing.assert_allclose(metrics['train/gradient_norm'], gradient_norm, rtol=1e-4)
    np.testing.assert_allclose(state.params['head']['kernel'], arrays[0], atol=2e-6)
    np.testing.assert_allclose(state.params['head']['bias'], arrays[1], atol=2e-6)


def one_step(rho=None, alpha=0.0, **fields):
  optimizer = optax.sgd(rate, momentum=0.9)
  radius = None if rho is None else lambda step: rho
  config = StepConfig(batch_size=8, sam_rho=RHO, gsam_alpha=alpha)
  train_step = step_lib.make_train_step(make_model(**fields), optimizer, rate, config, radius)
  return jit(train_step)(first_state(), BATCH, KEY)


def test_the_reported_loss_is_that_of_the_unperturbed_parameters():
  _, plain = one_step()
  after, metrics = one_step(rho=1.0, alpha=0.5)
  np.testing.assert_allclose(metrics['train/loss'], plain['train/loss'], rtol=1e-6)
  assert abs(metrics['train/gradient_norm'] / plain['train/gradient_norm'] - 1) > 0.01


def test_a_radius_of_zero_is_the_plain_update():
  (plain, _), (zero, _) = one_step(), one_step(rho=0.0)
  jax.tree.map(np.testing.assert_array_equal, zero.params, plain.params)


def test_both_gradients_drop_the_same_units():
  """With other draws the second gradient would be far from the first, however small the radius."""
  (plain, _), (near, _) = (one_step(rho, dropout_rate=0.5) for rho in (None, 1e-6))
  assert_close(near.params, plain.params, rtol=1e-3, atol=1e-5)


def test_the_radius_follows_the_learning_rate():
  schedule = ScheduleConfig(decay='linear', learning_rate=3e-3, end=3e-5, warmup_steps=10)
  rates = make_schedule(schedule, 110)
  rho = make_rho(StepConfig(sam_rho=0.6, sam_rho_min=0.1), schedule, rates)
  # As google-research/big_vision computes it: rho_min + (rho_max - rho_min) (lr - lr_min) / (…).
  expected = [0.1 + 0.5 * (float(rates(i)) - 3e-5) / (3e-3 - 3e-5) for i in (0, 10, 60, 110)]
  np.testing.assert_allclose([rho(i) for i in (0, 10, 60, 110)], expected, rtol=1e-5)
  np.testing.assert_allclose(expected[1::2], [0.6, 0.1], rtol=1e-5)
  constant = make_rho(StepConfig(sam_rho=0.2), schedule, rates)
  assert {float(constant(i)) for i in (0, 10, 110)} == {np.float32(0.2)}
  assert make_rho(StepConfig(), schedule, rates) is None


@pytest.mark.skipif(jax.device_count() < 8, reason='written for eight devices')
def test_the_same_curve_on_every_mesh_and_with_accumulation():
  """The perturbation is that of the gradient of the whole batch."""
  one = train_on_noise({**CURVE, 'mesh.data': 1})[0]
  assert one[-1] != one[0]
  mesh = {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2, 'accumulation_steps': 2}
  np.testing.assert_allclose(train_on_noise({**CURVE, **mesh})[0], one, rtol=2e-5)


@pytest.mark.parametrize(
  ('fields', 'sentence'),
  [
    ({'gsam_alpha': 0.5}, 'gsam_alpha is 0.5; sam_rho is 0 .no SAM.; set sam_rho, or this field'),
    ({'sam_rho_min': 0.1}, 'sam_rho_min is 0.1; sam_rho is 0'),
    ({'sam_rho': 0.1, 'sam_rho_min': 0.2}, 'sam_rho_min is 0.2; it must be at most sam_rho=0.1'),
    ({'sam_rho': -1}, 'sam_rho is -1; it must be 0 or positive'),
  ],
)
def test_values_that_do_not_go_together_are_refused(fields, sentence):
  with pytest.raises(UserError, match=sentence):
    replace_fields(Config(), fields)


def test_passes_over_the_batch():
  assert (StepConfig().gradients_per_step, StepConfig(sam_rho=0.1).gradients_per_step) == (1, 2)
