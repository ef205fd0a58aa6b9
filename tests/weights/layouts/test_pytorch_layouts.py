"""Weights of timm and Transformers, read and written: against stored outputs, and live.

The live tests need the `torch` extra and are skipped without it.
"""

import dataclasses
import functools
import importlib
import io
import json
import pathlib
import pickle
import resource
import shutil
import subprocess
import sys
import warnings
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import vit_jax
from tests.helpers import GOLDEN, SANDBOX
from tests.torch_models import images_of, import_or_skip, logits_of, randomize
from vit_jax.config import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.resnet import BiTResNet
from vit_jax.models.vit import Numerics, VisionTransformer
from vit_jax.weights.layouts import image_processor

EXPECTED = np.load(GOLDEN / 'torch_expected.npz')
HEADS = dict(num_heads=3)
TANH = dict(num_heads=3, gelu='tanh')
ASSUMED = 'the file states no preprocessing: pixels scaled to [-1, 1], images central 87.5 %; '
ASSUMED += 'pass mean=, std= for another'
IMAGE_SIZES = {'timm_token': (8, 20), 'timm_map': None, 'timm_gap': None}
IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
LABELS = ['cat', 'größer Hund', '猫', '', 'cat']
MODELS = {
  'token': VisionTransformer(4, 48, 2, 96, 3, 5),
  'map': VisionTransformer(4, 48, 2, 96, 3, 5, pool='map'),
  'hybrid_stem': VisionTransformer(8, 48, 1, 96, 3, 5, resnet_width=64),
  'hybrid_stages': VisionTransformer(8, 48, 1, 96, 3, 5, resnet_width=64, resnet_blocks=(2, 1)),
  'bit': BiTResNet(64, (2, 1), 5),
}
SIZES = {'hybrid_stages': (64, 64), 'bit': (64, 64)}  # (32, 32) otherwise


def close(actual, expected, atol=1e-4):
  np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=atol)


