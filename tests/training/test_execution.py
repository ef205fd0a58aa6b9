"""Execution choices change no parameter and no number beyond rounding.

Ten steps of the real train step, compared with the plainest one: one device, nothing
rematerialized, every block on its own.
"""

import functools
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from tests.helpers import make_program
from vit_jax.config import Config, replace_fields
from vit_jax.distributed import sharding as mesh_lib
from vit_jax.models import build as models
from vit_jax.models.attention import fused_attention
from vit_jax.models.dot_product_attention import choose_attention

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason='written for eight devices')

STEPS, BATCH_SIZE, NUM_CLASSES = 10, 16, 5
RNG = np.random.default_rng(0)
BATCHES = [
  {
    'image': RNG.integers(0, 256, (BATCH_SIZE, 8, 8, 3), dtype=np.uint8),
    'label': RNG.integers(0, NUM_CLASSES, BATCH_SIZE, dtype=np.int32),
  }
  for _ in range(STEPS)
]
RANDOM = {'dropout_rate': 0.2, 'attention_dropout_rate': 0.2, 'stochastic_depth_rate': 0.3}


def build(choices, rates):
  """The program of `choices` (field -> value), on a mesh of the devices that it needs."""
  config = replace_fields(
    Config(),
    {
      'batch_size': BATCH_SIZE,
      'total_steps': STEPS,
      'data.image_size': 8,
      'model.patch_size': 4,
      'model.width': 64,
      'model.depth': 3,
      'model.mlp_dim': 256,
      'model.num_heads': 4,
      'model.dtype': 'float32',
      # Plain gradient descent: the parameters move by the sum of the gradients.
      'optimizer.name': 'sgd',
      'optimizer.b1': 0.0,
      'optimizer.clip_norm': 0.0,
      'schedule.decay': 'constant',
      'schedule.learning_rate': 0.1,
      'mesh.data': 1,
      **{f'model.{name}': rate for name, rate in rates.items()},
      **choices,
    },
  )
  devices = jax.devices()[: config.mesh.data * config.mesh.fsdp * config.mesh.tensor]
  return make_program(config, NUM_CLASSES, devices)


def train(choices, rates=RANDOM):
  """Losses and gradient norms (STEPS, 2), the initial parameters, and their total change."""
  program = build(choices, rates)
  # Most of the time goes into compiling.
  step = program.lower().compile({'xla_backend_optimization_level': 0})
  state = program.init(None)
  start, curve = flatten(state.params), []
  key = jax.device_put(jax.random.key(1), mesh_lib.replicated(program.mesh))
  for batch in BATCHES:
    state, metrics = step(state, jax.device_put(batch, mesh_lib.batch_sharding(program.mesh)), key)
    curve.append([metrics['train/loss'], metrics['train/gradient_norm']])
  end = flatten(state.params)
  return np.array(curve, float), start, {name: end[name] - start[name] for name in start}


