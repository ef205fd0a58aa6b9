"""Head and backbone: updates against their closed form; frozen parameters cost nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from tests.helpers import (
  BATCH,
  KEY,
  TINY,
  assert_same_tree,
  first_state,
  jit,
  make_model,
  make_program,
  rate,
)
from vit_jax.checkpoints.manager import Checkpointer
from vit_jax.config import OptimizerConfig, ScheduleConfig, StepConfig, load_config
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.vit import VisionTransformer
from vit_jax.training.optimizer import decay_mask, make_optimizer
from vit_jax.training.parameter_groups import (
  check_groups,
  lr_multipliers,
  trained_params,
  with_trained,
)
from vit_jax.training.step import TrainState, make_train_step

RATE = 0.1
SHAPES = {
  'cls': (1, 1, 40),
  'embedding': {'kernel': (40, 40), 'bias': (40,)},
  'head': {'kernel': (40, 5), 'bias': (5,)},
  'pre_logits': {'kernel': (40, 40)},
}
HEAD = ('head', 'pre_logits')


def normal(seed: int):
  rng = np.random.default_rng(seed)
  draw = lambda shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def follow(config: OptimizerConfig, gradients):
  opt, params = make_optimizer(config, lambda step: jnp.float32(RATE)), normal(0)
  select = functools.partial(trained_params, config)
  state = opt.init(select(params))
  for gradient in gradients:
    trained = select(params)
    updates, state = jax.jit(opt.update)(select(gradient), state, trained)
    params = with_trained(params, optax.apply_updates(trained, updates))
  return params, state


def adam(gradients):
  """Directions of Adam (arXiv 1412.6980, Algorithm 1), float64."""
  m = v = 0.0
  for t, g in enumerate(gradients, 1):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    yield m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def momentum(gradients):
  m = 0.0
  for g in gradients:
    m = 0.9 * m + g
    yield m


@pytest.mark.parametrize(('name', 'directions'), [('adamw', adam), ('sgd', momentum)])
@pytest.mark.parametrize(('head', 'backbone'), [(1, 1), (10, 0.5), (0, 3), (2, 0)])
def test_updates_are_their_closed_form(name, directions, head, backbone):
  config = OptimizerConfig(
    name=name,
    momentum_dtype='float32',
    clip_norm=0.0,
    weight_decay=0.25,
    head_decay_multiplier=4.0,
    head_lr_multiplier=head,
    backbone_lr_multiplier=backbone,
  )
  gradients = [normal(seed) for seed in (1, 2, 3)]
  actual, _ = follow(config, gradients)

  def expected(path, start, *gradients):
    in_head = path[0].key in HEAD
    decay = 0.25 * (4 if in_head else 1) * (path[-1].key == 'kernel')
    value, factor = start.astype(float), head if in_head else backbone
    for direction in directions(np.float64(gradients)):
      value = value - RATE * factor * (direction + decay * value)
    return value

  wanted = jax.tree_util.tree_map_with_path(expected, normal(0), *gradients)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, wanted)


@pytest.mark.parametrize('name', ['adamw', 'sgd', 'adafactor'])
@pytest.mark.parametrize('frozen', ['head', 'backbone'])
def test_frozen_parameters_keep_their_bits_and_have_no_moments(name, frozen):
  config = OptimizerConfig(name=name, weight_decay=0.1, **{f'{frozen}_lr_multiplier': 0.0})
  params, state = follow(config, [normal(1), normal(2)])
  equal = jax.tree.map(np.array_equal, params, normal(0))
  changed = {key for key in params if not jax.tree.all(equal[key])}
  assert changed == set(HEAD if frozen == 'backbone' else SHAPES.keys() - set(HEAD))
  # The path of a moment ends with that of its parameter.
  paths = [
    path for path, leaf in jax.tree_util.tree_leaves_with_path(state) if np.ndim(leaf) and leaf.size
  ]
  modules = {getattr(key, 'key', None) for path in paths for key in path} & SHAPES.keys()
  assert modules == changed


def test_by_default_state_and_program_are_those_of_plain_optax():
  """So that checkpoints of earlier versions load."""
  config = OptimizerConfig(weight_decay=0.1)
  plain = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.scale_by_adam(0.9, 0.999, 1e-8, mu_dtype='float32'),
    optax.add_decayed_weights(0.1, decay_mask),
    optax.scale_by_learning_rate(rate),
  )
  ours, params = make_optimizer(config, rate), normal(0)
  assert jax.tree.structure(ours.init(params)) == jax.tree.structure(plain.init(params))
  programs = [
    str(jax.make_jaxpr(opt.update)(normal(1), opt.init(params), params)) for opt in (ours, plain)
  ]
  assert programs[0] == programs[1]
  assert jax.tree.structure(trained_params(config, params)) == jax.tree.structure(params)


def program(**fields):
  flags = [f'--config.optimizer.{name}={value}' for name, value in fields.items()]
  config = load_config('configs/quickstart.py', [*TINY, *flags]).resolve_steps(0)
  return make_program(config, num_classes=3, devices=jax.devices()[:1])


def test_a_frozen_backbone_has_no_backward_pass():
  frozen, whole = program(backbone_lr_multiplier=0.0), program()
  flops = [each.lower().cost_analysis()['flops'] for each in (frozen, whole)]
  assert flops[0] < 0.5 * flops[1]
  sizes = [len(jax.tree.leaves(each.abstract_state.opt_state)) for each in (frozen, whole)]
  assert sizes[0] < sizes[1]


def test_the_gradient_norm_is_that_of_the_trained_parameters():
  config = OptimizerConfig(name='sgd', b1=0.0, clip_norm=0.0, backbone_lr_multiplier=0.0)
  optimizer = make_optimizer(config, rate)
  select_trained = functools.partial(trained_params, config)
  before = first_state()
  before = dataclasses.replace(before, opt_state=optimizer.init(select_trained(before.params)))
  step = make_train_step(make_model(), optimizer, rate, StepConfig(), select_trained=select_trained)
  after, metrics = jit(step)(before, BATCH, KEY)
  changes = jax.tree.map(lambda a, b: np.sum((a - b) ** 2), before.params, after.params)
  norm = np.sqrt(sum(jax.tree.leaves(changes['head']))) / rate(0)
  np.testing.assert_allclose(metrics['train/gradient_norm'], norm, rtol=1e-4)
  del changes['head']
  assert not any(jax.tree.leaves(changes))


def test_one_group_must_be_trained():
  with pytest.raises(UserError, match=r'optimizer.backbone_lr_multiplier is 0; so is head_lr_mult'):
    OptimizerConfig(head_lr_multiplier=0.0, backbone_lr_multiplier=0.0)


def test_a_state_with_frozen_parameters_is_saved_and_restored(tmp_path):
  params, opt_state = follow(OptimizerConfig(backbone_lr_multiplier=0.0), [normal(1), normal(2)])
  state = jax.tree.map(jnp.asarray, TrainState(jnp.int32(2), params, opt_state, None))
  with Checkpointer(epath.Path(tmp_path), keep=1) as checkpointer:
    checkpointer.save(2, state, score=None)
  with Checkpointer(epath.Path(tmp_path), keep=1) as checkpointer:
    restored = checkpointer.restore(2, abstract(state))
  assert_same_tree(restored, state)
  assert jax.tree.structure(restored) == jax.tree.structure(state)


def abstract(state: TrainState) -> TrainState:
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state)


def names_of(tree):
  return [
    '/'.join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)
  ]


@pytest.mark.parametrize('name', ['adamw', 'sgd', 'adafactor'])
def test_patterns_freeze_whole_names(name):
  config = OptimizerConfig(name=name, weight_decay=0.1, freeze=('embedding/kern', '.*/bias'))
  params, state = follow(config, [normal(1), normal(2)])
  equal = jax.tree.map(np.array_equal, params, normal(0))
  kept = [
    name for name, is_equal in zip(names_of(equal), jax.tree.leaves(equal), strict=True) if is_equal
  ]
  assert kept == ['embedding/bias', 'head/bias']  # 'embedding/kern' is not a whole name
  moments = [x.shape for x in jax.tree.leaves(state) if x.ndim]
  assert moments and (5,) not in moments


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'freeze': ('embeding/.*',)}, "no parameter is called 'embeding/.*'; close names: embedding/"),
    ({'freeze': ('.*',)}, 'no parameter is left to train'),
    ({'layer_decay': 0.5}, 'layer_decay is 0.5; the model has no Transformer or Mixer blocks'),
  ],
)
def test_groups_that_cannot_be_are_one_sentence(fields, message):
  with pytest.raises(UserError, match=message):
    check_groups(OptimizerConfig(**fields), normal(0))


def test_freeze_takes_regular_expressions():
  with pytest.raises(UserError, match=r'optimizer.freeze is .* it must be regular expressions'):
    OptimizerConfig(freeze=('(',))


VIT = VisionTransformer(
  4, 8, 3, 8, 2, num_classes=2, pool='distilled', registers=1, pre_norm=True, final_norm='encoder'
)


def test_layer_decay_is_that_of_beit():
  """Factors by hand for three blocks: layers 0 to 4, the head's is 1 (arXiv 2106.08254)."""
  config = OptimizerConfig(layer_decay=0.5, head_lr_multiplier=10.0, backbone_lr_multiplier=3.0)
  rates = lr_multipliers(config, build.abstract_params(VIT, (8, 8)))
  expected = {
    'embedding': 3 / 16,
    'cls': 3 / 16,
    'distillation': 3 / 16,
    'registers': 3 / 16,
    'Transformer/posembed_input': 3 / 16,
    'Transformer/pre_norm': 3 / 16,
    'Transformer/encoderblock_0': 3 / 8,
    'Transformer/encoderblock_1': 3 / 4,
    'Transformer/encoderblock_2': 3 / 2,
    'Transformer/encoder_norm': 3.0,
    'head': 10.0,
    'head_distillation': 10.0,
  }
  for name, rate_of_name in zip(names_of(rates), jax.tree.leaves(rates), strict=True):
    (prefix,) = [each for each in expected if f'{name}/'.startswith(f'{each}/')]
    assert rate_of_name == expected[prefix], name