def assert_same(one, two):
  assert one.keys() == two.keys()
  for name, array in one.items():
    assert array.dtype == two[name].dtype, name
    np.testing.assert_array_equal(array, two[name], err_msg=name)


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a file, by the libraries of their formats."""
  if path.suffix == '.npz':
    with np.load(path) as archive:
      return dict(archive)
  return safetensors.numpy.load_file(path)


def classifier(name: str, image_size=None, **kwargs) -> vit_jax.Classifier:
  """A model with random weights."""
  model, size = MODELS[name], image_size or SIZES.get(name, (32, 32))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), build.abstract_params(model, size)
  )
  return vit_jax.Classifier(model, params, size, **kwargs)


def change_json(path: pathlib.Path, **values) -> None:
  path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  """A copy of the folder that Transformers wrote."""
  return shutil.copytree(GOLDEN / 'transformers', tmp_path / 'transformers')


# --- reading, against stored outputs ----------------------------------------------------------


@pytest.mark.parametrize('name', IMAGE_SIZES)
def test_stored_outputs_of_timm(name):
  vit = vit_jax.load(GOLDEN / f'{name}.safetensors', IMAGE_SIZES[name], **TANH)
  assert vit.model.pool == name.removeprefix('timm_')
  close(vit(EXPECTED[f'{name}/images']), EXPECTED[f'{name}/logits'])
  notes = ('bfloat16 weights were converted to float32',)
  assert bool(vit.model.layer_scale) == (name == 'timm_gap')
  assert vit.report.notes == (ASSUMED, *(notes if name == 'timm_gap' else ()))


@pytest.mark.parametrize('processor', ['half', 'imagenet'])
def test_stored_outputs_of_transformers(processor, folder):
  if processor == 'imagenet':  # its normalization is folded into the first layer
    change_json(folder / 'preprocessor_config.json', **IMAGENET)
  vit = vit_jax.load(folder)
  images = np.stack([vit.preprocess(image) for image in EXPECTED['transformers/pixels']])
  close(vit(images), EXPECTED[f'transformers/logits_{processor}'])
  assert (vit.labels, vit.loss, vit.preprocessing.crop_fraction) == (LABELS, 'sigmoid', 1.0)
  assert vit.model.numerics == Numerics(gelu='exact', layer_norm_epsilon=1e-12)


def test_the_processor_in_processor_config(folder):
  """Where Transformers 5 writes it for a processor of several inputs; it is preferred."""
  processor = json.loads((folder / 'preprocessor_config.json').read_text())
  content = {'image_processor': processor | {'resample': 3}}
  (folder / 'processor_config.json').write_text(json.dumps(content))
  assert vit_jax.load(folder).preprocessing.interpolation == 'bicubic'


def test_a_folder_without_a_processor(folder):
  (folder / 'preprocessor_config.json').unlink()
  vit = vit_jax.load(folder)
  assert vit.preprocessing == Preprocessing('squash', 1.0, rounding='transformers')
  assert "ViTImageProcessor's defaults are assumed" in str(vit.report)


def test_another_processor_counts_more_than_our_own_description(tmp_path):
  """As after fine-tuning in Transformers, which copies our description."""
  rule = Preprocessing(crop_fraction=0.75, antialias=False)
  classifier('token', preprocessing=rule).save(tmp_path / 'x')
  assert vit_jax.load(tmp_path / 'x').preprocessing == rule
  change_json(tmp_path / 'x' / 'preprocessor_config.json', resample=3)
  other = vit_jax.load(tmp_path / 'x').preprocessing
  assert (other.interpolation, other.antialias) == ('bicubic', True)


def test_pixels_that_are_not_normalized(folder):
  expected = vit_jax.load(folder)
  change_json(folder / 'preprocessor_config.json', do_normalize=False)
  images = np.float32(EXPECTED['transformers/pixels']) / 255
  # This model gets x where the other gets 2 x - 1, which `preprocess` returns.
  close(vit_jax.load(folder)(2 * images - 1), expected(images))


def test_a_model_in_several_files(folder):
  tensors = read(folder / 'model.safetensors')
  names = sorted(tensors)
  shards = {'a.safetensors': names[:9], 'b.safetensors': names[9:]}
  for file, names_in_shard in shards.items():
    safetensors.numpy.save_file({name: tensors[name] for name in names_in_shard}, folder / file)
  (folder / 'model.safetensors').unlink()
  index = {
    'weight_map': {name: file for file, names_in_shard in shards.items() for name in names_in_shard}
  }
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  vit_jax.load(folder).save(folder.parent / 'copy')
  assert_same(read(folder.parent / 'copy' / 'model.safetensors'), tensors)


def test_half_precision_is_loaded_and_noted(tmp_path):
  tensors = read(GOLDEN / 'timm_token.safetensors')
  half = {name: array.astype(np.float16) for name, array in tensors.items()}
  safetensors.numpy.save_file(half, tmp_path / 'x.safetensors')
  vit = vit_jax.load(tmp_path / 'x.safetensors', (8, 20), **TANH)
  assert vit.report.notes == (ASSUMED, 'float16 weights were converted to float32')
  vit.save(tmp_path / 'y.safetensors')
  assert_same(read(tmp_path / 'y.safetensors'), {n: x.astype(np.float32) for n, x in half.items()})


@pytest.mark.parametrize('square', [True, False])
def test_no_position_embedding_for_the_class_token(square, tmp_path):
  """timm's `no_embed_class`: moved into the token itself, the logits stay."""
  if square:
    path, size = tmp_path / 'full.safetensors', None
    vit_jax.load(GOLDEN / 'vit_patch14.npz').save(path)
    expected = np.load(GOLDEN / 'vit_patch14_expected.npz')
  else:
    path, size = GOLDEN / 'timm_token.safetensors', (8, 20)
    expected = {name: EXPECTED[f'timm_token/{name}'] for name in ('images', 'logits')}
  tensors = read(path)
  tensors['cls_token'] = tensors['cls_token'] + tensors['pos_embed'][:, :1]
  tensors['pos_embed'] = tensors['pos_embed'][:, 1:].copy()
  safetensors.numpy.save_file(tensors, tmp_path / 'x.safetensors')
  vit = vit_jax.load(tmp_path / 'x.safetensors', size, **TANH)
  close(vit(expected['images']), expected['logits'])


