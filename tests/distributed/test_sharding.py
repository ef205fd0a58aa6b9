"""Meshes: their shapes and errors, placement of batches, and training that they do not change."""

import functools

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax.distributed import sharding as mesh_lib
from vit_jax.errors import UserError
from vit_jax.models.vit import VisionTransformer
from vit_jax.training.optimizer import make_optimizer, make_schedule
from vit_jax.training.step import init_state, make_train_step
from vit_jax.weights import adapt
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts import released

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason='written for eight devices')

# Most of the time goes into compiling.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
STEPS, BATCH_SIZE, SIZE = 4, 16, (8, 8)
RNG = np.random.default_rng(0)
BATCHES = [
  {
    'image': RNG.integers(0, 256, (BATCH_SIZE, *SIZE, 3), dtype=np.uint8),
    'label': RNG.integers(0, 5, BATCH_SIZE, dtype=np.int32),
  }
  for _ in range(STEPS)
]
DENSE = 'Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel'


def make_mesh(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
  config = config_lib.default_config().mesh
  config.update({'data': data, 'fsdp': fsdp, 'tensor': tensor})
  return mesh_lib.make_mesh(config)


def make_init_and_step(constrain=lambda x: x):
  # Wide enough that the kernels of the MLP are split.
  model = VisionTransformer(4, 64, 1, 256, 4, num_classes=5, dropout_rate=0.1, constrain=constrain)
  config = config_lib.default_config()
  config.optimizer.weight_decay = 0.1
  schedule = make_schedule(config.schedule, STEPS)
  optimizer = make_optimizer(config.optimizer, schedule)
  init = functools.partial(init_state, model, optimizer, SIZE, 0, True)
  step = make_train_step(
    model,
    optimizer,
    schedule,
    loss='softmax',
    label_smoothing=0.1,
    accumulation_steps=1,
    ema_decay=0.9,
  )
  return init, step


def train(state, step, batches):
  losses = []
  for batch in batches:
    state, metrics = step(state, batch, jax.random.key(1))
    losses.append(float(metrics['train/loss']))
  return state, losses


@pytest.fixture(scope='module')
def single():
  init, step = make_init_and_step()
  return train(jit(init)(), jit(step), BATCHES)


@pytest.mark.parametrize('sizes', [(2, 2, 2)])  # others: test_execution.py
def test_training_is_the_same_on_a_mesh_and_all_of_the_state_is_split(sizes, single):
  mesh = make_mesh(*sizes)
  batch_sharding, replicated = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
  init, step = make_init_and_step(
    lambda tokens: jax.lax.with_sharding_constraint(tokens, batch_sharding)
  )
  shardings = mesh_lib.state_shardings(jax.eval_shape(init), mesh)
  step = jit(
    step,
    in_shardings=(shardings, batch_sharding, replicated),
    out_shardings=(shardings, replicated),
    donate_argnums=0,
  )
  rows = mesh_lib.local_rows(mesh, BATCH_SIZE)
  batches = [mesh_lib.place_batch(batch, mesh, BATCH_SIZE, rows) for batch in BATCHES]
  state, losses = train(jit(init, out_shardings=shardings)(), step, batches)
  expected_state, expected = single
  assert expected[-1] != expected[0]
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  # Parameters are split, moments and the average with them, and they hold the same numbers.
  parts = sizes[1] * sizes[2]
  adam = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=has_moments) if has_moments(s))
  for tree in (state.params, state.average, adam.mu, adam.nu):
    kernel = released.flatten(tree)[DENSE]
    assert kernel.addressable_shards[0].data.size * parts == kernel.size
  one, two = (released.flatten(s.average)[DENSE] for s in (state, expected_state))
  np.testing.assert_allclose(one, two, atol=1e-4)


def has_moments(state) -> bool:
  return hasattr(state, 'mu')


@pytest.mark.parametrize(
  ('sizes', 'shape'),
  [
    ((-1, 1, 1), (8, 1, 1)),
    ((-1, 2, 1), (4, 2, 1)),
    ((2, -1, 2), (2, 2, 2)),
    ((1, 4, -1), (1, 4, 2)),
    ((2, 4, 1), (2, 4, 1)),
  ],
)
def test_mesh_shapes(sizes, shape):
  assert dict(make_mesh(*sizes).shape) == dict(zip(('data', 'fsdp', 'tensor'), shape, strict=True))


