"""Folders of timm: what is written there, and what timm and vit_jax read of it."""

import dataclasses
import inspect
import json

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.torch_models import images_of, import_or_skip, logits_of
from vit_jax.config import Preprocessing
from vit_jax.data.augmentation.preprocessing import preprocess
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.vit import Numerics, VisionTransformer
from vit_jax.weights.layouts import timm_config
from vit_jax.weights.metadata import UnsupportedError

EXACT = Numerics(gelu='exact')
SQUARE, WIDE = (32, 32), (16, 40)
MODELS = {
  'token': (VisionTransformer(8, 48, 2, 96, 3, 5), SQUARE),
  'gap': (VisionTransformer(8, 48, 2, 96, 3, 5, pool='gap'), WIDE),
  'map': (VisionTransformer(8, 48, 2, 96, 3, 5, pool='map', numerics=EXACT), SQUARE),
  'features': (VisionTransformer(8, 48, 2, 100, 3, 0, numerics=EXACT), SQUARE),
}
RULE = Preprocessing('border', 0.9, 'bicubic', rounding='torchvision')


def write_folder(name: str, folder, rule: Preprocessing = RULE) -> vit_jax.Classifier:
  model, size = MODELS[name]
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.float32(rng.normal(size=x.shape) / np.sqrt(x.shape[0])),
    build.abstract_params(model, size),
  )
  labels = [f'class {i}' for i in range(model.num_classes)] or None
  vit = vit_jax.Classifier(model, params, size, labels, rule)
  vit.save(folder, 'timm')
  return vit


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('rule', [RULE, Preprocessing('squash', 0.9, antialias=False)])
def test_a_folder_is_read_back(name, rule, tmp_path):
  vit = write_folder(name, tmp_path / 'x', rule)
  loaded = vit_jax.load(tmp_path / 'x')
  for field in ('model', 'image_size', 'labels', 'preprocessing', 'loss'):
    assert getattr(loaded, field) == getattr(vit, field), field
  jax.tree.map(np.testing.assert_array_equal, loaded.params, vit.params)
  assert not loaded.report.notes


@pytest.mark.parametrize('layout', ['timm', 'huggingface'])
def test_numerics_that_the_layout_cannot_express_are_read_back(layout, tmp_path):
  vit = write_folder('token', tmp_path / 'x')
  model = vit.model.clone(numerics=Numerics(layer_norm_epsilon=1e-5))
  vit = dataclasses.replace(vit, model=build.with_dtype(model, 'bfloat16'))
  vit.save(tmp_path / 'y', layout)
  assert vit_jax.load(tmp_path / 'y').model == vit.model


def test_another_preprocessing_in_the_folder_counts(tmp_path):
  """As when timm has fine-tuned the model and written its config.json anew."""
  write_folder('token', tmp_path / 'x', Preprocessing(antialias=False))
  path = tmp_path / 'x' / 'config.json'
  content = json.loads(path.read_text())
  content['pretrained_cfg'] |= {'crop_mode': 'squash', 'crop_pct': 1.0}
  path.write_text(json.dumps(content))
  rule = vit_jax.load(tmp_path / 'x').preprocessing
  assert (rule.resize, rule.crop_fraction, rule.antialias) == ('squash', 1.0, True)


@pytest.mark.parametrize('name', MODELS)
def test_timm_builds_the_model_and_its_preprocessing(name, tmp_path):
  import_or_skip('torch')
  timm = import_or_skip('timm')
  data = import_or_skip('timm.data')
  vit = write_folder(name, tmp_path / 'x')
  module = timm.create_model(f'local-dir:{tmp_path / "x"}', pretrained=True).eval()
  images = images_of(vit.image_size)
  expected = np.asarray(vit(images))
  np.testing.assert_allclose(
    logits_of(module, images), expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1)
  )
  if vit.labels:
    assert module.pretrained_cfg['label_names'] == vit.labels
  transform = data.create_transform(**data.resolve_model_data_config(module))
  image = np.random.default_rng(0).integers(0, 256, (50, 75, 3), np.uint8)
  pil = Image.fromarray(image)
  pixels = np.rint(255 * (transform(pil).numpy().transpose(1, 2, 0) + 1) / 2)
  assert np.abs(pixels - preprocess(image, vit.image_size, RULE)).max() <= 1