@pytest.mark.parametrize('layout', ['timm', 'timm without metadata', 'huggingface'])
def test_a_class_token_and_patches_that_together_are_a_square(layout, tmp_path):
  """3 x 5 patches and a token: 16 entries are not those of 4 x 4 patches."""
  vit = classifier('token', (12, 20))
  path = tmp_path / ('x' if layout == 'huggingface' else 'x.safetensors')
  vit.save(path)
  if layout == 'timm without metadata':
    safetensors.numpy.save_file(read(path), path)
    loaded = vit_jax.load(path, (12, 20), **HEADS)
  else:
    loaded = vit_jax.load(path)
  assert loaded.image_size == (12, 20)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, vit.params)


def test_a_rectangle_of_transformers_without_its_config(tmp_path):
  classifier('token', (12, 20)).save(tmp_path / 'x')
  shutil.move(tmp_path / 'x' / 'model.safetensors', tmp_path / 'y.safetensors')
  with pytest.raises(UserError, match='15 patches, which is not a square'):
    vit_jax.load(tmp_path / 'y.safetensors', **HEADS)


def test_transformers_without_its_config_has_the_defaults_of_its_class(tmp_path):
  shutil.copy(GOLDEN / 'transformers' / 'model.safetensors', tmp_path / 'x.safetensors')
  vit = vit_jax.load(tmp_path / 'x.safetensors', **HEADS)
  assert vit.model.numerics == Numerics(gelu='exact', layer_norm_epsilon=1e-12)
  assert 'states no activation: exact GELU' in str(vit.report)
  tanh = vit_jax.load(tmp_path / 'x.safetensors', gelu='tanh', **HEADS)
  assert tanh.model.numerics != vit.model.numerics and 'activation' not in str(tanh.report)


def test_a_square_is_resized_to_a_rectangle_of_as_many_patches():
  vit = vit_jax.load(GOLDEN / 'timm_map.safetensors', (8, 32), **HEADS)
  assert len(vit.report.resized) == 1


# --- unsupported files ------------------------------------------------------------------------

OTHER_KINDS = {
  'fc_norm': ({'fc_norm.weight': (48,)}, 'fc_norm'),
  'distillation': ({'dist_token': (1, 1, 48), 'head_dist.bias': (5,)}, 'distillation'),
  'normalized queries': ({'blocks.0.attn.q_norm.weight': (16,)}, 'qk_norm'),
  'attention pooling of tokens': ({'attn_pool.latent': (1, 1, 48)}, 'beside other tokens'),
  'LayerScale of another width': ({'blocks.1.ls1.gamma': (47,)}, 'encoderblock_1/LayerScale_0'),
  'LayerScale of no block': ({'blocks.2.ls2.gamma': (48,)}, 'encoderblock_2/'),
  'a flat matrix': ({'blocks.1.attn.qkv.weight': (144 * 48,)}, 'blocks.1.attn.qkv.weight'),
  'a name twice': (
    {f'patch_embed.backbone.{name}.weight': (64, 3, 7, 7) for name in ('conv', 'stem.conv')},
    'conv_root/kernel twice',
  ),
}


@pytest.mark.parametrize('kind', OTHER_KINDS)
def test_unsupported_kinds_of_models_are_refused(kind, tmp_path):
  extra, message = OTHER_KINDS[kind]
  tensors = read(GOLDEN / 'timm_token.safetensors')
  tensors |= {name: np.ones(shape, np.float32) for name, shape in extra.items()}
  safetensors.numpy.save_file(tensors, tmp_path / 'x.safetensors')
  with pytest.raises(UserError, match=message) as caught:
    vit_jax.load(tmp_path / 'x.safetensors', (8, 20), **HEADS)
  assert 'x.safetensors' in str(caught.value)


def test_an_unknown_number_of_heads_is_asked_for():
  with pytest.raises(UserError, match='width of 48.*num_heads'):
    vit_jax.load(GOLDEN / 'timm_map.safetensors')
  with pytest.raises(UserError, match='5 heads'):
    vit_jax.load(GOLDEN / 'timm_map.safetensors', num_heads=5)


