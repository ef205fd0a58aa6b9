"""Axial Transformers: a patch attends to its row, then to its column."""

import jax
import numpy as np
import pytest

from tests.helpers import jit, random_params
from vit_jax.models import build, features
from vit_jax.models.attention.axial_block import AxialBlock
from vit_jax.models.dropout import example_keys
from vit_jax.models.flops import forward_flops, recomputed_flops
from vit_jax.models.from_tensors import model_from_tensors
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.layouts.released import flatten

GRID = (3, 4)
BLOCK = AxialBlock(mlp_dim=12, num_heads=2, grid=GRID)
X = np.random.default_rng(0).normal(size=(2, 12, 8)).astype(np.float32)
TINY = dict(patch_size=4, width=16, depth=2, mlp_dim=24, num_heads=2, num_classes=0, pool='gap')
SIZE = (12, 16)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, *SIZE, 3)).astype(np.float32)


def block_params():
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(BLOCK.init, jax.random.key(0), X)['params']
  return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def without(params, part):
  """Parameters with which that part of the block is the identity: its last layers are zero."""
  part_params = dict(params[part])
  for layer, last in (('MultiHeadDotProductAttention_0', 'out'), ('MlpBlock_0', 'Dense_1')):
    zeros = jax.tree.map(np.zeros_like, part_params[layer][last])
    part_params[layer] = {**part_params[layer], last: zeros}
  return {**params, part: part_params}


def reach(params) -> np.ndarray:
  """Which patches (3, 4) change the output of patch (1, 2), by its gradient."""

  def output(x):
    return (BLOCK.apply({'params': params}, x)[0, 1 * 4 + 2] * np.arange(1, 9)).sum()

  gradient = np.abs(jit(jax.grad(output))(X)).sum(axis=-1)
  assert not gradient[1].any()  # of another example
  return gradient[0].reshape(GRID) > 1e-6


def test_a_patch_attends_to_its_row_then_to_its_column():
  params = block_params()
  row, column = np.zeros(GRID, bool), np.zeros(GRID, bool)
  row[1], column[:, 2] = True, True
  np.testing.assert_array_equal(reach(without(params, 'column')), row)
  np.testing.assert_array_equal(reach(without(params, 'row')), column)
  assert reach(params).all()


def test_stochastic_depth_drops_a_branch_of_a_whole_example():
  block = BLOCK.clone(stochastic_depth_rate=0.5)
  params = without(block_params(), 'column')
  for part in params.values():
    part['MlpBlock_0']['Dense_1'] = jax.tree.map(np.zeros_like, part['MlpBlock_0']['Dense_1'])
  x = np.random.default_rng(0).normal(size=(40, 12, 8)).astype(np.float32)
  keys = example_keys(jax.random.key(0), None, 40)
  kept = np.abs(block.apply({'params': params}, x, 1.0, keys) - x).max(axis=-1) > 0
  assert 0.2 < kept.mean() < 0.8
  np.testing.assert_array_equal(kept, np.repeat(kept[:, :1], 12, axis=1))


def make(**fields) -> VisionTransformer:
  return VisionTransformer(**TINY | fields, axial=True)


def apply(model, params, **kwargs):
  return np.asarray(jit(lambda p, x: model.apply({'params': p}, x, **kwargs))(params, IMAGES))


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'position_embedding': '2d', 'position_entry': 'layers'},
    {'position_embedding': '1d', 'position_entry': 'layers_shared', 'pool': 'map'},
    {'position_embedding': 'relative'},
  ],
)
def test_scanning_and_rematerializing_change_nothing_and_tensors_tell_the_model(fields):
  model = make(**fields, stochastic_depth_rate=0.2)
  params = random_params(model, SIZE)
  assert build.architecture(model_from_tensors(flatten(params), 'x')) == build.architecture(model)
  training = dict(deterministic=False, rngs={'dropout': jax.random.key(0)})
  scanned = model.clone(scan_blocks=True, remat='full')
  expected = apply(model, params, **training)
  np.testing.assert_allclose(apply(scanned, params, **training), expected, atol=1e-5)


def test_relative_positions_are_those_of_the_row_and_of_the_column():
  params = flatten(random_params(make(position_embedding='relative'), SIZE))
  tables = {name: x.shape for name, x in params.items() if 'posembed' in name}
  assert tables == {
    f'Transformer/encoderblock_{i}/{part}/posembed_input/relative_embedding': (2 * side - 1, 2, 8)
    for i in range(2)
    for part, side in (('row', 4), ('column', 3))
  }


def test_parameters_and_flops_are_those_of_the_formulas():
  axial, plain = make(), make().clone(axial=False)
  of_block = 4 * (16 * 16 + 16) + 2 * 16 * 24 + 24 + 16 + 4 * 16
  counts = [build.count_parameters(build.abstract_params(x, SIZE)) for x in (axial, plain)]
  assert counts[0] - counts[1] == 2 * of_block
  tokens = 3 * 4
  dense = 2 * tokens * (4 * 16**2 + 2 * 16 * 24)
  difference = 2 * (dense + 4 * 16 * (tokens * (3 + 4) - tokens**2))
  assert forward_flops(axial, SIZE) - forward_flops(plain, SIZE) == difference
  assert recomputed_flops(axial.clone(remat='dots'), SIZE) == 2 * 4 * 16 * tokens * (3 + 4)


def test_the_outputs_of_blocks_are_those_after_the_columns():
  model = make()
  params = random_params(model, SIZE)
  outputs = features.block_outputs(model, params, IMAGES, (0, -1), norm=True)
  assert outputs[0].shape == (2, 12, 16)
  np.testing.assert_allclose(outputs[-1], features.last_tokens(model, params, IMAGES), atol=1e-5)