def flatten(params):
  return {
    jax.tree_util.keystr(path): np.array(leaf, float)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


@pytest.fixture(scope='module')
def plain():
  return train({})


@pytest.fixture(scope='module')
def plain_without_attention_dropout():
  return train({}, {**RANDOM, 'attention_dropout_rate': 0.0})


@pytest.fixture(scope='module')
def plain_without_randomness():
  return train({}, {})


def check_same(actual, expected, rtol=3e-5):
  """Compares curves and sums of gradients, up to the rounding of parameters."""
  np.testing.assert_allclose(actual[0], expected[0], rtol=rtol)
  (_, start, actual_sum), (_, same_start, sums) = actual, expected
  largest = max(map(np.linalg.norm, sums.values()))  # a key's bias has no gradient but rounding
  for name in sums.keys() | actual_sum.keys():
    np.testing.assert_array_equal(start[name], same_start[name])
    rounding = STEPS * np.finfo(np.float32).eps * np.linalg.norm(start[name])
    allowed = rtol * max(np.linalg.norm(sums[name]), 0.01 * largest) + rounding
    assert np.linalg.norm(actual_sum[name] - sums[name]) <= allowed, name


SLICES = {'mesh.data': 4, 'mesh.fsdp': 2, 'mesh.num_slices': 2}


@pytest.mark.parametrize(
  'choices',
  [
    {'model.remat': 'dots'},
    {'model.remat': 'full'},
    {'model.scan_blocks': True},
    {'model.scan_blocks': True, 'model.remat': 'full'},
    {'mesh.data': 8},
    {'mesh.fsdp': 8},
    {'mesh.data': 2, 'mesh.fsdp': 4, 'model.scan_blocks': True, 'model.remat': 'dots'},
    {'mesh.data': 4, 'mesh.tensor': 2, 'model.scan_blocks': True},
    {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2, 'model.remat': 'full'},
    {**SLICES, 'model.scan_blocks': True},
  ],
  ids=str,
)
def test_choices_that_share_randomness(choices, plain):
  assert plain[0][-1, 0] != plain[0][0, 0]
  check_same(train(choices), plain)


@pytest.mark.parametrize(
  'choices', [{}, {'model.scan_blocks': True, 'model.remat': 'full', 'mesh.fsdp': 8}], ids=str
)
def test_attention_of_jax_nn(choices, plain_without_attention_dropout):
  rates = {**RANDOM, 'attention_dropout_rate': 0.0}
  check_same(train({'model.attention': 'xla', **choices}, rates), plain_without_attention_dropout)


@pytest.mark.parametrize(
  'choices',
  [
    {'accumulation_steps': 4},
    {
      'accumulation_steps': 2,
      'model.scan_blocks': True,
      'model.remat': 'dots',
      'model.attention': 'xla',
      'mesh.data': 2,
      'mesh.fsdp': 2,
      'mesh.tensor': 2,
    },
  ],
  ids=str,
)
def test_accumulation(choices, plain_without_randomness):
  check_same(train(choices, {}), plain_without_randomness)


@pytest.mark.parametrize('mesh', [{}, {'mesh.data': 2}], ids=str)
def test_an_example_draws_the_same_masks_with_accumulation(mesh, plain):
  check_same(train({'accumulation_steps': 4, **mesh}), plain)


@pytest.mark.parametrize(
  'choices',
  [
    {'mesh.data': 2, 'mesh.tensor': 2},
    {
      'accumulation_steps': 2,
      'model.scan_blocks': True,
      'model.remat': 'dots',
      'mesh.data': 2,
      'mesh.fsdp': 2,
    },
  ],
  ids=str,
)
def test_the_kernel_for_tpus(choices, plain_without_randomness, monkeypatch):
  chip = Mock(device_kind='TPU v5 lite')
  kernel = functools.partial(fused_attention.fused_attention, interpret=True)
  kernels = []

  def count_and_call(*args):
    kernels.append(args)
    return kernel(*args)

  monkeypatch.setattr(fused_attention, 'fused_attention', count_and_call)
  monkeypatch.setattr(
    models,
    'choose_attention',
    lambda name, platform, *of_mesh: choose_attention('fused', 'tpu', *of_mesh, chip),
  )
  check_same(train(choices, {}), plain_without_randomness, rtol=1e-4)
  assert kernels


def test_bfloat16_follows_to_its_precision(plain):
  curve, *_ = train({'model.dtype': 'bfloat16', 'model.scan_blocks': True, 'mesh.fsdp': 8})
  difference = np.abs(curve[:, 0] - plain[0][:, 0]).max()
  assert 0 < difference < 0.02 * plain[0][:, 0].max()


def test_other_randomness_is_detected(plain, plain_without_randomness):
  with pytest.raises(AssertionError):
    check_same(plain, plain_without_randomness)


def test_parameters_are_the_same_tree():
  expected = build({}, RANDOM).abstract_state.params
  actual = build({'model.scan_blocks': True, 'model.remat': 'full'}, RANDOM).abstract_state.params
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), actual) == jax.tree.map(
    lambda x: (x.shape, x.dtype), expected
  )


def test_a_scanned_program_does_not_grow_with_the_depth():
  sizes = {}
  for scan in (False, True):
    for depth in (3, 6):
      program = build({'model.scan_blocks': scan, 'model.depth': depth}, {})
      sizes[scan, depth] = program.lower().as_text().count('dot_general')
  assert sizes[True, 6] == sizes[True, 3]
  assert sizes[False, 6] > sizes[False, 3]