def test_a_hybrid_normalizes_its_pixels(tmp_path):
  vit, mean = classifier('hybrid_stem'), (0.485, 0.456, 0.406)
  vit.save(tmp_path / 'model.safetensors')
  pretrained = {'mean': mean, 'std': (0.5,) * 3, 'input_size': [3, *vit.image_size]}
  config = {'architecture': 'hybrid', 'pretrained_cfg': pretrained}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  pixels = np.random.default_rng(0).uniform(0, 1, (2, *vit.image_size, 3)).astype(np.float32)
  loaded = vit_jax.load(tmp_path, vit.image_size, gelu='tanh', **HEADS)
  close(loaded(2 * pixels - 1), vit((pixels - np.float32(mean)) / 0.5))


def test_normalization_cannot_be_folded_into_a_standardized_layer(tmp_path):
  classifier('bit').save(tmp_path / 'model.safetensors')
  config = {'architecture': 'bit', 'pretrained_cfg': {'mean': [0.485, 0.456, 0.406]}}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match='0.485.*cannot be folded'):
    vit_jax.load(tmp_path, **HEADS)


@pytest.mark.parametrize(
  ('name', 'target', 'message'),
  [
    ('vit_token_prelogits', 'x.safetensors', 'pre_logits'),
    ('vit_token_prelogits', 'x', 'pre_logits'),
    ('map', 'x', 'the pooling map, which .* does not support'),
    ('hybrid_stem', 'x', 'a ResNet'),
    ('bit', 'x', 'a ResNet'),
  ],
)
def test_models_that_a_layout_does_not_support_are_refused(name, target, message, tmp_path):
  vit = classifier(name) if name in MODELS else vit_jax.load(GOLDEN / f'{name}.npz')
  with pytest.raises(UserError, match=message):
    vit.save(tmp_path / target, None if target.endswith('.safetensors') else 'huggingface')
  assert not list(tmp_path.iterdir())


