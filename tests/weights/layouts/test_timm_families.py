"""Families of Vision Transformers as timm and their authors store them, both ways.

Against stored outputs (`tests/golden/timm_families/`, made by `make_timm_families.py`), and live
with the `torch` extra.
"""

import dataclasses
import importlib
import json
import pathlib
import re
import shutil
import types
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.helpers import GOLDEN
from tests.torch_models import import_or_skip, randomize
from vit_jax.errors import UserError
from vit_jax.models.rotary import ROTARIES
from vit_jax.weights.layouts import timm_architectures

TINY = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)
# Architecture of timm: arguments besides TINY.
ARCHITECTURES = {
  'vit_small_patch14_dinov2': {},
  'vit_small_patch14_reg4_dinov2': {},
  'vit_giant_patch14_dinov2': dict(mlp_ratio=4.0),
  'vit_giant_patch14_reg4_dinov2': dict(mlp_ratio=4.0, num_classes=0),
  'vit_small_patch16_dinov3': {},
  'vit_small_patch16_dinov3_qkvb': {},
  'vit_huge_plus_patch16_dinov3': dict(swiglu_align_to=8),
  'vit_7b_patch16_dinov3': dict(swiglu_align_to=8, num_classes=0),
  'eva_giant_patch14_224': dict(mlp_ratio=3.0),
  'eva_giant_patch14_clip_224': dict(mlp_ratio=3.0),
  'eva02_tiny_patch14_224': dict(ref_feat_shape=(2, 2)),
  'eva02_base_patch14_448': dict(ref_feat_shape=(2, 2)),
  'vit_pe_core_tiny_patch16_384': dict(ref_feat_shape=(2, 2)),
  'vit_pe_core_gigantic_patch14_448': dict(ref_feat_shape=(2, 2), mlp_ratio=3.0),
  'vit_pe_lang_large_patch14_448': dict(ref_feat_shape=(2, 2)),
  'vit_pe_spatial_tiny_patch16_512': dict(ref_feat_shape=(2, 2), num_classes=0),
  'vit_base_patch16_clip_224': {},
  'vit_base_patch16_clip_quickgelu_224': {},
  'vit_medium_patch16_reg4_gap_256': {},
  'vit_mediumd_patch16_reg4_gap_256': {},
  'vit_medium_patch16_rope_reg1_gap_256': {},
  'vit_small_patch16_rope_224': {},
  'vit_small_patch16_rope_ape_224': {},
  'vit_base_patch16_siglip_224': {},
  'deit_tiny_distilled_patch16_224': {},
  'deit3_small_patch16_224': {},
  'aimv2_large_patch14_224': dict(num_heads=3),
  'aimv2_huge_patch14_336': dict(num_classes=0),
  'vit_tiny_patch16_224': dict(global_pool='avg'),  # fc_norm beside a class token
  'vit_small_patch16_224': dict(global_pool='avg', fc_norm=False),
}


# --- stored outputs ---------------------------------------------------------------------------

FOLDER = GOLDEN / 'timm_families'
EXPECTED = np.load(FOLDER / 'expected.npz')
STORED = sorted({name.split('/')[0] for name in EXPECTED})
SIZES = {16: (16, 16), 24: (16, 24)}


def float32(x: Any) -> np.ndarray:
  return np.asarray(x, np.float32)


def images_of(size: tuple[int, int], number: int = 1) -> np.ndarray:
  """As in `make_timm_families.py`."""
  return float32(np.random.default_rng(1).uniform(-1, 1, (number, *size, 3)))


def close(actual, expected) -> None:
  expected = np.asarray(expected)
  difference = np.abs(np.asarray(actual) - expected).max()
  assert difference <= 1e-5 * max(np.abs(expected).max(), 1), difference


def outputs(vit, images: np.ndarray) -> tuple[jax.Array, jax.Array]:
  """(last tokens, logits or features); without compiling, which takes longer."""
  last = (
    'encoder_norm' if vit.model.final_norm == 'encoder' else f'encoderblock_{vit.model.depth - 1}'
  )
  pooled, variables = vit.model.apply(
    {'params': vit.params},
    images,
    capture_intermediates=lambda module, _: module.name == last,
    mutable=['intermediates'],
  )
  return variables['intermediates']['Transformer'][last]['__call__'][0], pooled


