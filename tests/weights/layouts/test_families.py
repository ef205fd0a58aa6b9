"""Every family of models either loads with the logits of the original or is refused by name.

Without PyTorch: by the names of tensors that timm, Transformers and torchvision write. With it:
tiny models, their folders and state dicts.
"""

import importlib
import json
import types

import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.helpers import GOLDEN
from tests.torch_models import images_of, import_or_skip, logits_of, randomize
from vit_jax.errors import UserError
from vit_jax.weights.layouts import families

STORED = json.loads((GOLDEN / 'families.json').read_text())
TINY = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)
GAP = dict(global_pool='avg', class_token=False, fc_norm=False)
SIZES = dict(
  hidden_size=48,
  num_hidden_layers=2,
  num_attention_heads=3,
  intermediate_size=96,
  image_size=32,
  patch_size=8,
)


# --- by names ---------------------------------------------------------------------------------


@pytest.mark.parametrize('name', STORED)
def test_the_names_of_other_families(name, tmp_path):
  family = STORED[name]['family']
  path = tmp_path / 'x.safetensors'
  tensors = {tensor: np.zeros(1, np.float32) for tensor in STORED[name]['tensors']}
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(UserError) as caught:
    vit_jax.load(path)
  assert f'{path} holds {family}, which vit_jax does not support.' == str(caught.value)


def test_relatives_of_vision_transformers():
  assert families.describe(['embeds.proj.weight']) == 'a NaFlexViT'
  names = ['patch_embed.proj.weight', 'patch_embed.backbone.layer1.0.bn1.running_mean']
  assert 'hybrid' in str(families.describe(names))


NAMES = {  # in files of encoders without a head
  'a Hiera': 'encoder.stages.0.layers.0.attn.qkv.weight',
  'a MobileViT': 'encoder.layer.2.transformer.layer.0.layernorm_before.weight',
  'a SegFormer': 'encoder.block.0.0.mlp.dwconv.dwconv.weight',
  'a PVT or CoaT': 'encoder.block.0.0.attention.self.query.bias',
  'a ConvNeXt or EdgeNeXt': 'encoder.stages.0.layers.0.dwconv.weight',
  'a VideoMAE': 'encoder.layer.0.attention.attention.q_bias',
  'a Perceiver': 'perceiver.encoder.self_attends.0.layernorm.bias',
  'a BLIP': 'encoder.layers.0.self_attn.qkv.weight',
}


@pytest.mark.parametrize('family', NAMES)
def test_encoders_of_other_families(family):
  assert families.describe([NAMES[family]]) == family


def test_an_unknown_model_has_no_name():
  assert families.describe(['a.weight', 'b.bias']) is None
  assert families.describe(['x' * 400] * 100_000) is None


# --- live: models that load -------------------------------------------------------------------


@pytest.fixture(scope='module')
def timm() -> types.ModuleType:
  import_or_skip('torch')
  return import_or_skip('timm')


@pytest.fixture(scope='module')
def transformers() -> types.ModuleType:
  import_or_skip('torch')
  module = import_or_skip('transformers')
  import_or_skip('transformers.models.vit.modeling_vit')
  module.utils.logging.disable_progress_bar()
  return module


def assert_equal(vit, module, mean=0.5, std=0.5):
  images = images_of(vit.image_size)[..., : vit.channels]
  pixels = ((images + 1) / 2 - np.float32(mean)) / np.float32(std)
  expected = logits_of(module, pixels)
  difference = np.abs(np.asarray(vit(images)) - expected).max()
  assert difference <= 1e-5 * max(np.abs(expected).max(), 1), difference