class Bomb:
  """Unpickling it creates a file."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_a_state_dict_without_torch_names_the_extra_and_never_runs(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)  # importing it is an error now
  data = pickle.dumps({'patch_embed.proj.weight': Bomb(tmp_path / 'exploded')}, protocol=2)
  (tmp_path / 'old.pth').write_bytes(data)
  with zipfile.ZipFile(tmp_path / 'new.pth', 'w') as archive:
    archive.writestr('archive/data.pkl', data)
  for name in ('old.pth', 'new.pth'):
    with pytest.raises(UserError, match=rf'{name}.*vit_jax\[torch\]') as caught:
      vit_jax.load(tmp_path / name)
    assert '\n' not in str(caught.value)
  assert not (tmp_path / 'exploded').exists()
  pickle.loads(data)  # it would have worked
  assert (tmp_path / 'exploded').exists()


# --- writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['timm_token', 'timm_map', 'transformers'])
def test_writing_reproduces_the_files_of_timm_and_transformers(name, tmp_path):
  """Same names, shapes and bytes, so both libraries read it and the round trip is exact."""
  if name == 'transformers':
    source, target = GOLDEN / name, tmp_path / 'x'
    vit_jax.load(source).save(target)
    one, two = (json.loads((path / 'config.json').read_text()) for path in (source, target))
    assert set(one) - set(two) == {
      'dtype',
      'encoder_stride',
      'initializer_range',
      'pooler_act',
      'pooler_output_size',
      'transformers_version',
    }
    assert all(two[key] == value for key, value in one.items() if key in two)
    source, target = source / 'model.safetensors', target / 'model.safetensors'
  else:
    source, target = GOLDEN / f'{name}.safetensors', tmp_path / 'x.safetensors'
    vit_jax.load(source, IMAGE_SIZES[name], **HEADS).save(target)
  assert_same(read(target), read(source))


@pytest.mark.parametrize('name', ['hybrid_stem', 'hybrid_stages', 'bit'])
def test_names_and_shapes_of_timm(name, tmp_path):
  vit = classifier(name)
  vit.save(tmp_path / 'x.safetensors')
  expected = json.loads((GOLDEN / 'timm_names.json').read_text())[name]
  written = read(tmp_path / 'x.safetensors')
  assert {name: list(array.shape) for name, array in written.items()} == expected
  loaded = vit_jax.load(tmp_path / 'x.safetensors')
  assert build.architecture(loaded.model) == build.architecture(vit.model)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, vit.params)


@pytest.mark.parametrize(
  ('name', 'target'),
  [('vit_gap', 'x.safetensors'), ('vit_patch14', 'x.safetensors'), ('vit_patch14', 'x')],
)
def test_npz_to_other_layouts_and_back_is_bit_exact(name, target, tmp_path):
  vit_jax.load(GOLDEN / f'{name}.npz').save(tmp_path / target)
  vit_jax.load(tmp_path / target).save(tmp_path / 'copy.npz')
  assert_same(read(tmp_path / 'copy.npz'), read(GOLDEN / f'{name}.npz'))


@pytest.mark.parametrize('labels', [None, LABELS])
@pytest.mark.parametrize('target', ['x.safetensors', 'model.safetensors', 'x'])
def test_metadata_survives_a_round_trip(target, labels, tmp_path):
  vit = classifier(
    'token', (8, 20), labels=labels, preprocessing=Preprocessing(crop_fraction=0.75), loss='sigmoid'
  )
  numerics = Numerics(gelu='exact' if labels else 'tanh', layer_norm_epsilon=1e-5)
  vit = dataclasses.replace(vit, model=vit.model.clone(numerics=numerics))
  vit.save(tmp_path / target)
  loaded = vit_jax.load(tmp_path / target)
  for name in ('image_size', 'labels', 'preprocessing', 'loss', 'model'):
    assert getattr(loaded, name) == getattr(vit, name), name


@pytest.mark.parametrize(
  ('image_size', 'size'),
  [
    ((224, 224), {'shortest_edge': 256}),
    ((32, 96), {'height': 37, 'width': 110}),
    ((96, 64), {'height': 110, 'width': 73}),
  ],
)
def test_size_in_the_processor(image_size, size):
  processor = image_processor.make_config(image_size, Preprocessing())
  assert processor['size'] == size
  assert processor['crop_size'] == dict(zip(('height', 'width'), image_size, strict=True))


# --- live -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def torch():
  return import_or_skip('torch')


@pytest.fixture(scope='module')
def timm(torch):
  import_or_skip('timm.models.vision_transformer_hybrid')
  import_or_skip('timm.models.resnetv2')
  return import_or_skip('timm')


@pytest.fixture(scope='module')
def transformers(torch):
  module = import_or_skip('transformers')
  with warnings.catch_warnings(action='ignore'):
    try:
      _ = module.ViTForImageClassification, module.AutoImageProcessor
    except Exception as error:  # noqa: BLE001 - as above
      pytest.skip(f'transformers cannot be used: {error!r}')
  module.utils.logging.disable_progress_bar()
  return module


SHAPES = {
  'token': dict(img_size=32),
  'gap': dict(img_size=32, global_pool='avg', class_token=False, fc_norm=False),
  'map': dict(img_size=32, global_pool='map', class_token=False),
  'no_embed_class': dict(img_size=32, no_embed_class=True),
  'LayerScale': dict(img_size=32, init_values=1.0),
  'rectangle': dict(img_size=(16, 40)),
  'token and rectangle': dict(img_size=(24, 40)),
  'no_embed_class, rectangle': dict(img_size=(16, 40), no_embed_class=True),
  'exact GELU': dict(img_size=32, act_layer='gelu'),
}
TIMM = dict(
  patch_size=8,
  embed_dim=48,
  depth=2,
  num_heads=3,
  mlp_ratio=2,
  num_classes=5,
  act_layer='gelu_tanh',
)


@pytest.mark.parametrize('shape', SHAPES)
def test_live_models_of_timm(shape, timm, torch, tmp_path):
  files = importlib.import_module('safetensors.torch')
  kwargs = TIMM | SHAPES[shape]
  module = randomize(timm.models.VisionTransformer(**kwargs))
  size = tuple(module.patch_embed.img_size)
  images = images_of(size)
  expected = logits_of(module, images)
  files.save_file(module.state_dict(), tmp_path / 'x.safetensors')
  torch.save({'epoch': 3, 'state_dict': module.state_dict()}, tmp_path / 'x.pth')
  gelu = {'gelu_tanh': 'tanh'}.get(kwargs['act_layer'])
  for name in ('x.safetensors', 'x.pth'):
    vit = vit_jax.load(tmp_path / name, size, gelu=gelu, **HEADS)
    close(vit(images), expected)

  vit.save(tmp_path / 'saved.safetensors')
  kwargs.pop('no_embed_class', None)  # the class token has a position now
  module = timm.create_model(
    'vit_tiny_patch16_224', checkpoint_path=str(tmp_path / 'saved.safetensors'), **kwargs
  ).eval()
  close(logits_of(module, images), expected)
  module = randomize(timm.models.VisionTransformer(**kwargs), 1)
  module.load_state_dict(files.load_file(tmp_path / 'saved.safetensors'), strict=True)
  close(logits_of(module, images), expected)
  vit.save(tmp_path / 'saved.npz')
  kwargs.pop('init_values', None)  # folded into the layers before them
  module = randomize(timm.models.VisionTransformer(**kwargs), 2)
  module.load_pretrained(str(tmp_path / 'saved.npz'))
  close(logits_of(module, images), expected)


@pytest.mark.parametrize('name', ['hybrid_stem', 'hybrid_stages', 'bit'])
def test_live_models_of_timm_with_a_resnet(name, timm, torch, tmp_path):
  """timm's epsilons differ a little; in BiT it pads the max-pool with zeros, which is undone."""
  resnetv2, hybrid = timm.models.resnetv2, timm.models.vision_transformer_hybrid
  if name == 'bit':
    conv = functools.partial(timm.layers.StdConv2d, eps=1e-8)
    module = resnetv2.ResNetV2((2, 1), (256, 512), 5, stem_type='fixed', conv_layer=conv)
    module.stem.pad = torch.nn.ConstantPad2d(1, -float('inf'))
  else:
    backbone = hybrid._resnetv2(MODELS[name].resnet_blocks)
    embed = functools.partial(timm.layers.HybridEmbed, backbone=backbone)
    patch, size = 8 // (4 if name == 'hybrid_stem' else 8), SIZES.get(name, (32, 32))
    kwargs = TIMM | dict(depth=1, patch_size=patch, img_size=size, embed_layer=embed)
    module = timm.models.VisionTransformer(**kwargs)
  randomize(module)
  images = images_of(SIZES.get(name, (32, 32)))
  expected = logits_of(module, images)
  torch.save(module.state_dict(), tmp_path / 'x.bin')
  vit = vit_jax.load(tmp_path / 'x.bin', **TANH)
  close(vit(images), expected)
  vit.save(tmp_path / 'x.npz')
  randomize(module, 1).load_pretrained(str(tmp_path / 'x.npz'))
  close(logits_of(module, images), expected)
  vit.save(tmp_path / 'x.safetensors')
  written = importlib.import_module('safetensors.torch').load_file(tmp_path / 'x.safetensors')
  randomize(module, 2).load_state_dict(written, strict=True)
  close(logits_of(module, images), expected)


