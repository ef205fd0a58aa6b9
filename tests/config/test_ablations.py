"""configs/ablations.py: every name is a run, in the paper's size and in a small one."""

import pytest

from configs import ablations, recipes
from tests.helpers import make_program
from vit_jax import config as config_lib
from vit_jax.config import Config
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.flops import forward_flops


def load(argument: str, *overrides: str) -> Config:
  return config_lib.load_config(f'configs/ablations.py:{argument}', overrides).resolve_steps(1437)


@pytest.mark.parametrize('name', ablations.ABLATIONS)
def test_every_name_builds_a_program(name):
  small, config = load(f'{name},digits'), load(name)
  is_resnet = small.model.variant.startswith('R')
  shallow = '--config.model.' + ('resnet_blocks=(1, 1)' if is_resnet else 'depth=2')
  make_program(load(f'{name},digits', '--config.batch_size=8', shallow), num_classes=10)
  assert config.batch_size == 4096 and config.eval_configs['imagenet_5shot'].shots == (5,)
  flops = []
  for each in (small, config):
    model, size = build.model_from_config(each.model, 10), each.data.height_width
    build.check_image_size(size, model, 'data.image_size')
    flops.append(forward_flops(model, size))
  assert 10 * flops[0] < flops[1]
  changes = ablations.ABLATIONS[name][1]
  assert {x: config_lib.flatten(config)[x] for x in changes} == changes


def test_only_the_rows_change_what_they_name():
  base = config_lib.flatten(load('positions_1d'))
  assert base | {'model.position_embedding': '2d'} == config_lib.flatten(load('positions_2d'))
  assert base == config_lib.flatten(load('head_token'))
  expected = config_lib.flatten(config_lib.load_config('configs/pretrain.py:b16,jft', ()))
  assert {name: base[name] for name in expected} == {**expected, 'eval_batch_size': 4096}


@pytest.mark.parametrize(
  ('argument', 'rate', 'warmup'),
  [('optimizer_sgd_r152x2', 0.48, 5000), ('optimizer_sgd_r152x2,digits', 0.015, None)],
)
def test_sgd_has_the_learning_rate_of_bit(argument, rate, warmup):
  config = load(argument)
  assert (config.optimizer.name, config.schedule.learning_rate) == ('sgd', pytest.approx(rate))
  assert warmup in (None, config.schedule.warmup_steps)


def test_other_data_of_the_recipes_and_other_names():
  assert load('shape_depth_16,imagenet').model.pre_logits == 1024
  assert load('positions_none,imagenet21k').data.num_classes == recipes.NUM_CLASSES['imagenet21k']
  for argument, message in (
    ('positions_3d', 'choose one of head_token'),
    ('positions_2d,mnist', 'or a source such as'),
    ('positions_2d,', "the data is ''; choose one of"),
    ('optimizer_sgd_r152x2,imagenet21k', 'optimizer_sgd_r152x2 is a row for jft, .*r152x2,folder'),
  ):
    with pytest.raises(UserError, match=message):
      load(argument)
