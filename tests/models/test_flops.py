"""FLOPs from sizes, against published counts and against those of XLA."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from vit_jax.config import ModelConfig
from vit_jax.models import build
from vit_jax.models.flops import forward_flops, recomputed_flops, train_flops
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.resnet import BiTResNet
from vit_jax.models.vit import VisionTransformer


def model_of(variant: str, patch_size: int = 16):
  return build.model_from_config(ModelConfig(variant=variant, patch_size=patch_size), 1000)


# GFLOPS, counted as multiply-adds, in the tables of pytorch.org/vision/stable/models (with two more
# digits: `_ops` in torchvision/models/vision_transformer.py and resnet.py).
@pytest.mark.parametrize(
  ('model', 'size', 'gigaflops'),
  [
    (model_of('B'), 224, 17.56),
    (model_of('B', 32), 224, 4.41),
    (model_of('L'), 224, 61.55),
    (model_of('L', 32), 224, 15.38),
    (model_of('H', 14), 224, 167.29),
    (model_of('B'), 384, 55.48),
    (model_of('R50x1'), 224, 4.09),
    # timm, results/benchmark-infer-amp-nhwc-pt113-cu117-rtx3090.csv: infer_gmacs.
    (model_of('Mixer-B'), 224, 12.62),
    (model_of('Mixer-L'), 224, 44.6),
  ],
)
def test_forward_flops_are_the_published_ones(model, size, gigaflops):
  assert forward_flops(model, (size, size)) / 2e9 == pytest.approx(gigaflops, rel=2e-3)


def xla_flops(function, *args) -> float:
  return jax.jit(function).lower(*args).compile().cost_analysis()['flops']


def abstract_arguments(model, size):
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))
  return params, jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)


WIDE = dict(patch_size=8, width=256, depth=2, mlp_dim=512, num_heads=4, num_classes=50)


MIXER = MlpMixer(patch_size=8, width=256, depth=3, token_mlp_dim=64, mlp_dim=512, num_classes=50)


# XLA counts elementwise operations too, and no padding.
@pytest.mark.parametrize(
  ('model', 'size', 'tolerance'),
  [
    (VisionTransformer(**WIDE), (32, 64), 0.04),
    (VisionTransformer(**WIDE, pool='gap', pre_logits=128), (64, 32), 0.04),
    (VisionTransformer(**WIDE, pool='token_gap', mlp='swiglu', registers=4), (32, 64), 0.04),
    (VisionTransformer(**WIDE, pool='distilled', layer_scale=0.1), (32, 64), 0.04),
    (VisionTransformer(**WIDE, pool='map'), (64, 64), 0.04),
    (VisionTransformer(**WIDE, position_embedding='relative'), (32, 64), 0.04),
    (VisionTransformer(**WIDE, pool='gap', axial=True), (32, 64), 0.04),
    (VisionTransformer(**WIDE | {'patch_size': 16}, resnet_width=64), (64, 96), 0.06),
    (
      VisionTransformer(**WIDE | {'patch_size': 16}, resnet_width=64, resnet_blocks=(2, 1)),
      (64, 96),
      0.06,
    ),
    (BiTResNet(64, (1, 2, 1), num_classes=7), (64, 90), 0.06),
    (MIXER, (64, 32), 0.04),
  ],
)
def test_forward_flops_are_those_that_xla_counts(model, size, tolerance):
  counted = xla_flops(model.apply, *abstract_arguments(model, size))
  assert forward_flops(model, size) == pytest.approx(counted, rel=tolerance)


@pytest.mark.parametrize(
  'model', [VisionTransformer(**WIDE | {'depth': 3}), MIXER], ids=['ViT', 'Mixer']
)
def test_train_and_recomputed_flops_are_those_that_xla_counts(model):
  size, counted, models = (128, 128), {}, {}
  for remat in ('none', 'dots', 'full'):
    models[remat] = model.clone(remat=remat)
    params, images = abstract_arguments(models[remat], size)

    def loss(params, images, model=models[remat]):
      return model.apply(params, images, deterministic=False).sum()

    counted[remat] = xla_flops(jax.grad(loss), params, images)
  forward = forward_flops(models['none'], size)
  assert train_flops(models['none'], size) == 3 * forward
  assert 3 * forward == pytest.approx(counted['none'], rel=0.01)
  recomputed = {remat: recomputed_flops(model, size) for remat, model in models.items()}
  assert recomputed['none'] == 0
  for remat in ('dots', 'full'):
    extra = counted[remat] - counted['none']
    assert recomputed[remat] == pytest.approx(extra, abs=0.02 * forward)
  assert recomputed['dots'] < recomputed['full'] < forward
  for remat, flops in recomputed.items():  # 'dots' keeps what the kernel returns
    expected = 0 if remat == 'dots' else flops
    assert recomputed_flops(models[remat], size, has_fused_attention=True) == expected
  assert (recomputed['dots'] == 0) == (model is MIXER)  # it has no products but dense layers


DEEP = WIDE | {'depth': 3}


@pytest.mark.parametrize(
  ('model', 'pattern', 'remat'),
  [
    (VisionTransformer(**DEEP, registers=4), '.*', 'none'),
    (VisionTransformer(**DEEP, pool='token_gap', mlp='swiglu'), 'head/.*', 'full'),
    (VisionTransformer(**DEEP, pool='map'), '.*encoderblock_2/.*|head/.*', 'full'),
    (VisionTransformer(**DEEP), '.*/(query|value)/kernel|head/.*', 'dots'),  # as with adapters
    (VisionTransformer(**DEEP), 'cls|.*pos_embedding|Transformer/.*|head/.*', 'none'),
    (MIXER, 'head/.*', 'full'),
    (MIXER, '.*', 'full'),
  ],
)
def test_backward_flops_are_those_of_what_is_trained(model, pattern, remat):
  """As XLA counts them, for the gradient of the trained parameters alone."""
  size, model = (96, 96), model.clone(remat=remat)
  params, images = abstract_arguments(model, size)
  flat = traverse_util.flatten_dict(params['params'], sep='/')
  trained = {name: x for name, x in flat.items() if re.fullmatch(pattern, name)}

  def loss(trained, flat, images):
    tree = traverse_util.unflatten_dict(flat | trained, sep='/')
    return model.apply({'params': tree}, images, deterministic=False).sum()

  # Before XLA optimizes the program, which takes long.
  lowered = jax.jit(jax.value_and_grad(loss)).lower(trained, flat, images)
  total = train_flops(model, size, trained) + recomputed_flops(model, size, False, trained)
  assert total == pytest.approx(lowered.cost_analysis()['flops'], rel=0.04)
  of_all = train_flops(model, size)
  assert (train_flops(model, size, trained) == of_all) == (pattern == '.*')
  assert train_flops(model, size, trained) <= of_all