MIXER = dict(patch_size=None, embed_dim=None, depth=None, num_heads=None)  # has other arguments
# Architecture of timm, arguments.
TIMM_MODELS = {
  'ViT': ('vit_tiny_patch16_224', {}),
  'ViT with tanh GELU': ('vit_tiny_patch16_224', dict(act_layer='gelu_tanh')),
  'ViT without class token': ('vit_base_patch16_gap_224', GAP),
  'features': ('vit_tiny_patch16_224', dict(num_classes=0)),
  'gray images': ('vit_tiny_patch16_224', dict(in_chans=1)),
  'average beside a class token': ('vit_tiny_patch16_224', dict(global_pool='avg', fc_norm=False)),
  'no final norm': ('vit_tiny_patch16_224', dict(final_norm=False)),
  'no biases': ('vit_tiny_patch16_224', dict(qkv_bias=False)),
  'no positions': ('vit_tiny_patch16_224', dict(pos_embed='none')),
  'registers with positions': ('vit_tiny_patch16_224', dict(reg_tokens=2)),
  'rectangle': ('vit_tiny_patch16_224', dict(img_size=(16, 40))),
  'DeiT': ('deit_tiny_patch16_224', {}),
  'DeiT III': ('deit3_small_patch16_224', {}),
  'FlexiViT': ('flexivit_small', {}),
  'DINOv2': ('vit_small_patch14_dinov2', {}),
  'SigLIP': ('vit_base_patch16_siglip_224', {}),
  'SigLIP 2 with tanh GELU': ('vit_base_patch32_siglip_256', {}),
  'SigLIP without its head': ('vit_base_patch16_siglip_gap_224', {}),
  'MLP-Mixer': ('mixer_s16_224', MIXER),
}


@pytest.mark.parametrize('name', TIMM_MODELS)
def test_folders_of_timm_that_load(name, timm, tmp_path):
  architecture, arguments = TIMM_MODELS[name]
  arguments = {key: value for key, value in (TINY | arguments).items() if value is not None}
  module = randomize(timm.create_model(architecture, **arguments))
  importlib.import_module('timm.models._hub').save_for_hf(module, tmp_path, safe_serialization=True)
  config = module.pretrained_cfg
  if arguments.get('in_chans') == 1:
    change_json(tmp_path / 'config.json', 'pretrained_cfg', mean=[0.3], std=[0.2])
    config = dict(mean=0.3, std=0.2)
  assert_equal(vit_jax.load(tmp_path), module, config['mean'], config['std'])


def change_json(path, section=None, **values) -> None:
  content = json.loads(path.read_text())
  (content[section] if section else content).update(values)
  path.write_text(json.dumps(content))


@pytest.mark.parametrize(
  'kind', ['plain', 'compiled', 'DINO', 'MAE', 'EMA', 'Lightning', 'nested', 'DINOv2']
)
def test_state_dicts_as_they_are_found(kind, timm, tmp_path):
  import torch

  module, other = (randomize(timm.create_model('deit_tiny_patch16_224', **TINY), i) for i in (0, 1))
  state, wrong = module.state_dict(), other.state_dict()
  optimizer = torch.optim.AdamW(module.parameters())
  files = {
    'plain': state,
    'compiled': {f'_orig_mod.module.{name}': x for name, x in state.items()},
    'DINO': {
      'student': {f'module.backbone.{name}': x for name, x in wrong.items()},
      'teacher': {f'backbone.{name}': x for name, x in state.items()}
      | {'head.mlp.0.weight': torch.zeros(4, 48)},
    },
    'MAE': {'model': state, 'optimizer': optimizer.state_dict(), 'epoch': 3},
    'EMA': {'model': wrong, 'model_ema': state, 'args': {'lr': 0.1}},
    'Lightning': {'state_dict': {f'model.encoder.{name}': x for name, x in state.items()}},
    'nested': {'model': {'module': {'backbone': state}}},
    'DINOv2': state | {'mask_token': torch.zeros(1, 48)},
  }
  torch.save(files[kind], tmp_path / 'x.pth')
  vit = vit_jax.load(tmp_path / 'x.pth', num_heads=3)
  assert_equal(vit, module)
  taken = {'DINO': 'teacher.backbone.* were taken, not student', 'EMA': 'model_ema.* were taken'}
  assert taken.get(kind, '') in str(vit.report)
  assert ('were taken' in str(vit.report)) == (kind in taken)
  assert 'exact GELU, class token; pass gelu=' in str(vit.report)
  assert 'pixels scaled to [-1, 1]' in str(vit.report)


@pytest.mark.parametrize('name', ['ViTForImageClassification', 'ViTMSNForImageClassification'])
def test_folders_of_transformers_that_load(name, transformers, tmp_path):
  kind = name.removesuffix('ForImageClassification')
  config = getattr(transformers, f'{kind}Config')(**SIZES, num_labels=5)
  module = randomize(getattr(transformers, name)(config))
  module.save_pretrained(tmp_path)
  vit = vit_jax.load(tmp_path)
  assert_equal(vit, module)
  assert "ViTImageProcessor's defaults are assumed" in str(vit.report)