@pytest.mark.parametrize(
  'sizes', [(4, 1, 1), (16, 1, 1), (3, 3, 1), (-1, 3, 1), (-1, -1, 1), (0, 8, 1), (-2, -4, 1)]
)
def test_meshes_that_cannot_be(sizes):
  with pytest.raises(UserError, match=f'data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]}'):
    make_mesh(*sizes)


def test_a_mesh_for_more_devices_is_told_what_would_do_here():
  with pytest.raises(UserError, match='the 8 devices there are; --config.mesh.fsdp=8 would'):
    make_mesh(-1, 16, 1)


class Device:
  """A device of another machine, for what looks at its attributes only."""

  def __init__(self, platform: str, slice_index: int):
    self.platform, self.slice_index = platform, slice_index


def test_slices_are_those_of_tpus_only():
  gpus = [Device('gpu', host) for host in (0, 0, 1, 1)]  # there a "slice" is a host
  assert mesh_lib._slices(gpus, 1) == [gpus]
  assert mesh_lib._slices(gpus, 2) == [gpus[:2], gpus[2:]]
  tpus = [Device('tpu', index) for index in (1, 0, 1, 0)]
  assert mesh_lib._slices(tpus, 2) == [tpus[1::2], tpus[::2]]
  with pytest.raises(UserError, match='are of 2 slices; --config.mesh.num_slices=2'):
    mesh_lib._slices(tpus, 1)


@pytest.mark.parametrize(
  ('sizes', 'batch_size', 'would_do'),
  [((8, 1, 1), 12, 8), ((2, 4, 1), 31, 24), ((2, 2, 2), 6, 4), ((8, 1, 1), 4, 8)],
)
def test_batches_that_the_mesh_does_not_divide(sizes, batch_size, would_do):
  with pytest.raises(UserError, match=f'my batch is {batch_size}, .* {would_do} would do'):
    mesh_lib.check_batch_size(make_mesh(*sizes), batch_size, 'my batch')
  mesh_lib.check_batch_size(make_mesh(*sizes), would_do, 'my batch')


@pytest.mark.parametrize('sizes', [(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_placed_batches_hold_the_rows_in_order(sizes):
  mesh = make_mesh(*sizes)
  rows = mesh_lib.local_rows(mesh, BATCH_SIZE)
  np.testing.assert_array_equal(rows, np.arange(BATCH_SIZE))
  placed = mesh_lib.place_batch(BATCHES[0], mesh, BATCH_SIZE, rows)
  for name, expected in BATCHES[0].items():
    np.testing.assert_array_equal(placed[name], expected)
    assert placed[name].dtype == expected.dtype
    parts = sizes[0] * sizes[1]
    shapes = {shard.data.shape for shard in placed[name].addressable_shards}
    assert shapes == {(BATCH_SIZE // parts, *expected.shape[1:])}


def test_parameters_are_read_to_their_parts():
  mesh = make_mesh(2, 2, 2)
  tree = {'MlpBlock_0': {'Dense_0': {'kernel': RNG.normal(size=(64, 256)).astype(np.float32)}}}
  shardings = mesh_lib.state_shardings(tree, mesh)
  tensors = {name: Tensor.from_array(x) for name, x in released.flatten(tree).items()}
  placed = adapt.read_params(tensors, 'x.npz', shardings)
  jax.tree.map(np.testing.assert_array_equal, placed, tree)
  assert jax.tree.map(lambda x: x.sharding, placed) == shardings
  kernel = placed['MlpBlock_0']['Dense_0']['kernel']
  assert kernel.addressable_shards[0].data.shape == (32, 128)


@pytest.mark.parametrize(('sizes', 'most'), [((1, 4, 2), 8), ((2, 2, 2), 4), ((1, 1, 8), 1)])
def test_only_axes_that_can_be_are_split(sizes, most):
  model = VisionTransformer(14, 132, 1, 250, 3, num_classes=7, pool='map', pre_logits=133)
  optimizer = make_optimizer(config_lib.default_config().optimizer, lambda step: 0.1)
  abstract = jax.eval_shape(lambda: init_state(model, optimizer, (28, 42), 0, True))
  shardings = mesh_lib.state_shardings(abstract, make_mesh(*sizes))
  parts = [
    leaf.size / np.prod(sharding.shard_shape(leaf.shape))
    for leaf, sharding in zip(*map(jax.tree.leaves, (abstract, shardings)), strict=True)
  ]
  assert max(parts) == most
