"""Published state dicts and SigLIP's npz by name: what their files do not tell is known."""

import importlib
import json
import shutil
import sys

import numpy as np
import pytest

import vit_jax
from tests.helpers import GOLDEN, assert_same_tree
from tests.torch_models import import_or_skip
from vit_jax.errors import UserError
from vit_jax.files import cache_folder
from vit_jax.weights import registry

IMAGENET = (0.485, 0.456, 0.406)
# Published name: the model of timm_families whose tensors stand in for the file.
STATE_DICTS = {
  'mae/mae_finetuned_vit_base': 'mae',
  'deit/deit_tiny_distilled_patch16_224-b40b3cf7': 'deit_distilled',
  'deit3/deit_3_small_224_1k': 'deit3',
  'dinov2/dinov2_vits14_reg4_pretrain': 'dinov2_reg4',
  'dinov2/dinov2_vitg14_pretrain': 'dinov2_giant',
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))


def path_of(name: str):
  path = registry.find(name).path
  path.parent.mkdir(parents=True)
  return path


@pytest.mark.parametrize('name', STATE_DICTS)
def test_state_dicts(name):
  torch = import_or_skip('torch')
  source = GOLDEN / 'timm_families' / STATE_DICTS[name]
  tensors = importlib.import_module('safetensors.torch').load_file(source / 'model.safetensors')
  torch.save({'model': tensors, 'epoch': 3}, path_of(name))
  vit, expected = vit_jax.load(name, num_heads=3), vit_jax.load(source)
  assert vit.model.pixel_mean == pytest.approx(IMAGENET)
  unnormalized = {'pixel_mean': (), 'pixel_std': ()}
  assert vit.model.clone(**unnormalized) == expected.model.clone(**unnormalized)
  assert_same_tree(vit.params, expected.params)
  of_dinov2 = '_antialias' if 'reg4' in name else '_offset'
  assert vit.position_resize == 'bicubic' + (of_dinov2 if 'dinov2' in name else '')
  rule = vit.preprocessing
  assert (rule.resize, rule.crop_fraction) == ('crop', 1.0 if 'deit3' in name else 0.875)
  assert (vit.license is not None and 'CC BY-NC 4.0' in str(vit.report)) == name.startswith('mae/')


def test_nothing_is_downloaded_that_cannot_be_read(monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(UserError, match=r"only PyTorch can read; pip install 'vit_jax\[torch\]'"):
    vit_jax.load('mae/mae_pretrain_vit_base')


def siglip() -> dict[str, np.ndarray]:
  """As big_vision stores both towers: the width of the MLP is no multiple of that of the tower."""
  width, heads, hidden = 36, 2, 67
  attention = {
    **{f'{n}/kernel': (width, heads, width // heads) for n in ('query', 'key', 'value')},
    **{f'{n}/bias': (heads, width // heads) for n in ('query', 'key', 'value')},
    'out/kernel': (heads, width // heads, width),
    'out/bias': (width,),
  }
  mlp = {
    'Dense_0/kernel': (width, hidden),
    'Dense_0/bias': (hidden,),
    'Dense_1/kernel': (hidden, width),
    'Dense_1/bias': (width,),
  }
  norm = {'scale': (width,), 'bias': (width,)}
  block = {
    **{f'MultiHeadDotProductAttention_0/{n}': shape for n, shape in attention.items()},
    **{f'MlpBlock_0/{n}': shape for n, shape in mlp.items()},
    **{f'LayerNorm_0/{n}': shape for n, shape in norm.items()},
  }
  tower = {
    'embedding/kernel': (4, 4, 3, width),
    'embedding/bias': (width,),
    'pos_embedding': (1, 9, width),
    **{f'Transformer/encoder_norm/{n}': shape for n, shape in norm.items()},
    'MAPHead_0/probe': (1, 1, width),
    **{f'MAPHead_0/{n}': shape for n, shape in block.items()},
  }
  for i in range(2):
    tower |= {f'Transformer/encoderblock_{i}/{n}': shape for n, shape in block.items()}
    tower |= {f'Transformer/encoderblock_{i}/LayerNorm_1/{n}': shape for n, shape in norm.items()}
  shapes = {f'params/img/{n}': shape for n, shape in tower.items()}
  shapes |= {
    'params/t': (1,),
    'params/b': (1,),
    'params/txt/Embed_0/embedding': (50, width),
    'params/txt/pos_embedding': (1, 7, width),
    'params/txt/head/kernel': (width, width),
    'params/txt/Encoder_0/encoderblock_0/LayerNorm_0/scale': (width,),
  }
  rng = np.random.default_rng(0)
  return {n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}


def stacked(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """As a model with scanned blocks stores them."""
  block = 'params/img/Transformer/encoderblock'
  result = {n: x for n, x in tensors.items() if not n.startswith(block)}
  for name in [n.removeprefix(f'{block}_0/') for n in tensors if n.startswith(f'{block}_0/')]:
    result[f'{block}/{name}'] = np.stack([tensors[f'{block}_{i}/{name}'] for i in range(2)])
  return result


def test_a_size_that_patches_do_not_tile(tmp_path):
  """As So400m/14 of 384 pixels; the code of its authors leaves out the border."""
  shutil.copytree(GOLDEN / 'families' / 'SigLIP', tmp_path / 'x')
  whole = vit_jax.load(tmp_path / 'x')
  (height, width), patch = whole.image_size, whole.model.patch_size
  text = (tmp_path / 'x' / 'config.json').read_text()
  config = json.loads(text)
  tower = config.get('vision_config', config)
  tower['image_size'] = height + patch - 1
  (tmp_path / 'x' / 'config.json').write_text(json.dumps(config))
  vit = vit_jax.load(tmp_path / 'x')
  assert vit.image_size == (height, width)
  assert f'so it takes those of {(height, width)}' in str(vit.report)
  assert_same_tree(vit.params, whole.params)


@pytest.mark.parametrize('name', ['siglip/webli_en_b16_224_63724782', 'siglip2/siglip2_b16_512'])
@pytest.mark.parametrize('vary', [dict, stacked])
def test_the_image_tower_of_siglip(name, vary):
  tensors = siglip()
  np.savez(path_of(name), **vary(tensors))
  vit = vit_jax.load(name)
  model, rule = vit.model, vit.preprocessing
  assert (model.pool, model.num_classes, model.class_token) == ('map', 0, False)
  assert (model.depth, model.width, model.num_heads, model.mlp_dim) == (2, 36, 2, 67)
  assert (vit.image_size, model.patch_size, model.numerics.gelu) == ((12, 12), 4, 'tanh')
  assert not model.pixel_mean and rule.summary() == 'squash bilinear without antialiasing'
  block = vit.params['Transformer']['encoderblock_1']['MlpBlock_0']['Dense_1']['kernel']
  stored = tensors['params/img/Transformer/encoderblock_1/MlpBlock_0/Dense_1/kernel']
  np.testing.assert_array_equal(block, stored)
  probe = vit.params['MAPHead_0']['probe']
  np.testing.assert_array_equal(probe, tensors['params/img/MAPHead_0/probe'])
  assert 'the image tower was taken; the text tower is left out' in str(vit.report)
  by_path = vit_jax.load(cache_folder() / f'{name}.npz')
  assert (by_path.model, by_path.preprocessing) == (model, rule)
  assert vit(np.zeros((1, 12, 12, 3), np.float32)).shape == (1, 36)