@pytest.fixture(scope='module', params=['gelu', 'gelu_pytorch_tanh'])
def vit_of_transformers(request, transformers):
  tanh = request.param != 'gelu'
  config = transformers.ViTConfig(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=96,
    image_size=32,
    patch_size=8,
    num_labels=5,
    hidden_act=request.param,
    layer_norm_eps=1e-6 if tanh else 1e-12,
  )
  return randomize(transformers.ViTForImageClassification(config))


def test_reading_live_models_of_transformers(vit_of_transformers, torch, tmp_path):
  module = vit_of_transformers
  images = images_of((32, 32))
  expected = logits_of(module, images)
  module.save_pretrained(tmp_path / 'whole')
  module.save_pretrained(tmp_path / 'split', max_shard_size='100KB')
  assert len(list((tmp_path / 'split').glob('*.safetensors'))) > 1
  for name in ('whole', 'split', 'whole/model.safetensors'):
    close(vit_jax.load(tmp_path / name)(images), expected)
  (tmp_path / 'bin').mkdir()
  shutil.copy(tmp_path / 'whole' / 'config.json', tmp_path / 'bin')
  torch.save(module.state_dict(), tmp_path / 'bin' / 'pytorch_model.bin')
  assert 'vit.layers.0.attention.q_proj.weight' in module.state_dict()  # the names of version 5
  close(vit_jax.load(tmp_path / 'bin')(images), expected)


