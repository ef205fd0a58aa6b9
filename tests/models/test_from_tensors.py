"""The architecture of a Vision Transformer, read off its tensors."""

import dataclasses

import pytest

from vit_jax.models import build
from vit_jax.models.from_tensors import model_from_tensors
from vit_jax.models.rotary import ROTARIES
from vit_jax.models.vit import Numerics, VisionTransformer
from vit_jax.weights.layouts.released import flatten

TINY = VisionTransformer(4, 16, 2, 24, 2, 3)
RMS = Numerics(norm='rms')
MODELS = {
  'plain': TINY,
  'DINOv2': TINY.clone(pool='token_gap', registers=4, layer_scale=1e-5, mlp='swiglu'),
  'DINOv3': TINY.clone(
    position_embedding='none', rotary=ROTARIES['dinov3'], registers=4, layer_scale=1e-5
  ),
  'CLIP': TINY.clone(pre_norm=True, patch_bias=False, head_bias=False),
  'EVA-02': TINY.clone(mlp='swiglu_norm', pool='gap', class_token=True, final_norm='pooled'),
  'AIMv2': TINY.clone(
    pool='map', pool_mlp=False, patch_norm=True, block_bias=False, mlp='swiglu', numerics=RMS
  ),
  'RMSNorm alone': TINY.clone(pool='map', mlp='swiglu_norm', numerics=RMS),
  'map and a class token': TINY.clone(pool='map', class_token=True),
  'distilled DeiT': TINY.clone(pool='distilled'),
  'without the last norm': TINY.clone(pool='gap', class_token=True, final_norm='none'),
}


@pytest.mark.parametrize('num_classes', [3, 0])
@pytest.mark.parametrize('name', MODELS)
def test_further_parts_are_read(name, num_classes):
  """With the rotary rule and what a class token is for, which no tensor tells."""
  model = MODELS[name].clone(num_classes=num_classes)
  if not num_classes:
    model = model.clone(head_bias=True)  # of no head
  tensors = flatten(build.abstract_params(model, (8, 8)))
  read = model_from_tensors(
    tensors, 'x', pool=model.pool, rotary=model.rotary, final_norm=model.final_norm
  )
  assert read == model


def test_what_is_stated_does_not_overrule_the_tensors():
  tensors = flatten(build.abstract_params(TINY.clone(pool='map'), (8, 8)))
  assert model_from_tensors(tensors, 'x', pool='gap').pool == 'map'
  tensors = flatten(build.abstract_params(TINY, (8, 8)))
  assert model_from_tensors(tensors, 'x', pool='token_gap').pool == 'token'
  assert model_from_tensors(tensors, 'x').final_norm == 'encoder'
  rotary = dataclasses.replace(ROTARIES['dinov3'], base=50.0)
  assert model_from_tensors(tensors, 'x', rotary=rotary).rotary == rotary
