"""The fields of config.model that build a given model."""

import dataclasses

import pytest

from tests.helpers import GOLDEN
from vit_jax.config import ModelConfig
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.model_fields import model_fields
from vit_jax.models.vit import Numerics
from vit_jax.weights.load import open_weights


@pytest.mark.parametrize(
  'name', ['vit_gap', 'vit_patch14', 'vit_token_prelogits', 'hybrid_stages', 'bit_resnet', 'mixer']
)
def test_the_fields_build_the_architecture_of_a_file(name):
  model = open_weights(GOLDEN / f'{name}.npz').model
  config = ModelConfig(**model_fields(model))
  rebuilt = build.architecture(build.model_from_config(config, model.num_classes))
  expected = build.architecture(model)
  assert rebuilt == {**expected, **({'pre_logits': 0} if 'pre_logits' in expected else {})}


def test_the_fields_of_further_parts():
  fields = dict(
    pool='token_gap', registers=4, rotary='eva02', rotary_grid=(16, 16), mlp='swiglu', pre_norm=True
  )
  fields |= dict(norm='rms', patch_norm=True, block_bias=False)
  model = build.model_from_config(ModelConfig(variant='S', **fields), 10)
  pooled = model.clone(pool='map', pool_num_heads=2, pool_mlp=False)
  for each in (model, pooled, pooled.clone(pool_mlp=True, pool_mlp_dim=8)):
    again = build.model_from_config(ModelConfig(**model_fields(each)), 10)
    assert build.architecture(again) == build.architecture(each)
  other = model.clone(rotary=dataclasses.replace(model.rotary, base=7.0))
  with pytest.raises(UserError, match='another rule'):
    model_fields(other)


def test_published_sizes_are_named_and_numerics_kept():
  config = ModelConfig(variant='L', patch_size=32, gelu='exact', layer_norm_epsilon=1e-12)
  fields = model_fields(build.model_from_config(config, 10))
  assert (fields['variant'], 'width' in fields) == ('L', False)
  model = build.model_from_config(ModelConfig(**fields), 10)
  numerics = dataclasses.replace(Numerics(), gelu='exact', layer_norm_epsilon=1e-12)
  assert (model.numerics, model.patch_size) == (numerics, 32)
  resnet = build.model_from_config(ModelConfig(variant='R50x1'), 10)
  assert model_fields(resnet) == {'variant': 'R50x1'}
  mixer = model_fields(build.model_from_config(ModelConfig(variant='Mixer-L'), 10))
  assert (mixer['variant'], 'width' in mixer) == ('Mixer-L', False)