@pytest.mark.parametrize('gelu', ['tanh', 'exact'])
@pytest.mark.parametrize('size', [(32, 32), (16, 40), (12, 20)])
def test_transformers_reads_what_is_written(size, gelu, transformers, tmp_path):
  vit = classifier('token', size, labels=LABELS, loss='sigmoid')
  model = vit.model.clone(numerics=Numerics(gelu=gelu))
  params = jax.tree.map(lambda x: x / 4, vit.params)
  vit = dataclasses.replace(vit, model=model, params=params)
  vit.save(tmp_path / 'x')
  module, loading_info = transformers.ViTForImageClassification.from_pretrained(
    tmp_path / 'x', output_loading_info=True
  )
  assert not any(loading_info.values()), loading_info
  assert module.config.id2label == dict(enumerate(LABELS))
  assert module.config.problem_type == 'multi_label_classification'
  images = images_of(size)
  close(logits_of(module.eval(), images), vit(images))


def test_features_of_live_models_of_transformers(transformers, tmp_path):
  """Its pooler is `pre_logits` here; it has no head."""
  config = transformers.ViTConfig(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=96,
    image_size=32,
    patch_size=8,
  )
  module = randomize(transformers.ViTModel(config))
  module.save_pretrained(tmp_path)
  vit, images = vit_jax.load(tmp_path), images_of((32, 32))
  assert (vit.model.num_classes, vit.model.pre_logits) == (0, 48)
  close(vit(images), logits_of(lambda x: module(x).pooler_output, images))


def photo(height: int, width: int) -> Image.Image:
  """Smooth, with some detail."""
  y, x = np.mgrid[:height, :width]
  colours = np.stack([128 + 90 * np.sin(x / 7) + 30 * np.cos(y / 3), y * 2, x + y], -1)
  return Image.fromarray(np.uint8(np.clip(colours, 0, 255)))


@pytest.mark.parametrize('backend', ['pil', 'torchvision'])
@pytest.mark.parametrize(
  ('size', 'shape'),
  [((64, 64), (100, 100)), ((64, 64), (91, 150)), ((64, 64), (40, 40)), ((32, 96), (64, 192))],
)
def test_processor_of_transformers(size, shape, backend, transformers, tmp_path):
  # A processor keeps the aspect ratio only for a square.
  rule = Preprocessing('crop' if size[0] == size[1] else 'squash')
  vit = classifier('token', size, preprocessing=rule)
  vit.save(tmp_path / 'x')
  try:
    with warnings.catch_warnings(action='ignore'):
      processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / 'x', backend=backend)
  except (ImportError, ValueError) as error:
    pytest.skip(f'no image processor: {error!r}')
  image = photo(*shape)
  pixels = np.asarray(processor(image, return_tensors='np')['pixel_values'])[0]
  # No more than two of 256 steps apart, and nearly all equal.
  close(pixels.transpose(1, 2, 0), vit.preprocess(image), atol=2 / 127)
  assert np.abs(pixels.transpose(1, 2, 0) - vit.preprocess(image)).mean() < 0.1 / 127


