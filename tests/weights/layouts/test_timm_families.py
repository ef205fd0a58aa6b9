"""Families of Vision Transformers as timm and their authors store them, both ways.

Against stored outputs (`tests/golden/timm_families/`, made by `make_timm_families.py` there), and live
with the `torch` extra.
"""

import importlib
import json
import types

import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.torch_models import import_or_skip, randomize
from vit_jax.weights.layouts import timm_architectures

TINY = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)
FREE = {key: value for key, value in TINY.items() if key != 'num_classes'}
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
  'vit_base_mci_224': None,  # of another class
  'vit_tiny_patch16_224': dict(global_pool='avg'),  # fc_norm beside a class token
  'vit_small_patch16_224': dict(global_pool='avg', fc_norm=False),
}
ARCHITECTURES.pop('vit_base_mci_224')


@pytest.fixture(scope='module')
def timm() -> types.ModuleType:
  import_or_skip('torch')
  return import_or_skip('timm')


def create(timm, architecture: str, **changes):
  arguments = TINY | ARCHITECTURES[architecture] | changes
  return randomize(timm.create_model(architecture, **arguments))


def save(module, folder) -> None:
  importlib.import_module('timm.models._hub').save_for_hf(module, folder, safe_serialization=True)


def outputs(module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(last tokens, logits or features) of images in [-1, 1]."""
  import torch

  config = module.pretrained_cfg
  mean, std = (np.float32(config[name]) for name in ('mean', 'std'))
  pixels = torch.from_numpy(((images + 1) / 2 - mean) / std).permute(0, 3, 1, 2)
  with torch.no_grad():
    tokens = module.forward_features(pixels)
    return tokens.numpy(), module.forward_head(tokens).numpy()


def close(actual, expected) -> None:
  expected = np.asarray(expected)
  difference = np.abs(np.asarray(actual) - expected).max()
  assert difference <= 1e-5 * max(np.abs(expected).max(), 1), difference


def images_of(size: tuple[int, int], number: int = 2) -> np.ndarray:
  return np.float32(np.random.default_rng(1).uniform(-1, 1, (number, *size, 3)))


def assert_same_outputs(vit, module) -> None:
  images = images_of(vit.image_size)
  tokens, logits = outputs(module, images)
  patches, prefix = vit.tokens(images, return_prefix_tokens=True)
  close(np.concatenate([prefix, patches], axis=1), tokens)
  close(vit(images), logits)


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
  for one, two in zip(outputs(module, images), outputs(written, images), strict=True):
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)


def test_the_table_is_that_of_timm(timm):
  modules = [
    importlib.import_module(f'timm.models.{n}') for n in ('vision_transformer', 'eva', 'deit')
  ]
  names = {
    name for module in modules for name in timm.list_models(module=module.__name__.split('.')[-1])
  }
  table = json.loads(
    (importlib.resources.files('vit_jax.weights.layouts') / 'timm_architectures.json').read_text()
  )
  assert table.keys() <= names
  assert timm_architectures.arguments('vit_small_patch16_dinov3')['num_heads'] == 6
