"""Configs of foundation weights: sizes as published, and weights of their architecture load."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import foundation
from tests.helpers import random_params
from vit_jax.classifier import Classifier
from vit_jax.config import Config, load_config, replace_fields
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.model_fields import model_fields
from vit_jax.models.rotary import Rotary
from vit_jax.training.parameter_groups import lr_multipliers
from vit_jax.weights.adapt import load_params


@functools.cache
def load(name: str, source: str = 'digits') -> Config:
  return load_config(f'configs/finetune.py:{name},{source}').resolve_steps(1000)


# Millions of parameters of the encoder, without the head. DINOv2: arXiv 2304.07193, Table 17 (model
# card: 21, 86, 300, 1,100). DINOv3: README of facebookresearch/dinov3. MAE: Table 1 of ViT's paper.
MILLIONS = {
  'dinov2_s14': 21,
  'dinov2_b14': 86,
  'dinov2_l14': 300,
  'dinov2_g14': 1100,
  'dinov3_s16': 21,
  'dinov3_s16plus': 29,
  'dinov3_b16': 86,
  'dinov3_l16': 300,
  'dinov3_h16plus': 840,
  'dinov3_7b16': 6716,
  'mae_b16': 86,
  'mae_l16': 304,
  'mae_h14': 632,
  'clip_b16': 86,
  'siglip_so400m14': 428,
}


@pytest.mark.parametrize('name', foundation.FAMILIES)
def test_every_family_is_a_config_of_its_published_size(name):
  config = load(name)
  model = build.model_from_config(config.model, 0)
  build.check_image_size(config.data.height_width, model, 'image_size')
  assert config.init_from == foundation.FAMILIES[name].weights
  count = build.count_parameters(build.abstract_params(model, config.data.height_width))
  if name in MILLIONS:
    assert count / 1e6 == pytest.approx(MILLIONS[name], rel=0.04)


def test_recipes_are_those_of_the_authors():
  mae = load('mae_b16')  # main_finetune.py: 5e-4 * batch / 256
  assert mae.schedule.learning_rate == 5e-4 * mae.batch_size / 256
  assert (mae.optimizer.layer_decay, mae.model.stochastic_depth_rate) == (0.65, 0.1)
  assert mae.schedule.warmup_steps == round(mae.total_steps / 20)
  dino = load('dinov3_7b16')
  params = build.abstract_params(build.model_from_config(dino.model, 3), (32, 32))
  rates = lr_multipliers(dino.optimizer, params)
  assert rates.pop('head') == {'bias': 1, 'kernel': 1} and not any(jax.tree.leaves(rates))
  assert params['head']['kernel'].shape == (2 * 4096, 3)
  clip = load('clip_b32')  # bash_fine_Openai_CLIP_P16.sh of FT-CLIP: 6e-4, batches of 2048
  assert clip.schedule.learning_rate == 6e-4 * clip.batch_size / 2048
  assert (clip.optimizer.layer_decay, clip.optimizer.freeze) == (0.6, ('embedding/.*',))
  assert clip.schedule.warmup_steps == round(clip.total_steps / 5)
  imagenet = load('clip_l14', 'imagenet')
  assert imagenet.data.train.source == 'tfds:imagenet2012'
  assert imagenet.data.test.split == 'validation'


TINY = {'model.width': 32, 'model.depth': 1, 'model.mlp_dim': 24, 'model.num_heads': 2}


@pytest.mark.parametrize(
  'name', ['dinov2_g14_reg', 'dinov3_s16plus', 'mae_b16', 'clip_b16', 'siglip_b16']
)
def test_weights_of_a_family_are_loaded_for_its_recipe(name, tmp_path):
  """The encoder of a file, pooled by its class token or probe, normalized as its authors do."""
  config = replace_fields(load(name), TINY)
  wanted = build.model_from_config(config.model, 3)
  pool = 'map' if wanted.pool == 'map' else 'token'
  stored = wanted.clone(pool=pool, class_token=False, num_classes=0)
  size = 4 * wanted.patch_size, 4 * wanted.patch_size
  Classifier(stored, random_params(stored, size, 0.1), size).save(tmp_path / 'model')
  params, report = load_params(tmp_path / 'model', wanted, (*size, 3))
  images = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
  tokens = [
    jax.device_get(
      model.clone(pool=pool, class_token=False, num_classes=0).apply(
        {'params': {key: x for key, x in tree.items() if key != 'head'}}, images
      )
    )
    for model, tree in ((stored, random_params(stored, size, 0.1)), (wanted, params))
  ]
  np.testing.assert_allclose(*tokens, rtol=1e-3, atol=1e-4)
  assert any('head/kernel' in line for line in report.reinitialized)


def test_the_normalization_of_weights_is_kept_or_folded_or_refused(tmp_path):
  config = replace_fields(load('clip_b32'), TINY)
  wanted = build.model_from_config(config.model, 3)
  size = 64, 64
  Classifier(wanted, random_params(wanted, size, 0.1), size).save(tmp_path / 'model')
  kept, _ = load_params(tmp_path / 'model', wanted, (*size, 3), init_head='keep')
  folding = wanted.clone(pixel_mean=(), pixel_std=(), patch_bias=True)
  folded, _ = load_params(tmp_path / 'model', folding, (*size, 3), init_head='keep')
  assert set(kept['embedding']) == {'kernel'} and set(folded['embedding']) == {'kernel', 'bias'}
  images = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
  logits = [m.apply({'params': p}, images) for m, p in ((wanted, kept), (folding, folded))]
  np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-4)
  gray = jax.device_get(load_params(tmp_path / 'model', folding, (*size, 1))[0])
  assert gray['embedding']['kernel'].shape[2] == 1
  with pytest.raises(UserError, match=r'another architecture: pixel_mean is \(0.48145466, .* in'):
    load_params(tmp_path / 'model', wanted.clone(pixel_mean=(0.5, 0.4, 0.3)), (*size, 3))
  with pytest.raises(UserError, match='pixel_mean has 3 numbers, but images have 1 channel; set'):
    build.check_channels(1, wanted)
  with pytest.raises(UserError, match='pixel_mean has 3 numbers, but pixel_std 0; set one of each'):
    build.model_from_config(replace_fields(config, {'model.pixel_std': ()}).model, 3)


def test_any_weights_give_their_config(tmp_path):
  base = replace_fields(load('dinov3_s16plus'), TINY)
  model = build.model_from_config(base.model, 3).clone(pool='token', num_classes=0)
  Classifier(model, random_params(model, (32, 32)), (32, 32)).save(tmp_path / 'model')
  config = load(str(tmp_path / 'model'))
  assert config.model.rotary == 'dinov3' and config.model.registers == 4
  rebuilt = build.model_from_config(config.model, 0)
  assert build.architecture(rebuilt) == build.architecture(model)
  assert config.init_from == str(tmp_path / 'model')
  assert config.data.image_size == 224
  with pytest.raises(UserError, match='rotary positions by another rule than config.model.rotary'):
    model_fields(dataclasses.replace(model, rotary=Rotary(base=7.0)))


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('dinov2_x14,digits', "the model is 'dinov2_x14'; choose one of .*dinov2_s14, dinov2_s14_reg"),
    ('dinov2_b14,imagenet,paper', 'dinov2_b14 is not a model of the paper; leave ,paper out'),
    ('dinov2_b14,nonsense', "the dataset is 'nonsense'"),
  ],
)
def test_wrong_arguments_are_one_sentence(argument, message):
  with pytest.raises(UserError, match=message):
    load_config(f'configs/finetune.py:{argument}')
