"""What is refused before a run begins, because mesh, model and batch do not go together."""

import jax
import pytest

from vit_jax import config as config_lib
from vit_jax.distributed import sharding as mesh_lib
from vit_jax.errors import UserError
from vit_jax.training import setup

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason='written for eight devices')


def check(**fields) -> None:
  config = config_lib.default_config()
  config.update_from_flattened_dict({name.replace('__', '.'): x for name, x in fields.items()})
  sizes = [size for size in (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) if size > 0]
  devices = jax.devices() if config.mesh.data == -1 else jax.devices()[: jax.numpy.prod(sizes)]
  setup.check_config(config, mesh_lib.make_mesh(config.mesh, devices))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'model__num_heads': 6, 'mesh__tensor': 4}, r'num_heads is 6, .*tensor \(4\)'),
    ({'model__mlp_dim': 1026, 'mesh__tensor': 4}, r'mlp_dim is 1026, .*tensor \(4\)'),
    ({'model__variant': 'R50x1', 'mesh__tensor': 2}, 'a ResNet has no heads'),
    ({'model__variant': 'R50x1', 'model__remat': 'full'}, 'remat is .full., which a ResNet'),
    ({'model__variant': 'R50x1', 'model__scan_blocks': True}, 'scan_blocks is True, which a R'),
    ({'model__attention': 'flash'}, 'choose one of einsum, xla'),
    ({'model__attention': 'xla', 'model__attention_dropout_rate': 0.1}, 'has no dropout'),
    ({'model__remat': 'some'}, 'choose one of none, dots, full'),
    ({'batch_size': 12}, 'batch_size is 12, which the 8 shards'),
    ({'batch_size': 64, 'accumulation_steps': 16}, 'the micro-batch .* is 4, '),
    ({'mesh__num_slices': 3}, 'num_slices is 3, but the 8 devices form 1 slice'),
    ({'mesh__num_slices': 0}, 'num_slices is 0'),
    ({'mesh__num_slices': 2, 'mesh__fsdp': 8}, 'num_slices is 2, which does not divide data=1'),
  ],
  ids=str,
)
def test_what_does_not_go_together(fields, message):
  with pytest.raises(UserError, match=message):
    check(**fields)


def test_what_does():
  check(model__num_heads=12, mesh__tensor=4, mesh__num_slices=2)


def load(name: str, *overrides: str):
  return config_lib.load_config(f'configs/{name}', overrides)


def test_epochs_become_steps_of_the_data_there_is():
  config = setup.with_steps(load('finetune.py:ti16,folder:/my/images'), 1000)
  assert (config.total_steps, config.epochs) == (625, 0)  # 20 passes in batches of 32
  assert (config.eval_every, config.checkpoint.every) == (62, 62)
  config = setup.with_steps(load('finetune.py:ti16,folder:/x', '--config.epochs=1'), 10)
  assert (config.total_steps, config.eval_every) == (1, 1)


def test_who_sets_steps_or_epochs_does_not_count_in_the_other():
  config = load('finetune.py:ti16,folder:/x', '--config.total_steps=7')
  assert (config.total_steps, config.epochs) == (7, 0)
  config = load('quickstart.py', '--config.epochs=2.5')
  assert (config.total_steps, config.epochs) == (0, 2.5)
  config = load('quickstart.py', '--config.epochs=2', '--config.total_steps=5')
  with pytest.raises(UserError, match='one of them must be positive'):
    setup.with_steps(config, 100)
  with pytest.raises(UserError, match='one of them must be positive'):
    setup.with_steps(load('quickstart.py', '--config.total_steps=0'), 100)


def test_a_tenth_of_a_run_is_the_default_cadence_only_where_none_is_given():
  config = setup.with_steps(load('quickstart.py'), 100)
  assert (config.total_steps, config.eval_every, config.checkpoint.every) == (1200, 400, 400)