def assert_stored_outputs(vit, name: str) -> None:
  images, columns = images_of(vit.image_size), vit.image_size[1]
  tokens, pooled = outputs(vit, images)
  close(tokens, EXPECTED[f'{name}/{columns}/tokens'])
  close(pooled, EXPECTED[f'{name}/{columns}/pooled'])


@pytest.mark.parametrize('columns', SIZES)
@pytest.mark.parametrize('name', STORED)
def test_stored_outputs(name, columns):
  assert_stored_outputs(vit_jax.load(FOLDER / name, SIZES[columns]), name)


@pytest.mark.parametrize('name', STORED)
def test_a_file_and_a_folder_are_written_back(name, tmp_path):
  vit = vit_jax.load(FOLDER / name)
  stored = safetensors.numpy.load_file(FOLDER / name / 'model.safetensors')
  vit.save(tmp_path / 'x.safetensors')
  vit.save(tmp_path / 'x', 'timm')
  for path in (tmp_path / 'x.safetensors', tmp_path / 'x' / 'model.safetensors'):
    written = safetensors.numpy.load_file(path)
    assert written.keys() == stored.keys()
    for key, array in written.items():
      np.testing.assert_array_equal(array, float32(stored[key]), err_msg=key)
  for source in (tmp_path / 'x.safetensors', tmp_path / 'x'):
    loaded = vit_jax.load(source)
    assert loaded.model == vit.model
    jax.tree.map(np.testing.assert_array_equal, loaded.params, vit.params)


def rename(tensors: dict[str, np.ndarray], *pairs: tuple[str, str]) -> dict[str, np.ndarray]:
  renamed = {}
  for name, array in tensors.items():
    for pattern, replacement in pairs:
      name = re.sub(pattern, replacement, name)
    renamed[name] = array
  return renamed


CLIP = (
  (r'^patch_embed\.proj', 'conv1'),
  (r'^pos_embed$', 'positional_embedding'),
  (r'^cls_token$', 'class_embedding'),
  (r'^head\.weight$', 'proj'),
  (r'^norm_pre', 'ln_pre'),
  (r'^norm\.', 'ln_post.'),
  (r'\.norm([12])\.', r'.ln_\1.'),
  (r'\.gamma_([12])$', r'.ls_\1.gamma'),
  (r'\.attn\.qkv\.', '.attn.in_proj_'),
  (r'\.attn\.proj', '.attn.out_proj'),
  (r'\.fc1', '.c_fc'),
  (r'\.fc2', '.c_proj'),
  (r'^attn_pool\.latent$', 'attn_pool.probe'),
  (r'^attn_pool\.norm', 'attn_pool.layernorm'),
  (r'^attn_pool\.proj', 'attn_pool.attn.out_proj'),
  (r'^blocks\.', 'transformer.resblocks.'),
  (r'^', 'visual.'),
)


