"""Products of float32 operands are computed in full precision, forward and backward."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import build
from vit_jax.models.attention.detr import DETR
from vit_jax.models.attention.fused_attention import fused_attention
from vit_jax.models.dot_product_attention import choose_attention
from vit_jax.models.masked_patches import (
  MaskedPatchPredictor,
  draw_corruptions,
  with_prediction_head,
)
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.resnet import BiTResNet
from vit_jax.models.vit import VisionTransformer

SIZE = (16, 16)
HIGHEST = (jax.lax.Precision.HIGHEST,) * 2
VIT = VisionTransformer(8, 16, 2, 32, 2, num_classes=3)
GAP = VIT.clone(pool='gap', depth=1)
BIT = BiTResNet(32, (1, 1), num_classes=3, window=3, num_heads=2)
MODELS = {
  'token': VIT.clone(pre_logits=8),
  'dropout': VIT.clone(dropout_rate=0.1, attention_dropout_rate=0.1),
  'remat': VIT.clone(remat='dots'),
  'scan': VIT.clone(remat='full', scan_blocks=True),
  'map': VIT.clone(pool='map', depth=1),
  'relative': GAP.clone(position_embedding='relative'),
  'axial_block': GAP.clone(axial=True, position_embedding='relative'),
  'hybrid': GAP.clone(resnet_width=32, resnet_blocks=(1,)),
  'xla': GAP.clone(attention=choose_attention('xla', 'gpu')),
  'cudnn': GAP.clone(attention=choose_attention('cudnn', 'gpu')),
  'fused': GAP.clone(attention=lambda *x: fused_attention(*x[:3], interpret=True)),
  'masked': with_prediction_head(GAP, 'mean_color', (*SIZE, 3)),
  'mixer': MlpMixer(8, 16, 1, 16, 16, num_classes=3),
  'resnet': BIT,
  'local': BIT.clone(spatial='local'),
  'axial': BIT.clone(spatial='axial'),
  'non_local': BIT.clone(non_local_stages=(1,)),
  'detr': DETR(16, 1, 16, 2, num_classes=3, resnet_width=32, resnet_blocks=(1,)),
}


@pytest.fixture(autouse=True)
def default_precision():
  """That of users, where the other tests have a higher one."""
  with jax.default_matmul_precision(None):
    yield


def products(jaxpr):
  """[(dtypes of the operands, precision), …] of all products and convolutions in a jaxpr."""
  result = []
  for equation in jaxpr.eqns:
    if equation.primitive.name in ('dot_general', 'conv_general_dilated'):
      dtypes = {np.dtype(x.aval.dtype).name for x in equation.invars}
      result.append((dtypes, equation.params['precision']))
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
      if is_jaxpr(inner):
        result += products(getattr(inner, 'jaxpr', inner))
  return result


def is_jaxpr(x):
  return hasattr(x, 'eqns') or hasattr(getattr(x, 'jaxpr', None), 'eqns')


def traced_products(model, is_jitted=False):
  """Those of a model's output and gradients by its parameters and its input."""
  corruption = ()
  if isinstance(model, MaskedPatchPredictor):
    images = np.zeros((2, *SIZE, 3), np.uint8)
    corruption = (draw_corruptions(images, model.patch_size, jax.random.key(0)),)

  def apply(params, images):
    options = {'deterministic': False, 'rngs': {'dropout': jax.random.key(0)}}
    return model.apply({'params': params}, images, *corruption, **options)

  def loss(params, images):
    return jnp.square((jax.jit(apply) if is_jitted else apply)(params, images)).sum()

  images = jax.ShapeDtypeStruct((2, *SIZE, 3), jnp.float32)
  params = build.abstract_params(model, SIZE)
  return products(jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(params, images).jaxpr)


def test_every_class_of_models_is_here():
  assert {type(model) for model in MODELS.values()} >= set(typing.get_args(build.Model))


@pytest.mark.parametrize('name', MODELS)
def test_float32_products_have_full_precision(name):
  for dtypes, precision in traced_products(build.with_dtype(MODELS[name], 'float32')):
    assert dtypes == {'float32'}
    assert precision == HIGHEST


def test_so_they_have_where_jit_is_inside_of_the_gradient():
  found = traced_products(MODELS['token'], is_jitted=True)
  assert all(precision == HIGHEST for _, precision in found)


@pytest.mark.parametrize(
  'name', sorted(MODELS.keys() - {'cudnn'})
)  # which is traced with cuDNN only
def test_of_a_bfloat16_model_only_the_head_has(name):
  found = traced_products(build.with_dtype(MODELS[name], 'bfloat16'))
  exact = [dtypes for dtypes, precision in found if precision == HIGHEST]
  assert exact == [{'float32'}] * len(exact)
  assert len(exact) == (6 if name == 'token' else 3)  # forward and two gradients of a layer
  others = [dtypes for dtypes, precision in found if precision != HIGHEST]
  assert {'float32'} not in others
  assert others
