"""What is refused before a run begins, because mesh, model and batch do not go together."""

import jax
import pytest

from vit_jax import config as config_lib
from vit_jax.errors import UserError
from vit_jax.parallel import mesh as mesh_lib
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
        ({'batch_size': 12}, 'batch_size is 12, which the 8 parts'),
        ({'batch_size': 64, 'accumulation_steps': 16}, 'the micro-batch .* is 4, '),
        ({'mesh__num_slices': 3}, 'num_slices is 3, but the 8 devices are of 1 slice'),
        ({'mesh__num_slices': 0}, 'num_slices is 0'),
        ({'mesh__num_slices': 2, 'mesh__fsdp': 8}, 'num_slices is 2, which does not divide data=1'),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_go_together(fields, message):
  with pytest.raises(UserError, match=message):
    check(**fields)


def test_what_does():
  check(model__num_heads=12, mesh__tensor=4, mesh__num_slices=2)
