"""Meshes, sharding of the state and of batches; training gives the same numbers on any mesh."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.helpers import jit, random_params
from vit_jax.config import MeshConfig, OptimizerConfig, ScheduleConfig, StepConfig
from vit_jax.distributed import sharding
from vit_jax.errors import UserError
from vit_jax.models.vit import VisionTransformer
from vit_jax.training.optimizer import make_optimizer, make_schedule
from vit_jax.training.step import init_state, make_train_step
from vit_jax.weights import adapt
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts import released

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason='written for eight devices')

STEPS, BATCH_SIZE, IMAGE_SHAPE = 4, 16, (8, 8, 3)
RNG = np.random.default_rng(0)
BATCHES = [
  {
    'image': RNG.integers(0, 256, (BATCH_SIZE, *IMAGE_SHAPE), dtype=np.uint8),
    'label': RNG.integers(0, 5, BATCH_SIZE, dtype=np.int32),
  }
  for _ in range(STEPS)
]
DENSE = 'Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel'


def make_mesh(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
  return sharding.make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


def make_init_and_step(constrain=lambda x: x):
  # Wide enough that the kernels of the MLP are sharded.
  model = VisionTransformer(4, 64, 1, 256, 4, num_classes=5, dropout_rate=0.1, constrain=constrain)
  schedule = make_schedule(ScheduleConfig(), STEPS)
  optimizer = make_optimizer(OptimizerConfig(weight_decay=0.1), schedule)
  init = functools.partial(init_state, model, optimizer, IMAGE_SHAPE, 0, use_ema=True)
  config = StepConfig(label_smoothing=0.1, ema_decay=0.9)
  return init, make_train_step(model, optimizer, schedule, config)


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
def test_training_on_a_mesh_gives_the_same_numbers_with_all_of_the_state_sharded(sizes, single):
  mesh = make_mesh(*sizes)
  batch_sharding, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  init, step = make_init_and_step(
    lambda tokens: jax.lax.with_sharding_constraint(tokens, batch_sharding)
  )
  shardings = sharding.state_shardings(jax.eval_shape(init), mesh)
  step = jit(
    step,
    in_shardings=(shardings, batch_sharding, replicated),
    out_shardings=(shardings, replicated),
    donate_argnums=0,
  )
  rows = sharding.local_rows(mesh, BATCH_SIZE)
  batches = [sharding.place_batch(batch, mesh, BATCH_SIZE, rows) for batch in BATCHES]
  state, losses = train(jit(init, out_shardings=shardings)(), step, batches)
  expected_state, expected = single
  assert expected[-1] != expected[0]
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  # Parameters, their moments and their moving average are sharded, and have the same numbers.
  adam = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=has_moments) if has_moments(s))
  for tree, shards in ((state.params, 4), (state.ema_params, 8), (adam.mu, 8), (adam.nu, 8)):
    kernel = released.flatten(tree)[DENSE]
    assert kernel.addressable_shards[0].data.size * shards == kernel.size
  kernel, expected = (released.flatten(s.ema_params)[DENSE] for s in (state, expected_state))
  np.testing.assert_allclose(kernel, expected, atol=1e-4)


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


@pytest.mark.parametrize('sizes', [(4, 1, 1), (16, 1, 1), (3, 3, 1), (-1, 3, 1), (-1, -1, 1)])
def test_a_mesh_of_other_than_all_devices_is_refused(sizes):
  with pytest.raises(UserError, match=f'data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]}'):
    make_mesh(*sizes)


@pytest.mark.parametrize(
  ('sizes', 'field'), [((0, 8, 1), 'data is 0'), ((-2, -4, 1), 'data is -2')]
)
def test_a_size_of_an_axis_that_is_not_positive_is_refused(sizes, field):
  with pytest.raises(UserError, match=f'mesh.{field}; it must be positive'):
    make_mesh(*sizes)


def test_a_mesh_for_more_devices_is_refused_with_the_size_to_use():
  with pytest.raises(UserError, match='does not multiply to 8 devices; use fsdp=8'):
    make_mesh(-1, 16, 1)


class Device:
  """A device of another machine."""

  def __init__(self, platform: str, slice_index: int):
    self.platform, self.slice_index = platform, slice_index


def test_only_tpus_have_slices():
  gpus = [Device('gpu', host) for host in (0, 0, 1, 1)]  # there a "slice" is a host
  assert sharding._slices(gpus, 1) == [gpus]
  assert sharding._slices(gpus, 2) == [gpus[:2], gpus[2:]]
  tpus = [Device('tpu', index) for index in (1, 0, 1, 0)]
  assert sharding._slices(tpus, 2) == [tpus[1::2], tpus[::2]]
  with pytest.raises(UserError, match='the 4 devices form 2 slices; set it to 2'):
    sharding._slices(tpus, 1)


@pytest.mark.parametrize(
  ('sizes', 'batch_size', 'suggestions'),
  [
    ((8, 1, 1), 12, [8, 16]),
    ((2, 4, 1), 31, [24, 32]),
    ((2, 2, 2), 6, [4, 8]),
    ((8, 1, 1), 4, [8]),
  ],
)
def test_a_batch_that_the_mesh_does_not_divide_is_refused_with_sizes_to_use(
  sizes, batch_size, suggestions
):
  message = f'my batch is {batch_size}, .*; use {" or ".join(map(str, suggestions))}[.]'
  with pytest.raises(UserError, match=message):
    sharding.check_batch_size(make_mesh(*sizes), batch_size, 'my batch')
  for suggestion in suggestions:
    sharding.check_batch_size(make_mesh(*sizes), suggestion, 'my batch')


@pytest.mark.parametrize('batch_size', [0, -8])
def test_a_batch_without_examples_is_refused(batch_size):
  with pytest.raises(UserError, match=f'my batch is {batch_size}; it must be positive[.]'):
    sharding.check_batch_size(make_mesh(8, 1, 1), batch_size, 'my batch')


@pytest.mark.parametrize('sizes', [(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_placed_batches_hold_the_rows_in_order(sizes):
  mesh = make_mesh(*sizes)
  rows = sharding.local_rows(mesh, BATCH_SIZE)
  np.testing.assert_array_equal(rows, np.arange(BATCH_SIZE))
  placed = sharding.place_batch(BATCHES[0], mesh, BATCH_SIZE, rows)
  for name, expected in BATCHES[0].items():
    np.testing.assert_array_equal(placed[name], expected)
    assert placed[name].dtype == expected.dtype
    shards = sizes[0] * sizes[1]
    shapes = {shard.data.shape for shard in placed[name].addressable_shards}
    assert shapes == {(BATCH_SIZE // shards, *expected.shape[1:])}


def test_parameters_are_read_into_their_shards():
  mesh = make_mesh(2, 2, 2)
  tree = {'MlpBlock_0': {'Dense_0': {'kernel': RNG.normal(size=(64, 256)).astype(np.float32)}}}
  shardings = sharding.state_shardings(tree, mesh)
  tensors = {name: Tensor.from_array(x) for name, x in released.flatten(tree).items()}
  placed = adapt.read_params(tensors, 'x.npz', shardings)
  jax.tree.map(np.testing.assert_array_equal, placed, tree)
  assert jax.tree.map(lambda x: x.sharding, placed) == shardings
  kernel = placed['MlpBlock_0']['Dense_0']['kernel']
  assert kernel.addressable_shards[0].data.shape == (32, 128)


BLOCK = {
  'MlpBlock_0/Dense_0/bias': P('tensor'),
  'MlpBlock_0/Dense_0/kernel': P('fsdp', 'tensor'),
  'MlpBlock_0/Dense_1/bias': P(None),
  'MlpBlock_0/Dense_1/kernel': P('tensor', 'fsdp'),
  'MultiHeadDotProductAttention_0/key/bias': P('tensor', None),
  'MultiHeadDotProductAttention_0/key/kernel': P('fsdp', 'tensor', None),
  'MultiHeadDotProductAttention_0/out/bias': P(None),
  'MultiHeadDotProductAttention_0/out/kernel': P('tensor', None, 'fsdp'),
  'MultiHeadDotProductAttention_0/query/bias': P('tensor', None),
  'MultiHeadDotProductAttention_0/query/kernel': P('fsdp', 'tensor', None),
  'MultiHeadDotProductAttention_0/value/bias': P('tensor', None),
  'MultiHeadDotProductAttention_0/value/kernel': P('fsdp', 'tensor', None),
}
NORM = {'bias': P(None), 'scale': P(None)}
PARAMETERS = {
  'MAPHead_0': {'probe': P(None, None, None), 'LayerNorm_0': NORM, **BLOCK},
  'Transformer/encoder_norm': NORM,
  'Transformer/encoderblock_0': {'LayerNorm_0': NORM, 'LayerNorm_1': NORM, **BLOCK},
  'Transformer/posembed_input': {'pos_embedding': P(None, 'fsdp', None)},
  'embedding': {'bias': P(None), 'kernel': P(None, None, None, 'fsdp')},
  'head': {'bias': P(None), 'kernel': P(None, None)},  # smaller than MIN_SIZE_TO_SHARD
  'pre_logits': {'bias': P(None), 'kernel': P(None, 'fsdp')},
}
# Adafactor's second moments of a kernel have the axes of the kernel without one of its two largest.
FACTORED = {
  'v_row/Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel': P('tensor'),  # (D,)
  'v_col/Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel': P('tensor'),  # (M,)
  'v_row/Transformer/encoderblock_0/MlpBlock_0/Dense_1/kernel': P('tensor'),  # (D,)
  'v_col/Transformer/encoderblock_0/MlpBlock_0/Dense_1/kernel': P('tensor'),  # (M,)
  'v_row/MAPHead_0/MultiHeadDotProductAttention_0/query/kernel': P('tensor', None),  # (K, D / K)
  'v_col/MAPHead_0/MultiHeadDotProductAttention_0/query/kernel': P('tensor', None),  # (D, K)
  'v_row/MAPHead_0/MultiHeadDotProductAttention_0/out/kernel': P('tensor', None),  # (K, D / K)
  'v_col/MAPHead_0/MultiHeadDotProductAttention_0/out/kernel': P('tensor', None),  # (K, D)
  'v_row/embedding/kernel': P(None),
}


def over_data(spec, shape):
  """The spec of a parameter's moment on a mesh of 2 x 2 x 2."""
  return P(
    *(
      ('fsdp', 'data') if axis == 'fsdp' and size % 4 == 0 else axis
      for axis, size in zip(spec, shape, strict=True)
    )
  )