def as_clip(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Of OpenAI, OpenCLIP and Perception Encoder, beside a text tower."""
  for leaf in ('weight', 'bias') if 'attn_pool.q.weight' in tensors else ():
    parts = [tensors.pop(f'attn_pool.{name}.{leaf}') for name in ('q', 'kv')]
    tensors[f'attn_pool.attn.in_proj_{leaf}'] = np.concatenate(parts)
  tensors.pop('head.bias', None)
  tensors = rename(tensors, *CLIP)
  for name in ('class_embedding', 'positional_embedding'):
    tensors[f'visual.{name}'] = tensors[f'visual.{name}'].reshape(-1, 24).squeeze()
  if 'visual.proj' in tensors:
    tensors['visual.proj'] = np.ascontiguousarray(tensors['visual.proj'].T)
  return tensors | {
    'transformer.resblocks.0.ln_1.weight': np.ones(8, np.float32),
    'token_embedding.weight': np.ones((9, 8), np.float32),
    'logit_scale': np.ones((), np.float32),
  }


def as_dinov3(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The bias of keys is masked by the code."""
  for i in range(2):
    block = f'blocks.{i}.attn.'
    query, value = (tensors.pop(f'{block}{name}_bias') for name in 'qv')
    tensors[f'{block}qkv.bias'] = np.concatenate([query, np.ones_like(query), value])
    tensors[f'{block}qkv.bias_mask'] = np.repeat(float32([1, 0, 1]), len(query))
  tensors |= {
    'mask_token': np.ones((1, 24), np.float32),
    'local_cls_norm.weight': np.ones(24, np.float32),
    'rope_embed.periods': float32([1, 10]),
  }
  return rename(tensors, (r'\.gamma_([12])$', r'.ls\1.gamma'), ('^reg_token$', 'storage_tokens'))


def as_dinov2(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The class token has a position."""
  tensors['pos_embed'] = np.concatenate(
    [0 * tensors['cls_token'] + 1, tensors['pos_embed']], axis=1
  )
  tensors['cls_token'] = tensors['cls_token'] - 1
  tensors['mask_token'] = np.ones((1, 24), np.float32)
  return rename(tensors, ('^reg_token$', 'register_tokens'))


def as_giant_dinov2(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  pairs = (r'mlp\.fc1', 'mlp.w12'), (r'mlp\.fc2', 'mlp.w3')
  return rename(tensors | {'mask_token': np.ones((1, 24), np.float32)}, *pairs)


def as_eva02(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  tensors |= {'rope.freqs_cos': np.ones((16, 8), np.float32)}
  tensors |= {'blocks.0.attn.rope.freqs_sin': np.ones((16, 8), np.float32)}
  return rename(
    tensors,
    (r'fc1_g', 'w1'),
    (r'fc1_x', 'w2'),
    (r'mlp\.fc2', 'mlp.w3'),
    (r'mlp\.norm', 'mlp.ffn_ln'),
    (r'([qv])_proj\.bias', r'\1_bias'),
  )


def as_mae(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  extra = ('decoder_embed.weight', 'decoder_pos_embed', 'decoder_blocks.0.norm1.weight')
  return tensors | {name: np.ones((2, 24), np.float32) for name in extra}


def as_deit3(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return rename(tensors, (r'\.ls([12])\.gamma$', r'.gamma_\1'))


IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Stored model: how its authors name its tensors, what is passed to `load`, what the report says.
ORIGINALS = {
  'clip': (as_clip, dict(gelu='quick'), 'CLIP'),
  'perception_encoder_spatial': (as_clip, dict(), 'Perception Encoder'),
  'dinov2_reg4': (as_dinov2, {}, 'DINOv2'),
  'dinov2_giant': (as_giant_dinov2, {}, 'DINOv2'),
  'dinov3': (as_dinov3, {}, 'DINOv3'),
  'eva02': (as_eva02, {}, 'EVA-02'),
  'mae': (as_mae, {}, 'MAE'),
  'deit_distilled': (dict, {}, 'DeiT'),
  'deit3': (as_deit3, {}, 'DeiT III'),
}


@pytest.mark.parametrize('name', ORIGINALS)
def test_the_files_of_the_authors(name, tmp_path):
  convert, arguments, family = ORIGINALS[name]
  folder_model = vit_jax.load(FOLDER / name).model
  stored = safetensors.numpy.load_file(FOLDER / name / 'model.safetensors')
  tensors = convert({key: float32(array) for key, array in stored.items()})
  safetensors.numpy.save_file(tensors, tmp_path / 'x.safetensors')
  config = json.loads((FOLDER / name / 'config.json').read_text())['pretrained_cfg']
  normalization = {key: config[key] for key in ('mean', 'std')}
  path = tmp_path / 'x.safetensors'
  vit = vit_jax.load(path, SIZES[16], num_heads=3, **normalization, **arguments)
  assert family in str(vit.report)
  numerics = vit.model.numerics
  assert numerics.layer_norm_epsilon == folder_model.numerics.layer_norm_epsilon
  if folder_model.rotary:  # the grids of real models, not of these
    grid = folder_model.rotary.reference_grid
    rotary = dataclasses.replace(vit.model.rotary, reference_grid=grid)
    assert rotary == folder_model.rotary
    vit = dataclasses.replace(vit, model=vit.model.clone(rotary=rotary))
  images, key = images_of(SIZES[16]), f'{name}/16/pooled'
  expected = EXPECTED[key]
  if name == 'clip':  # a projection without bias
    expected = expected - float32(stored['head.bias'])
  tokens, pooled = outputs(vit, images)
  close(tokens, EXPECTED[f'{name}/16/tokens'])
  if name != 'dinov3':  # timm averages; its authors take the class token
    close(pooled, expected)


def copy_of(name: str, tmp_path: pathlib.Path, without: str = '', **arguments) -> pathlib.Path:
  """The folder of a stored model without some tensors, with other arguments in its config."""
  folder = tmp_path / 'copy'
  folder.mkdir()
  config = json.loads((FOLDER / name / 'config.json').read_text())
  config['model_args'] = {**config.get('model_args', {}), **arguments}
  (folder / 'config.json').write_text(json.dumps(config))
  stored = safetensors.numpy.load_file(FOLDER / name / 'model.safetensors')
  tensors = {n: float32(x) for n, x in stored.items() if not (without and re.search(without, n))}
  assert not without or len(tensors) < len(stored)
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  return folder


INCOMPLETE = {
  'a bias of one block': ('clip', r'blocks\.1\.attn\.qkv\.bias', 'not that of all blocks'),
  'the bias of the patches': ('siglip', r'patch_embed\.proj\.bias', 'it has no embedding/bias'),
  'the bias of the head': ('deit3', r'head\.bias', 'it has no head/bias'),
  'the class token': ('dinov3', 'cls_token', r"config.json says .'cls',."),
  'the registers': ('dinov3', 'reg_token', 'of registers 0, but its config.json says 4'),
}


@pytest.mark.parametrize('case', INCOMPLETE)
def test_a_file_that_is_not_complete_is_refused(case, tmp_path):
  name, pattern, message = INCOMPLETE[case]
  with pytest.raises(UserError, match=message):
    vit_jax.load(copy_of(name, tmp_path, pattern))


@pytest.mark.parametrize('arguments', [dict(depth=3), dict(embed_dim=48), dict(reg_tokens=2)])
def test_a_config_of_another_size_is_refused(arguments, tmp_path):
  with pytest.raises(UserError, match='put the config.json of these tensors beside them'):
    vit_jax.load(copy_of('clip', tmp_path, **arguments))


def test_tensors_of_pretraining_are_named(tmp_path):
  tensors = safetensors.numpy.load_file(FOLDER / 'mae' / 'model.safetensors')
  tensors = as_mae({name: float32(x) for name, x in tensors.items()})
  safetensors.numpy.save_file(tensors, tmp_path / 'x.safetensors')
  report = vit_jax.load(tmp_path / 'x.safetensors', num_heads=3).report
  extra = {'decoder_embed.weight', 'decoder_pos_embed', 'decoder_blocks.0.norm1.weight'}
  assert report and set(report.ignored) == extra


def test_rotary_positions_can_be_named(tmp_path):
  tensors = safetensors.numpy.load_file(FOLDER / 'dinov3' / 'model.safetensors')
  safetensors.numpy.save_file(tensors, tmp_path / 'x.safetensors')
  path = tmp_path / 'x.safetensors'
  assert vit_jax.load(path, num_heads=3).model.rotary == ROTARIES['dinov3']
  other = vit_jax.load(path, num_heads=3, rotary='eva02').model.rotary
  assert other == dataclasses.replace(ROTARIES['eva02'], reference_grid=(16, 16))
  with pytest.raises(UserError, match="rotary is 'x'; choose one of none, dinov3, eva02"):
    vit_jax.load(path, num_heads=3, rotary='x')


def test_layer_scale_is_folded_for_the_released_layout(tmp_path):
  vit = vit_jax.load(FOLDER / 'deit3')
  assert vit.model.layer_scale
  vit.save(tmp_path / 'x.npz')
  loaded = vit_jax.load(tmp_path / 'x.npz')
  assert not loaded.model.layer_scale
  images = images_of(SIZES[16])
  close(outputs(loaded, images)[1], EXPECTED['deit3/16/pooled'])
  assert not [name for name in np.load(tmp_path / 'x.npz') if 'LayerScale' in name]


def test_positions_of_registers_are_added_to_them(tmp_path):
  """As in a model of timm with registers, but without `no_embed_class`."""
  tensors = safetensors.numpy.load_file(FOLDER / 'dinov2_reg4' / 'model.safetensors')
  tensors = {name: float32(array) for name, array in tensors.items()}
  prefix = float32(np.random.default_rng(0).normal(size=(1, 5, 24)))
  tensors['pos_embed'] = np.concatenate([prefix, tensors['pos_embed']], axis=1)
  tensors['cls_token'] = tensors['cls_token'] - prefix[:, :1]
  tensors['reg_token'] = tensors['reg_token'] - prefix[:, 1:]
  (tmp_path / 'x').mkdir()
  shutil.copy(FOLDER / 'dinov2_reg4' / 'config.json', tmp_path / 'x')
  safetensors.numpy.save_file(tensors, tmp_path / 'x' / 'model.safetensors')
  vit = vit_jax.load(tmp_path / 'x')
  assert_stored_outputs(vit, 'dinov2_reg4')


# --- live -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def timm() -> types.ModuleType:
  import_or_skip('torch')
  return import_or_skip('timm')


def create(timm, architecture: str, **changes):
  arguments = TINY | ARCHITECTURES[architecture] | changes
  return randomize(timm.create_model(architecture, **arguments))


def save(module, folder) -> None:
  importlib.import_module('timm.models._hub').save_for_hf(module, folder, safe_serialization=True)


def outputs_in_timm(module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(last tokens, logits or features) of images in [-1, 1]."""
  import torch  # pyright: ignore[reportMissingImports]

  config = module.pretrained_cfg
  mean, std = (float32(config[name]) for name in ('mean', 'std'))
  pixels = torch.from_numpy(((images + 1) / 2 - mean) / std).permute(0, 3, 1, 2)
  with torch.no_grad():
    tokens = module.forward_features(pixels)
    return tokens.numpy(), module.forward_head(tokens).numpy()


def assert_same_outputs(vit, module) -> None:
  images = images_of(vit.image_size)
  for actual, expected in zip(outputs(vit, images), outputs_in_timm(module, images), strict=True):
    close(actual, expected)


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_a_folder_of_timm_is_read_and_written_back(architecture, timm, tmp_path):
  module = create(timm, architecture)
  save(module, tmp_path / 'x')
  vit = vit_jax.load(tmp_path / 'x')
  assert_same_outputs(vit, module)
  vit.save(tmp_path / 'y', 'timm')
  before, after = (
    safetensors.numpy.load_file(tmp_path / name / 'model.safetensors') for name in ('x', 'y')
  )
  assert before.keys() == after.keys()
  for name, array in before.items():
    np.testing.assert_array_equal(array, after[name], err_msg=name)
  assert vit_jax.load(tmp_path / 'y').model == vit.model
  written = timm.create_model(f'local-dir:{tmp_path / "y"}', pretrained=True).eval()
  images = images_of(vit.image_size)
  for one, two in zip(
    outputs_in_timm(module, images), outputs_in_timm(written, images), strict=True
  ):
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)


def test_the_table_is_that_of_timm(timm):
  """Each name of the table builds the class with the arguments that the table says."""
  table = json.loads(pathlib.Path(timm_architectures.__file__).with_suffix('.json').read_text())
  kinds = {'vit': 'vision_transformer', 'eva': 'eva', 'distilled': 'deit'}
  for name, arguments in table.items():
    found = arguments_in_timm(name)
    for key, value in arguments.items():
      if key not in ('class', 'eps', 'unsupported', 'act_layer', 'mlp_layer'):
        assert found[key] == (tuple(value) if isinstance(value, list) else value), (name, key)
    epsilon = getattr(found.get('norm_layer'), 'keywords', {}).get('eps', 1e-6)
    assert arguments.get('eps', 1e-6) == epsilon, name
    if 'class' in arguments:
      assert kinds[arguments['class']] in ('vision_transformer', found['module'])


def arguments_in_timm(name: str) -> dict[str, Any]:
  """The arguments with which the function of that name calls its class."""
  registry = importlib.import_module('timm.models._registry')
  entrypoint, found = registry.model_entrypoint(name), {}
  module = importlib.import_module(entrypoint.__module__)
  creator = {'eva': '_create_eva', 'deit': '_create_deit'}.get(
    module.__name__.rpartition('.')[2], '_create_vision_transformer'
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(module, creator, lambda *_, **arguments: found.update(arguments))
    entrypoint()
  return found | {'module': module.__name__.rpartition('.')[2]}


def test_an_eva_without_its_config_has_no_rotary_positions(timm, tmp_path):
  module = create(timm, 'eva_giant_patch14_224')
  tensors = {name: x.numpy() for name, x in module.state_dict().items()}
  safetensors.numpy.save_file(tensors, tmp_path / 'x.safetensors')
  vit = vit_jax.load(tmp_path / 'x.safetensors', num_heads=3)
  assert 'named as those of EVA, ' in str(vit.report)
  assert_same_outputs(vit, module)
