"""configs/scaling.py: models of equal compute, parts of the data, augmentation."""

import pytest

from configs import scaling
from vit_jax.config import load_config
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.flops import forward_flops


def load(argument, *flags):
  return load_config(f'configs/scaling.py:{argument}', flags)


def test_all_models_need_about_the_same_compute():
  flops = {}
  for name in scaling.MODELS:
    config = load(f'{name},10%')
    model = build.model_from_config(config.model, 10)
    flops[name] = forward_flops(model, config.data.height_width)
  assert max(flops.values()) < 1.2 * min(flops.values()), flops


def test_all_models_see_the_same_examples():
  configs = [load(f'{name},3%') for name in scaling.MODELS]
  assert len({(config.total_steps, config.batch_size, config.data) for config in configs}) == 1


@pytest.mark.parametrize(
  ('fraction', 'split'), [('10%', 'train[:10%]'), ('0.5%', 'train[:0.5%]'), ('100%', 'train')]
)
def test_a_fraction_is_a_slice_of_the_training_split(fraction, split):
  assert load(f'vit,{fraction}').data.train.split == split


def test_strong_augmentation_changes_nothing_else():
  plain, strong = load('resnet,10%'), load('resnet,10%,strong')
  assert (strong.data.augment.randaugment, strong.mixup_alpha) == ('timm_increasing', 0.2)
  assert (plain.data.augment.randaugment, plain.mixup_alpha) == ('none', 0)
  assert plain.model == strong.model and plain.schedule == strong.schedule


@pytest.mark.parametrize(
  ('argument', 'sentence'),
  [
    ('vgg,10%', "the argument is 'vgg,10%'"),
    ('vit,10%,weak', 'MODEL,FRACTION'),
    ('vit,10%,strong,x', 'MODEL,FRACTION'),
    ('vit,10', "the fraction is '10'"),
    ('vit,0%', "the fraction is '0%'"),
    ('vit,101%', "the fraction is '101%'"),
  ],
)
def test_other_arguments_are_refused(argument, sentence):
  with pytest.raises(UserError, match=sentence):
    load(argument)