@pytest.mark.parametrize('optimizer', ['adamw', 'sgd', 'adafactor'])
def test_sharding_of_every_parameter_and_its_moments(optimizer):
  model = VisionTransformer(14, 132, 1, 256, 4, num_classes=7, pool='map', pre_logits=134)
  update = make_optimizer(OptimizerConfig(name=optimizer), lambda step: 0.1)
  abstract = jax.eval_shape(lambda: init_state(model, update, (224, 224, 3), 0, use_ema=True))
  shardings = sharding.state_shardings(abstract, make_mesh(2, 2, 2))
  specs = released.flatten(jax.tree.map(lambda x: x.spec, shardings.params))
  assert specs == released.flatten(PARAMETERS)
  shapes = {name: x.shape for name, x in released.flatten(abstract.params).items()}
  moment_specs = {name: over_data(spec, shapes[name]) for name, spec in specs.items()}
  averages = released.flatten(jax.tree.map(lambda x: x.spec, shardings.ema_params))
  assert averages == moment_specs
  assert moment_specs['embedding/kernel'] == P(None, None, None, ('fsdp', 'data'))
  assert moment_specs['pre_logits/kernel'] == P(None, 'fsdp')  # 134 units
  moments, factored = [], {}
  for (path, leaf), leaf_sharding in zip(
    jax.tree_util.tree_leaves_with_path(abstract.opt_state),
    jax.tree.leaves(shardings.opt_state),
    strict=True,
  ):
    _, moment, *name = jax.tree_util.keystr(path, simple=True, separator='/').split('/', 2)
    if not name:  # a count of steps
      assert leaf_sharding.spec == P()
    elif leaf.shape == shapes[name[0]]:
      assert leaf_sharding.spec == moment_specs[name[0]]
      moments += name
    else:
      factored[f'{moment}/{name[0]}'] = leaf_sharding.spec
  assert set(moments) == set(specs)
  assert factored.items() >= (FACTORED if optimizer == 'adafactor' else {}).items()