def test_a_resnet_has_no_folder_of_timm(tmp_path):
  model = VisionTransformer(8, 48, 1, 96, 3, 5, resnet_width=64)
  params = jax.tree.map(
    lambda x: np.zeros(x.shape, np.float32), build.abstract_params(model, SQUARE)
  )
  with pytest.raises(UserError, match=r'ResNet.*X\.safetensors'):
    vit_jax.Classifier(model, params, SQUARE).save(tmp_path / 'x', 'timm')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('fields', 'part'), [({'pool': 'distilled'}, 'distillation token'), ({'mlp': 'swiglu'}, 'SwiGLU')]
)
def test_an_epsilon_that_would_be_lost_is_refused(fields, part, tmp_path):
  for epsilon in (1e-6, 1e-5):
    numerics = Numerics(gelu='exact', layer_norm_epsilon=epsilon)
    model = VisionTransformer(8, 48, 1, 96, 3, 5, **fields, numerics=numerics)
    params = jax.tree.map(
      lambda x: np.zeros(x.shape, np.float32), build.abstract_params(model, SQUARE)
    )
    vit = vit_jax.Classifier(model, params, SQUARE)
    if epsilon == 1e-6:
      vit.save(tmp_path / 'x', 'timm')
      continue
    with pytest.raises(UserError, match=f'no model with a {part} whose .* epsilon 1e-05; write X'):
      vit.save(tmp_path / 'y', 'timm')
  assert [path.name for path in tmp_path.iterdir()] == ['x']


@pytest.mark.parametrize(
  ('architecture', 'gelu'),
  [
    ('vit_base_patch16_224', 'exact'),
    ('vit_base_patch16_siglip_224', 'exact'),
    ('vit_so400m_patch14_siglip_384.webli', 'exact'),
    ('vit_so400m_patch16_siglip_384', 'tanh'),
    ('vit_so400m_patch16_siglip_gap_256.v2_webli', 'tanh'),
    ('vit_base_patch32_siglip_256', 'tanh'),
    ('vit_large_patch16_siglip_256', 'exact'),
    ('vit_large_patch16_siglip_512', 'tanh'),
    ('vit_giantopt_patch16_siglip_gap_384', 'tanh'),
    ('vit_base_patch16_clip_quickgelu_224.openai', 'quick'),
  ],
)
def test_the_activation_of_an_architecture(architecture, gelu):
  assert timm_config.read_config({'architecture': architecture}).gelu == gelu
  stated = {'exact': 'gelu_tanh', 'tanh': 'gelu', 'quick': 'gelu'}[gelu]
  content = {'architecture': architecture, 'model_args': {'act_layer': stated}}
  assert timm_config.read_config(content).gelu != gelu
  name = architecture.partition('.')[0]
  if 'siglip' not in name:
    return
  import_or_skip('torch')
  module = import_or_skip('timm.models.vision_transformer')
  source = inspect.getsource(getattr(module, name))
  assert ("act_layer='gelu_tanh'" in source) == (gelu == 'tanh')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({'architecture': 'vit_base_patch16_rpn_224'}, 'normalizations after its branches'),
    ({'architecture': 'eva02_enormous_patch14_clip_224.x'}, 'normalizations after its branches'),
    ({'model_args': {'use_rot_pos_emb': True, 'rope_type': 'mixed'}}, 'rotary.*mixed'),
    ({'model_args': {'use_post_norm': True}}, 'argument use_post_norm=True'),
    ({'model_args': {'pool_include_prefix': True}}, 'argument pool_include_prefix=True'),
    ({'model_args': {'act_layer': 'ReLU'}}, 'activation relu'),
    ({'model_args': {'norm_layer': 'rmsnorm'}}, 'normalization rmsnorm'),
    ({'model_args': {'new_argument': 3}}, 'argument new_argument=3'),
    ({'model_args': {'use_naflex': True}}, 'argument use_naflex'),
    ({'global_pool': 'max'}, "global_pool='max'"),
    ({'model_args': {'global_pool': 'avgmax'}}, "global_pool='avgmax'"),
    ({'pretrained_cfg': {'global_pool': 'prr'}}, "global_pool='prr'"),
  ],
)
def test_other_models_are_refused_by_the_config(content, message):
  with pytest.raises(UnsupportedError, match=message):
    timm_config.read_config({'architecture': 'vit_base_patch16_224'} | content)
