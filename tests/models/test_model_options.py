"""Every field of config.model changes a kind of model, or is refused for it."""

import dataclasses

import pytest

from vit_jax.config import ModelConfig
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.model_options import READ_FIELDS, kind_of

# A value other than the default of each field, and what else it needs.
OTHER = dict(
  patch_size=32,
  width=240,
  depth=3,
  mlp_dim=99,
  token_mlp_dim=99,
  num_heads=4,
  pool='map',
  pre_logits=8,
  dropout_rate=0.5,
  attention_dropout_rate=0.5,
  stochastic_depth_rate=0.5,
  head_bias_init=1.0,
  gelu='exact',
  layer_norm_epsilon=1e-3,
  resnet_width=32,
  resnet_blocks=(1,),
  resnet_spatial='local',
  resnet_window=5,
  non_local_stages=(1,),
  non_local_subsample=True,
  position_embedding='2d',
  position_entry='layers',
  axial=True,
  class_token=True,
  registers=4,
  rotary='dinov3',
  rotary_grid=(16, 16),
  patch_bias=False,
  pixel_mean=(0.4, 0.4, 0.4),
  pixel_std=(0.2, 0.2, 0.2),
  patch_norm=True,
  block_bias=False,
  qkv_bias='none',
  norm='rms',
  pool_mlp=False,
  pre_norm=True,
  mlp='swiglu',
  layer_scale=0.1,
  final_norm='pooled',
  pool_num_heads=6,
  pool_mlp_dim=99,
  remat='full',
  scan_blocks=True,
  attention='xla',
  dtype='bfloat16',
)
NORMALIZED = {'pixel_mean': (0.5, 0.5, 0.5), 'pixel_std': (0.5, 0.5, 0.5)}
NEEDS = {
  ('Ti', 'pixel_mean'): NORMALIZED,
  ('Ti', 'pixel_std'): NORMALIZED,
  ('Ti', 'axial'): {'pool': 'gap'},
  ('Ti', 'class_token'): {'pool': 'gap'},
  ('Ti', 'rotary_grid'): {'rotary': 'eva02'},
  ('Ti', 'pool_num_heads'): {'pool': 'map'},
  ('Ti', 'pool_mlp_dim'): {'pool': 'map'},
  ('Ti', 'pool_mlp'): {'pool': 'map'},
  ('Ti', 'resnet_blocks'): {'resnet_width': 64},
  ('R50x1', 'num_heads'): {'resnet_spatial': 'local'},
  ('R50x1', 'resnet_window'): {'resnet_spatial': 'local'},
  ('R50x1', 'non_local_subsample'): {'non_local_stages': (1,)},
}
VARIANTS = ('Ti', 'R50x1', 'Mixer-S', 'DETR-R50')


def make(**fields) -> build.Model:
  return build.model_from_config(ModelConfig(**fields), 5, platform='cpu')


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('name', [each.name for each in dataclasses.fields(ModelConfig)][1:])
def test_a_field_changes_the_model_or_is_refused(variant, name):
  others = NEEDS.get((variant, name), {})
  fields = {'variant': variant, **others, name: OTHER[name]}
  if name in READ_FIELDS[kind_of(variant)]:
    assert make(**fields) != make(variant=variant, **others)
  else:
    default = getattr(ModelConfig(), name)
    text = f'config.model.{name}={OTHER[name]} is not for {kind_of(variant)}; set {name}={default}.'
    with pytest.raises(UserError) as caught:
      make(**fields)
    assert str(caught.value) == text


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'variant': 'DETR-R50', 'pool': 'map', 'pre_logits': 8, 'gelu': 'exact'},
      'config.model.pool=map, config.model.pre_logits=8 and config.model.gelu=exact are not for a '
      'DETR; set pool=token, pre_logits=0 and gelu=tanh.',
    ),
    (
      {'variant': 'R50x1', 'num_heads': 4},
      'config.model.num_heads=4 is not for a ResNet with resnet_spatial=conv; set num_heads=0.',
    ),
    (
      {'variant': 'R50x1', 'resnet_spatial': 'local', 'non_local_subsample': True},
      'config.model.non_local_subsample=True is not for a ResNet with non_local_stages=(); set '
      'non_local_subsample=False.',
    ),
  ],
)
def test_one_sentence_names_all_fields(fields, message):
  with pytest.raises(UserError) as caught:
    make(**fields)
  assert str(caught.value) == message


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'pool': 'token_gap'}, 'axial=True needs pool gap or map'),
    ({'pool': 'gap', 'class_token': True}, 'axial=True does not go with class_token=True'),
    ({'pool': 'gap', 'registers': 2}, 'axial=True does not go with registers=2'),
    ({'pool': 'gap', 'rotary': 'dinov3'}, 'axial=True does not go with rotary; set rotary=none'),
    ({'pool': 'gap', 'mlp': 'swiglu'}, 'axial=True does not go with mlp=swiglu'),
    ({'pool': 'gap', 'layer_scale': 0.1}, 'axial=True does not go with layer_scale=0.1'),
    ({'pool': 'gap', 'block_bias': False}, 'axial=True does not go with block_bias=False'),
    ({'axial': False, 'rotary': 'dinov3', 'width': 180}, 'heads of 30 features'),
    ({'axial': False, 'pool_num_heads': 2}, 'pool_num_heads=2 is that of pool=map'),
    (
      {'axial': False, 'pool': 'map', 'pool_mlp': False, 'pool_mlp_dim': 8},
      'pool_mlp_dim=8 is of an MLP',
    ),
    ({'axial': False, 'rotary': 'eva02', 'rotary_grid': (4,)}, 'rotary_grid=.4,. must be rows'),
  ],
)
def test_parts_that_exclude_each_other(fields, message):
  with pytest.raises(UserError, match=message):
    make(**{'variant': 'S', 'axial': True, **fields})


@pytest.mark.parametrize('variant', VARIANTS)
def test_average_pooling_may_be_named(variant):
  assert make(variant=variant, pool='gap').num_classes == 5