@pytest.mark.parametrize(('sizes', 'most'), [((1, 4, 2), 8), ((2, 2, 2), 8), ((1, 1, 8), 1)])
def test_only_axes_that_the_mesh_divides_are_sharded(sizes, most):
  model = VisionTransformer(14, 132, 1, 250, 3, num_classes=7, pool='map', pre_logits=133)
  optimizer = make_optimizer(OptimizerConfig(), lambda step: 0.1)
  abstract = jax.eval_shape(lambda: init_state(model, optimizer, (28, 42, 3), 0, use_ema=True))
  shardings = sharding.state_shardings(abstract, make_mesh(*sizes))
  shards = [
    leaf.size / np.prod(leaf_sharding.shard_shape(leaf.shape))
    for leaf, leaf_sharding in zip(*map(jax.tree.leaves, (abstract, shardings)), strict=True)
  ]
  assert max(shards) == most


@pytest.mark.parametrize(
  'fields',
  [
    dict(position_embedding='relative', position_entry='layers_shared'),
    dict(position_embedding='relative', axial=True, pool='gap'),
    dict(position_embedding='2d', position_entry='layers'),
  ],
)
def test_position_embeddings_and_axial_blocks_on_a_mesh(fields):
  mesh = make_mesh(2, 2, 2)
  plain = VisionTransformer(4, 16, 2, 32, 4, num_classes=0, **fields)
  params, images = random_params(plain, (8, 12)), np.ones((8, 8, 12, 3), np.float32)
  shardings = sharding.state_shardings(params, mesh)
  for name, each in released.flatten(shardings).items():
    if name.endswith('relative_embedding'):
      assert each.spec == P(None, 'tensor', None)
  tokens = sharding.batch_sharding(mesh)
  model = plain.clone(constrain=lambda x: jax.lax.with_sharding_constraint(x, tokens))
  sharded = jax.device_put(params, shardings), jax.device_put(images, tokens)
  output = jit(lambda params, images: model.apply({'params': params}, images))(*sharded)
  np.testing.assert_allclose(output, plain.apply({'params': params}, images), atol=1e-5)