def test_a_processor_with_its_own_normalization(transformers, folder):
  module = transformers.ViTForImageClassification.from_pretrained(folder).eval()
  processor = transformers.ViTImageProcessor(size={'height': 16, 'width': 16}, **IMAGENET)
  processor.save_pretrained(folder)
  vit, image = vit_jax.load(folder), photo(16, 16)
  pixels = processor(image, return_tensors='pt')['pixel_values']
  close(vit(vit.preprocess(image)[None]), module(pixels).logits.detach())
  vit.save(folder.parent / 'saved')
  module = transformers.ViTForImageClassification.from_pretrained(folder.parent / 'saved').eval()
  processor = transformers.AutoImageProcessor.from_pretrained(folder.parent / 'saved')
  pixels = processor(image, return_tensors='pt')['pixel_values']
  close(vit(vit.preprocess(image)[None]), module(pixels).logits.detach())


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_of_pytorch(dtype, torch, tmp_path):
  tensors = read(GOLDEN / 'timm_map.safetensors')
  half = {n: torch.from_numpy(x).to(getattr(torch, dtype)) for n, x in tensors.items()}
  torch.save(half, tmp_path / 'x.pth')
  vit = vit_jax.load(tmp_path / 'x.pth', **TANH)
  assert vit.report.notes == (ASSUMED, f'{dtype} weights were converted to float32')
  vit.save(tmp_path / 'y.safetensors')
  kind = {'bfloat16': ml_dtypes.bfloat16, 'float16': np.float16}[dtype]
  assert_same(
    read(tmp_path / 'y.safetensors'),
    {n: x.astype(kind).astype(np.float32) for n, x in tensors.items()},
  )


@pytest.mark.parametrize('new', [True, False])
def test_a_malicious_state_dict_is_refused_and_never_runs(new, torch, tmp_path):
  weights = {'patch_embed.proj.weight': torch.zeros(48, 3, 4, 4), 'x': Bomb(tmp_path / 'exploded')}
  torch.save(weights, tmp_path / 'x.pth', _use_new_zipfile_serialization=new)
  with pytest.raises(UserError, match=r'x\.pth.*never loaded') as caught:
    vit_jax.load(tmp_path / 'x.pth')
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'exploded').exists()
  torch.load(io.BytesIO((tmp_path / 'x.pth').read_bytes()), weights_only=False)
  assert (tmp_path / 'exploded').exists()  # it would have worked


@pytest.mark.parametrize('new', [True, False])
@pytest.mark.parametrize('kind', ['a view', 'a sparse tensor', 'a storage'])
def test_tensors_that_a_state_dict_cannot_hold_are_not_allocated(kind, new, torch, tmp_path):
  huge = {
    'a view': torch.zeros(1).expand(2**40),
    'a sparse tensor': torch.sparse_coo_tensor([[0]], [1.0], (2**40,), check_invariants=True),
    'a storage': torch.zeros(12345),
  }
  path = tmp_path / 'x.pth'
  torch.save({'x': huge[kind]}, path, _use_new_zipfile_serialization=new)
  if kind == 'a storage':  # of 40 times as many numbers as the file has
    old, new_size = (b'M' + n.to_bytes(2, 'little') for n in (12345, 2**16 - 1))
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new_size))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(UserError, match=r'x\.pth') as caught:
    vit_jax.load(path)
  assert '\n' not in str(caught.value)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


@pytest.mark.parametrize('kind', ['a whole module', 'a number', 'a list'])
def test_other_files_of_pytorch_are_refused(kind, torch, tmp_path):
  content = {
    'a whole module': torch.nn.Linear(2, 2),
    'a number': {'epoch': 3},
    'a list': [torch.zeros(2)],
  }
  torch.save(content[kind], tmp_path / 'x.pth')
  with pytest.raises(UserError, match=r'x\.pth.*not a state dict') as caught:
    vit_jax.load(tmp_path / 'x.pth')
  assert '\n' not in str(caught.value)


def test_safetensors_are_read_and_written_without_importing_torch(torch, tmp_path):
  script = f"""
import sys, vit_jax
for source, arguments in (
    ({str(GOLDEN / 'timm_map.safetensors')!r}, dict(num_heads=3)),
    ({str(GOLDEN / 'transformers')!r}, {{}}),
):
  vit = vit_jax.load(source, **arguments)
  vit.save({str(tmp_path / 'x.safetensors')!r}, overwrite=True)
vit.save({str(tmp_path / 'x')!r})
assert not {{'torch', 'timm', 'transformers'}} & sys.modules.keys()
"""
  result = subprocess.run([sys.executable, '-c', script], cwd=SANDBOX, stderr=subprocess.PIPE)
  assert result.returncode == 0, result.stderr.decode()
