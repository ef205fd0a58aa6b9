"""What a mesh makes of a run: its shards, and what is refused before it begins."""

import jax
import numpy as np
import pytest

from tests.helpers import make_program
from vit_jax.config import Config, replace_fields
from vit_jax.errors import UserError

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason='written for eight devices')


def check(fields: dict) -> None:
  config = replace_fields(Config(), fields)
  sizes = [size for size in (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) if size > 0]
  devices = jax.devices() if config.mesh.data == -1 else jax.devices()[: jax.numpy.prod(sizes)]
  make_program(config, 10, devices)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'model.num_heads': 6, 'mesh.tensor': 4}, 'num_heads is 6, .*tensor=4'),
    ({'model.mlp_dim': 1026, 'mesh.tensor': 4}, 'mlp_dim is 1026, .*tensor=4'),
    ({'model.variant': 'R50x1', 'mesh.tensor': 2}, 'a ResNet has no heads'),
    (
      {'model.variant': 'R50x1', 'model.remat': 'full', 'model.scan_blocks': True},
      'remat=full and config.model.scan_blocks=True are not for a ResNet',
    ),
    ({'model.attention': 'flash'}, 'choose one of auto, einsum, xla, cudnn, fused'),
    ({'model.attention': 'xla', 'model.attention_dropout_rate': 0.1}, 'has no dropout'),
    ({'model.remat': 'some'}, 'choose one of none, dots, full'),
    ({'batch_size': 12}, 'batch_size is 12, which the 8 '),
    ({'batch_size': 64, 'accumulation_steps': 16}, 'the micro-batch .* is 4, '),
    ({'mesh.num_slices': 3}, 'num_slices is 3, but the 8 devices '),
    ({'mesh.num_slices': 0}, 'num_slices is 0'),
    ({'mesh.num_slices': 2, 'mesh.fsdp': 8}, 'num_slices is 2, which does not divide data=1'),
    ({'data.image_size': 225}, 'data.image_size is 225x225 pixels, which patches of 16'),
  ],
  ids=str,
)
def test_values_that_do_not_go_together_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    check(fields)


def test_several_labels_an_image_need_the_sigmoid_loss():
  with pytest.raises(UserError, match='several labels per image.* set --config.loss=sigmoid'):
    make_program(Config(), 10, multi_label=True)
  make_program(replace_fields(Config(), {'loss': 'sigmoid'}), 10, multi_label=True)


def test_values_that_go_together_are_accepted():
  check({'model.num_heads': 12, 'mesh.tensor': 4, 'mesh.num_slices': 2})


@pytest.mark.parametrize('mesh', [{'mesh.data': 1}, {'mesh.data': 4, 'mesh.fsdp': 2}], ids=str)
def test_the_moving_average_is_evaluated_with_the_shards_of_the_parameters(mesh):
  fields = {'model.width': 64, 'model.depth': 1, 'model.mlp_dim': 256, 'model.num_heads': 4}
  fields |= {'model.patch_size': 4, 'data.image_size': 8, 'ema_decay': 0.9, 'batch_size': 16}
  config = replace_fields(Config(), fields | mesh)
  program = make_program(config, 5, jax.devices()[: config.mesh.data * config.mesh.fsdp])
  state = program.init(None)
  for _ in range(2):
    params = program.eval_params(state)
    jax.tree.map(np.testing.assert_array_equal, params, state.ema_params)
    wanted = jax.tree.leaves(program.state_shardings.params)
    for array, sharding in zip(jax.tree.leaves(params), wanted, strict=True):
      assert array.sharding.is_equivalent_to(sharding, array.ndim)
  if config.mesh.data == 1:
    assert params is state.ema_params  # not copied
  else:
    assert params is not state.ema_params and program.gather._cache_size() == 1
