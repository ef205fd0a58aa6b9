"""Schedules against their formulas, optimizers, and the golden fine-tuning trajectory."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vit_jax
from tests.helpers import GOLDEN
from vit_jax.config import OptimizerConfig, ScheduleConfig, load_config
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.losses import softmax_cross_entropy, targets
from vit_jax.models.vit import VisionTransformer
from vit_jax.training.optimizer import decay_mask, make_optimizer, make_schedule
from vit_jax.weights.layouts import released

TOTAL, WARMUP, BASE = 40, 10, 0.2
STEPS = np.arange(TOTAL + 6)


def schedule(total_steps: int = TOTAL, **fields):
  defaults = {'learning_rate': BASE, 'warmup_steps': WARMUP, 'timescale': 20.0}
  config = ScheduleConfig(**(defaults | fields))
  return make_schedule(config, total_steps)


def optimizer(rate=0.1, **fields) -> optax.GradientTransformation:
  config = OptimizerConfig(**({'clip_norm': 0.0} | fields))
  return make_optimizer(config, lambda step: jnp.float32(rate))


def normal_like(tree, seed: int, scale: float = 1.0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: (scale * rng.normal(size=x.shape)).astype(np.float32), tree)


@pytest.fixture(scope='module')
def params():
  shapes = {'cls': (1, 1, 16), 'head': {'kernel': (16, 5), 'bias': (5,)}, 'norm': {'scale': (16,)}}
  zeros = jax.tree.map(np.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))
  return normal_like(zeros, seed=0)


@pytest.mark.parametrize('warmup', [0, WARMUP])
@pytest.mark.parametrize('cooldown', [0, 5])
@pytest.mark.parametrize(
  ('decay', 'formula'),
  [
    ('constant', lambda p, after: BASE + 0 * p),
    ('linear', lambda p, after: 0.01 + (BASE - 0.01) * (1 - p)),
    ('cosine', lambda p, after: BASE * (1 + np.cos(np.pi * p)) / 2),
    ('rsqrt', lambda p, after: BASE * np.sqrt(20 / (20 + after))),
  ],
)
def test_schedules_are_their_formulas(decay, formula, cooldown, warmup):
  after = np.maximum(STEPS - warmup, 0)
  expected = formula(np.clip(after / (TOTAL - warmup), 0, 1), after)
  if warmup:
    expected = expected * np.minimum(STEPS / warmup, 1)
  if cooldown:
    expected = expected * np.clip((TOTAL - STEPS) / cooldown, 0, 1)
  rate = schedule(decay=decay, end=0.01, cooldown_steps=cooldown, warmup_steps=warmup)
  actual = jax.jit(jax.vmap(rate))(STEPS)
  assert actual.dtype == np.float32
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-8)
  np.testing.assert_allclose(rate(7), expected[7], rtol=1e-5)  # a Python int will do


def test_the_landmarks_of_a_schedule():
  cosine = schedule(decay='cosine')
  actual = [float(cosine(step)) for step in (0, 5, 10, 25, 40)]
  np.testing.assert_allclose(actual, [0, 0.1, 0.2, 0.1, 0], atol=1e-7)


@pytest.mark.parametrize('warmup', [40, 41, -1])
def test_a_warmup_that_does_not_end_is_refused(warmup):
  with pytest.raises(UserError, match='config.schedule.warmup_steps'):
    schedule(warmup_steps=warmup)


def test_unknown_names_name_the_choices():
  with pytest.raises(UserError, match='cosine, linear, rsqrt, constant'):
    schedule(decay='step')
  with pytest.raises(UserError, match='adamw, sgd, adafactor'):
    optimizer(name='lion')


@pytest.mark.parametrize('pool', ['token', 'map'])
def test_only_kernels_are_decayed(pool):
  model = VisionTransformer(4, 16, 2, 24, 2, num_classes=3, pool=pool, pre_logits=8)
  mask = released.flatten(decay_mask(build.abstract_params(model, (8, 8))))
  assert {name for name, decayed in mask.items() if decayed} == {
    name for name in mask if name.endswith('/kernel')
  }
  assert mask['Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel'] and mask['head/kernel']
  assert not mask['Transformer/posembed_input/pos_embedding']
  assert not mask.get('cls') and not mask.get('MAPHead_0/probe')


@pytest.mark.parametrize('name', ['adamw', 'sgd', 'adafactor'])
def test_decay_is_decoupled_times_the_rate_and_on_kernels(name, params):
  opt = optimizer(name=name, weight_decay=0.25)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(opt.update)(zeros, opt.init(params), params)
  actual, kernels = released.flatten(updates), released.flatten(params)
  for tensor, update in actual.items():
    expected = -0.1 * 0.25 * kernels[tensor] if tensor.endswith('kernel') else 0 * kernels[tensor]
    np.testing.assert_allclose(update, expected, rtol=1e-5)


def follow(opt: optax.GradientTransformation, params, steps: int = 3):
  state, update = opt.init(params), jax.jit(opt.update)
  for step in range(steps):
    updates, state = update(normal_like(params, seed=step + 1), state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def test_adamw_is_that_of_optax(params):
  fields = dict(b1=0.8, b2=0.95, weight_decay=0.1)
  actual, _ = follow(optimizer(name='adamw', epsilon=1e-6, **fields), params)
  expected, _ = follow(optax.adamw(0.1, eps=1e-6, mask=decay_mask, **fields), params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), actual, expected)


def test_sgd_has_momentum_in_bfloat16(params):
  actual, state = follow(optimizer(name='sgd', b1=0.5), params, steps=2)
  first, second = (normal_like(params, seed=seed) for seed in (1, 2))
  expected = jax.tree.map(lambda p, g, h: p - 0.1 * (g + (h + 0.5 * g)), params, first, second)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), actual, expected)
  assert {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim} == {jnp.dtype(jnp.bfloat16)}
  assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
  ('name', 'default', 'second_moments'),
  [('adamw', 'float32', 4), ('sgd', 'bfloat16', 0), ('adafactor', 'bfloat16', 4 * 3)],
)
@pytest.mark.parametrize('momentum_dtype', ['auto', 'float32', 'bfloat16'])
def test_dtype_of_the_first_moment(name, default, second_moments, momentum_dtype, params):
  opt = optimizer(name=name, momentum_dtype=momentum_dtype)
  _, state = follow(opt, params, steps=2)
  expected = default if momentum_dtype == 'auto' else momentum_dtype
  counted = collections.Counter(leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim)
  first = collections.Counter({expected: 4})
  assert counted == first + collections.Counter({'float32': second_moments})


def test_adamw_with_a_bfloat16_first_moment_is_the_same_but_for_rounding(params):
  exact, rounded = (
    follow(optimizer(name='adamw', momentum_dtype=dtype), params, steps=5)[0]
    for dtype in ('float32', 'bfloat16')
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), exact, rounded)


def test_adafactor_factors_large_kernels_and_reduces_a_loss():
  rng = np.random.default_rng(0)
  inputs, wanted = rng.normal(size=(256, 64)), rng.normal(size=(64, 48))
  inputs, outputs = np.float32(inputs), np.float32(inputs @ wanted)
  params = {'kernel': jnp.zeros((64, 48)), 'bias': jnp.zeros(48)}
  opt = optimizer(rate=0.03, name='adafactor')
  state = opt.init(params)
  sizes = [leaf.size for leaf in jax.tree.leaves(state) if leaf.dtype == np.float32]
  assert max(sizes) == 64  # no second moment of 64 x 48

  def loss(params):
    return jnp.square(inputs @ params['kernel'] + params['bias'][None] - outputs).mean()

  @jax.jit
  def step(params, state):
    updates, state = opt.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  before = loss(params)
  for _ in range(60):
    params, state = step(params, state)
  assert loss(params) < 0.1 * before


def adafactor(gradients, factored: bool, limit: float, largest_decay: float):
  """Updates of a kernel (arXiv 1804.04235, Algorithms 3 to 5; 2106.04560, Section 3.4), float64."""
  rows = columns = square = momentum = 0.0
  for t, g in enumerate(gradients, 1):
    decay = min(1 - t**-0.8, largest_decay)
    mean = lambda old, new, decay=decay: decay * old + (1 - decay) * new  # noqa: E731
    if factored:
      rows = mean(rows, (g**2 + 1e-30).mean(axis=1, keepdims=True))
      columns = mean(columns, (g**2 + 1e-30).mean(axis=0, keepdims=True))
      square = rows * columns / rows.mean()
    else:
      square = mean(square, g**2 + 1e-30)
    update = g / np.sqrt(square)
    if limit:
      update = update / max(1, np.sqrt(np.mean(update**2)) / limit)
    momentum = 0.9 * momentum + 0.1 * update
    yield momentum


@pytest.mark.parametrize('limit', [0.0, 0.5, 1.0])
@pytest.mark.parametrize(('least', 'factored'), [(24, True), (25, False)])
@pytest.mark.parametrize('largest_decay', [0.5, 0.999])  # after two steps 0.43, after three 0.58
def test_adafactor_is_its_closed_form(limit, least, factored, largest_decay):
  params = {'kernel': np.zeros((40, 24), np.float32)}
  config = dict(max_update_rms=limit, min_dim_to_factor=least, b2=largest_decay)
  opt = optimizer(name='adafactor', momentum_dtype='float32', **config)
  actual, _ = follow(opt, params, steps=4)
  gradients = [np.float64(normal_like(params, seed + 1)['kernel']) for seed in range(4)]
  expected = -0.1 * sum(adafactor(gradients, factored, limit, largest_decay))
  np.testing.assert_allclose(actual['kernel'], expected, rtol=1e-4, atol=1e-5)


def test_the_optimizer_of_g14_is_that_of_big_vision():
  """Composed as its config says (train_vit_g.py): the decay is absolute there, in units of 8e-4."""
  config = load_config('configs/vit_g14.py')
  shapes = {'encoder': {'kernel': (48, 4, 40), 'bias': (40,)}, 'head': {'kernel': (40, 33)}}
  params = normal_like(jax.tree.map(np.zeros, shapes, is_leaf=lambda x: type(x) is tuple), seed=0)
  steps = 20  # of a schedule whose lengths are divided by 50,000
  shorter = dataclasses.replace(config.schedule, warmup_steps=2.0, timescale=2.0, cooldown_steps=5)
  ours = make_optimizer(config.optimizer, make_schedule(shorter, steps))

  def relative_rate(step):
    rate = jnp.minimum(1, step / 2) / jnp.sqrt(1 + jnp.maximum(step - 2, 0) / 2)
    return rate * jnp.minimum(1, (steps - step) / 5)

  def decay(name, factor):
    mask = {key: {x: x == 'kernel' and key == name for x in params[key]} for key in params}
    return optax.add_decayed_weights(0.03 * 8e-4 * factor, mask)

  theirs = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.scale_by_factored_rms(
      min_dim_size_to_factor=32,
      epsilon=1e-30,
      decay_rate_fn=lambda i, power: jnp.minimum(0.999, 1 - (jnp.float32(i) + 1) ** -power),
    ),
    optax.ema(0.9, debias=False, accumulator_dtype=jnp.bfloat16),
    optax.scale(8e-4),
    decay('head', 100),
    decay('encoder', 1),
    optax.scale_by_schedule(relative_rate),
    optax.scale(-1),
  )
  actual, expected = (follow(opt, params, steps)[0] for opt in (ours, theirs))
  changes = jax.tree.map(lambda a, b: a - b, expected, params)
  assert all(np.abs(change).max() > 1e-3 for change in jax.tree.leaves(changes))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), actual, expected)


@pytest.mark.parametrize(('size', 'factor'), [(8.0, 0.25), (1.0, 1.0)])
def test_gradients_are_clipped_by_their_global_norm(size, factor, params):
  gradients = normal_like(params, seed=1)
  norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradients)))
  gradients = jax.tree.map(lambda g: g * np.float32(size / norm), gradients)
  opt = optimizer(rate=1.0, name='sgd', b1=0.0, clip_norm=2.0)
  updates, _ = jax.jit(opt.update)(gradients, opt.init(params), params)
  jax.tree.map(
    lambda u, g: np.testing.assert_allclose(u, -factor * g, rtol=1e-5), updates, gradients
  )


def test_golden_fine_tuning_trajectory():
  golden = np.load(GOLDEN / 'finetune_trajectory.npz')
  files = [np.load(GOLDEN / f'finetune_images_{i}.npz')['images'] for i in range(2)]
  images = np.concatenate(files).astype(np.float32)
  labels = golden['labels'].astype(np.int32)
  vit = vit_jax.load(GOLDEN / 'finetune_init.npz')
  rate = schedule(total_steps=30, decay='cosine', learning_rate=0.03, warmup_steps=5)
  opt = make_optimizer(OptimizerConfig(name='sgd', clip_norm=1.0), rate)

  def loss(params, images, labels):
    logits = vit.model.apply({'params': params}, images, deterministic=False)
    return softmax_cross_entropy(logits, targets(labels, 7)).mean()

  @jax.jit
  def step(params, state, images, labels):
    value, gradients = jax.value_and_grad(loss)(params, images, labels)
    updates, state = opt.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value

  params, losses = vit.params, []
  state = opt.init(params)
  for i in range(30):
    params, state, value = step(params, state, images[i % 4], labels[i % 4])
    losses.append(value)
  tolerance = 1e-5 if jax.default_backend() == 'cpu' else 1e-3  # other orders of summation
  np.testing.assert_allclose(losses, golden['losses'], rtol=tolerance)
  rates = [rate(i) for i in range(30)]
  np.testing.assert_allclose(rates, golden['learning_rates'], atol=1e-7)