def test_the_encoder_of_a_masked_autoencoder(transformers, tmp_path):
  """Without masks; its patches are shuffled, which the class token does not see."""
  config = transformers.ViTMAEConfig(**SIZES, mask_ratio=0.0)
  module = randomize(transformers.ViTMAEModel(config))
  module.save_pretrained(tmp_path)
  vit = vit_jax.load(tmp_path)  # without a processor: normalized as the published ones are
  pixels = dict(mean=vit.model.pixel_mean, std=vit.model.pixel_std)
  assert_equal(vit, lambda x: module(x).last_hidden_state[:, 0], **pixels)


# --- live: models that are refused ------------------------------------------------------------

REFUSED_BY_TIMM = {
  'maximum': ('vit_tiny_patch16_224', dict(global_pool='max', fc_norm=False), "global_pool='max'"),
  'average and maximum': (
    'vit_tiny_patch16_224',
    dict(global_pool='avgmax', fc_norm=False),
    "global_pool='avgmax'",
  ),
  'no pooling': ('vit_tiny_patch16_224', dict(global_pool=''), "global_pool=''"),
  'ReLU': ('vit_tiny_patch16_224', dict(act_layer='relu'), 'activation relu'),
  'SiLU': ('vit_tiny_patch16_224', dict(act_layer='silu'), 'activation silu'),
  'RMSNorm': ('vit_tiny_patch16_224', dict(norm_layer='rmsnorm'), 'normalization rmsnorm'),
  'qk_norm': ('vit_tiny_patch16_224', dict(qk_norm=True), 'qk_norm'),
  'scale_attn_norm': ('vit_tiny_patch16_224', dict(scale_attn_norm=True), 'scale_attn_norm'),
  'no proj_bias': ('vit_tiny_patch16_224', dict(proj_bias=False), 'without biases'),
  'relative positions': ('vit_relpos_small_patch16_224', {}, 'relative positions'),
  'mixed rotary positions': ('vit_small_patch16_rope_mixed_224', {}, 'learned rotary|mixed'),
  'CLIP of EVA-02': ('eva02_base_patch16_clip_224', {}, 'scale_attn_norm'),
  'normalizations after branches': ('vit_base_patch16_rpn_224', {}, 'after its branches'),
  'parallel branches': ('vit_base_patch16_xp_224', {}, 'parallel branches'),
  'BEiT': ('beit_base_patch16_224', {}, 'BEiT'),
  'CaiT': ('cait_xxs24_224', {}, 'CaiT'),
  'gated MLP-Mixer': ('gmixer_12_224', MIXER, 'an MLP-Mixer with a gated MLP'),
  'Swin': (
    'swin_tiny_patch4_window7_224',
    dict(img_size=28, patch_size=4, depths=(1, 1), num_heads=(2, 2), depth=None),
    'Swin Transformer',
  ),
}


@pytest.mark.parametrize('name', REFUSED_BY_TIMM)
def test_folders_of_timm_that_are_refused(name, timm, tmp_path):
  architecture, arguments, message = REFUSED_BY_TIMM[name]
  arguments = {key: value for key, value in (TINY | arguments).items() if value is not None}
  module = timm.create_model(architecture, **arguments)
  importlib.import_module('timm.models._hub').save_for_hf(module, tmp_path, safe_serialization=True)
  with pytest.raises(UserError, match=message) as caught:
    vit_jax.load(tmp_path)
  assert 'damaged' not in str(caught.value)


REFUSED_BY_TRANSFORMERS = {
  'ReLU': ('ViTForImageClassification', dict(hidden_act='relu'), 'activation relu'),
  'a pooler with ReLU': ('ViTModel', dict(pooler_act='relu'), 'pooler.* relu'),
  'BEiT': ('BeitForImageClassification', {}, 'type beit'),
  'SigLIP 2 with NaFlex': ('Siglip2VisionModel', dict(num_patches=16), 'NaFlex'),
  'I-JEPA': ('IJepaForImageClassification', {}, 'type ijepa'),
}


@pytest.mark.parametrize('name', REFUSED_BY_TRANSFORMERS)
def test_folders_of_transformers_that_are_refused(name, transformers, tmp_path):
  class_name, arguments, message = REFUSED_BY_TRANSFORMERS[name]
  module_class = getattr(transformers, class_name)
  module = module_class(module_class.config_class(**SIZES | arguments))
  module.save_pretrained(tmp_path)
  with pytest.raises(UserError, match=message) as caught:
    vit_jax.load(tmp_path)
  assert 'damaged' not in str(caught.value)