@pytest.mark.parametrize('scan', [False, True])
def test_layer_decay_scales_the_step_and_its_weight_decay(scan):
  """Of plain SGD, whose step is rate * factor * (gradient + decay), with and without scanning."""
  fields = {'name': 'sgd', 'b1': 0.0, 'clip_norm': 0.0, 'weight_decay': 0.5}
  flags = ['--config.model.dropout_rate=0', f'--config.model.scan_blocks={scan}']
  config = load_config('configs/quickstart.py', [*TINY, *flags]).resolve_steps(0)
  changes = []
  for decay in (1.0, 0.25):
    optimizer = OptimizerConfig(**fields, layer_decay=decay)
    schedule = ScheduleConfig(decay='constant', learning_rate=0.5)
    run = dataclasses.replace(config, optimizer=optimizer, schedule=schedule)
    each = make_program(run, num_classes=3, devices=jax.devices()[:1])
    state = each.init(None)
    before = jax.device_get(state.params)
    image = np.random.default_rng(0).integers(0, 256, each.abstract_batch['image'].shape, np.uint8)
    batch = {'image': image, 'label': np.arange(16, dtype=np.int32) % 3}
    after = jax.device_get(each.train_step(state, batch, each.random_key())[0].params)
    changes.append(jax.tree.map(lambda a, b: a - b, after, before))
  factors = {'encoderblock_0': 0.25**2, 'encoderblock_1': 0.25, 'encoder_norm': 1.0}
  for name, factor in factors.items():
    plain, decayed = (each['Transformer'][name] for each in changes)
    for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(decayed), strict=True):
      np.testing.assert_allclose(y, factor * x, rtol=1e-3, atol=1e-7)


def test_frozen_parameters_keep_their_bits_in_the_average():
  config = load_config('configs/quickstart.py', [*TINY, '--config.ema_decay=0.9'])
  optimizer = dataclasses.replace(config.optimizer, freeze=('Transformer/encoderblock_0/.*',))
  config = dataclasses.replace(config.resolve_steps(0), optimizer=optimizer)
  each = make_program(config, num_classes=3, devices=jax.devices()[:1])
  state = each.init(None)
  before = jax.device_get(state.params)
  batch = {
    'image': np.full(each.abstract_batch['image'].shape, 100, np.uint8),
    'label': np.arange(16, dtype=np.int32) % 3,
  }
  for _ in range(3):
    state, _ = each.train_step(state, batch, each.random_key())
  block, other = (before['Transformer'][f'encoderblock_{i}'] for i in range(2))
  for tree in (state.params, state.ema_params):
    assert_same_tree(tree['Transformer']['encoderblock_0'], block)
    assert not np.array_equal(
      tree['Transformer']['encoderblock_1']['MlpBlock_0']['Dense_0']['kernel'],
      other['MlpBlock_0']['Dense_0']['kernel'],
    )
