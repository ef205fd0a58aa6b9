"""OpenCLIP's folders: open_clip_config.json beside open_clip_model.safetensors."""

import json
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.helpers import GOLDEN, assert_same_tree
from vit_jax.errors import UserError

TOWER = {'image_size': 16, 'layers': 2, 'width': 24, 'head_width': 12, 'patch_size': 4}
TEXT = {'context_length': 7, 'vocab_size': 9, 'width': 8, 'heads': 1, 'layers': 1}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
BLOCK = {
  'ln_1.weight': (24,),
  'ln_1.bias': (24,),
  'attn.in_proj_weight': (72, 24),
  'attn.in_proj_bias': (72,),
  'attn.out_proj.weight': (24, 24),
  'attn.out_proj.bias': (24,),
  'ln_2.weight': (24,),
  'ln_2.bias': (24,),
  'mlp.c_fc.weight': (40, 24),
  'mlp.c_fc.bias': (40,),
  'mlp.c_proj.weight': (24, 40),
  'mlp.c_proj.bias': (24,),
}
SHAPES = {
  'visual.class_embedding': (24,),
  'visual.positional_embedding': (17, 24),
  'visual.proj': (24, 5),
  'visual.conv1.weight': (24, 3, 4, 4),
  **{
    f'visual.{name}.{leaf}': (24,) for name in ('ln_pre', 'ln_post') for leaf in ('weight', 'bias')
  },
  **{
    f'visual.transformer.resblocks.{i}.{n}': shape for i in range(2) for n, shape in BLOCK.items()
  },
  'transformer.resblocks.0.ln_1.weight': (8,),
  'token_embedding.weight': (9, 8),
  'logit_scale': (),
}


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  tensors = {n: rng.normal(size=shape).astype(np.float32) for n, shape in SHAPES.items()}
  safetensors.numpy.save_file(tensors, tmp_path / 'open_clip_model.safetensors')
  write_config(tmp_path, quick_gelu=True)
  return tmp_path


def write_config(folder, preprocess=None, tower=None, **fields) -> None:
  model = {'embed_dim': 5, 'vision_cfg': {**TOWER, **(tower or {})}, 'text_cfg': TEXT, **fields}
  content = {'model_cfg': model, 'preprocess_cfg': {'mean': MEAN, 'std': STD, **(preprocess or {})}}
  (folder / 'open_clip_config.json').write_text(json.dumps(content))


def test_what_the_tensors_do_not_tell_is_read(folder):
  vit = vit_jax.load(folder)
  model, rule = vit.model, vit.preprocessing
  assert (model.num_heads, model.pool, model.pre_norm, model.num_classes) == (2, 'token', True, 5)
  assert (model.numerics.gelu, model.numerics.layer_norm_epsilon) == ('quick', 1e-5)
  assert (*model.pixel_mean, *model.pixel_std) == pytest.approx((*MEAN, *STD))
  assert vit.image_size == (16, 16)
  assert (rule.resize, rule.crop_fraction, rule.interpolation) == ('crop', 1.0, 'bicubic')
  assert 'assumed' not in str(vit.report)
  same = vit_jax.load(folder / 'open_clip_model.safetensors')
  assert (same.model, same.preprocessing) == (model, rule)


@pytest.mark.parametrize(
  ('fields', 'gelu'),
  [
    ({}, 'exact'),
    ({'tower': {'act_kwargs': {'approximate': 'tanh'}}}, 'tanh'),
    ({'quick_gelu': False}, 'exact'),
  ],
)
def test_the_activation(fields, gelu, folder):
  write_config(folder, **fields)
  assert vit_jax.load(folder).model.numerics.gelu == gelu


def test_another_preparation_of_images(folder):
  pixels = {'mean': [0.5] * 3, 'std': [0.5] * 3, 'interpolation': 'bilinear'}
  write_config(folder, pixels | {'resize_mode': 'squash'}, {'norm_kwargs': {'eps': 1e-6}})
  vit = vit_jax.load(folder)
  assert (vit.preprocessing.resize, vit.preprocessing.interpolation) == ('squash', 'bilinear')
  assert not vit.model.pixel_mean and vit.model.numerics.layer_norm_epsilon == 1e-6
  write_config(folder, {'resize_mode': 'longest', 'mean': None})
  vit = vit_jax.load(folder)
  assert (vit.preprocessing.resize, vit.preprocessing.fill) == ('border', (0, 0, 0))
  assert vit.model.pixel_mean == pytest.approx(MEAN)


@pytest.mark.parametrize('projection', ['none', 'linear'])
def test_a_tower_of_timm(projection, folder):
  source = GOLDEN / 'timm_families' / 'siglip'
  tensors = safetensors.numpy.load_file(source / 'model.safetensors')
  named = {f'visual.trunk.{name}': x for name, x in tensors.items()}
  named |= {'logit_scale': np.ones((), np.float32)}
  if projection == 'linear':
    named |= {'visual.head.proj.weight': np.ones((5, 24), np.float32)}
  safetensors.numpy.save_file(named, folder / 'open_clip_model.safetensors')
  tower = {
    'image_size': 16,
    'timm_model_name': 'vit_base_patch16_siglip_224',
    'timm_model_kwargs': json.loads((source / 'config.json').read_text())['model_args'],
    'timm_pool': 'map',
    'timm_proj': projection,
  }
  write_config(folder, {'mean': [0.5] * 3, 'std': [0.5] * 3, 'resize_mode': 'squash'}, tower)
  vit, expected = vit_jax.load(folder), vit_jax.load(source)
  assert vit.model == expected.model and vit.preprocessing.resize == 'squash'
  assert_same_tree(vit.params, expected.params)
  assert ('projection of OpenCLIP is left out' in str(vit.report)) == (projection == 'linear')


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'tower': {'width': 32}}, 'width 24, but its config.json says 32'),
    ({'tower': {'pool_type': 'avg'}}, 'has the pooling avg as the image tower of OpenCLIP, which'),
    ({'tower': {'layers': [3, 4, 6, 3]}}, 'has a ResNet as the image tower of OpenCLIP, which'),
    ({'tower': {'attentional_pool': True}}, 'has the attentional_pool of OpenCLIP, which'),
    ({'preprocess': {'resize_mode': 'melt'}}, 'has the resize_mode melt'),
    ({'preprocess': {'mean': ['x']}}, 'is damaged'),
    ({'vision_cfg': None}, 'is damaged'),
    ({'tower': {'head_width': 0}}, 'is damaged'),
  ],
)
def test_a_config_that_does_not_fit_is_one_sentence(fields, message, folder):
  write_config(folder, **fields)
  with pytest.raises(UserError) as caught:
    vit_jax.load(folder)
  assert re.search(message, str(caught.value)) and '\n' not in str(caught.value)


def test_without_the_config_a_note_says_what_is_assumed(folder):
  (folder / 'open_clip_config.json').unlink()
  report = str(vit_jax.load(folder, num_heads=2).report)
  assert 'named as those of CLIP' in report and 'exact GELU' in report


def test_a_folder_of_transformers_comes_first(folder, tmp_path):
  shutil.copytree(GOLDEN / 'families' / 'CLIP', folder, dirs_exist_ok=True)
  assert 'Hugging Face layout' in str(vit_jax.load(folder).report)
