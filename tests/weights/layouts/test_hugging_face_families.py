"""The families of Transformers, read and written: against stored outputs, and live.

The live tests need the `torch` extra and are skipped without it.
"""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.golden.make_transformers_families import (
  FAMILIES,
  OTHER_SIZE,
  SIZE,
  STORED,
  build_module,
  images_of_family,
  outputs_of,
)
from tests.helpers import GOLDEN
from tests.torch_models import import_or_skip
from vit_jax.errors import UserError
from vit_jax.models.vit import Numerics

EXPECTED = np.load(GOLDEN / 'families' / 'expected.npz')


@pytest.fixture(scope='module')
def transformers():
  import_or_skip('torch')
  module = import_or_skip('transformers')
  import_or_skip('transformers.models.vit.modeling_vit')
  module.utils.logging.disable_progress_bar()
  return module


@functools.partial(jax.jit, static_argnames='names')
def _outputs(vit, images, names: tuple[str, ...]):
  outputs = {}
  if 'tokens' in names:
    patches, prefix = vit.tokens(images, return_prefix_tokens=True)
    outputs['tokens'] = jnp.concatenate([prefix, patches], axis=1)
  if 'pooled' in names:
    outputs['pooled'] = vit.features(images)
  if 'logits' in names:
    outputs['logits'] = vit(images)
  return outputs


def our_outputs(vit, images: np.ndarray, names) -> dict[str, np.ndarray]:
  """Outputs of these names, as `outputs_of` has them of a module of Transformers."""
  return jax.tree.map(np.asarray, _outputs(vit, images, tuple(names)))


def assert_close(actual, expected, tolerance=1e-5):
  assert actual.keys() == expected.keys() and actual
  for name, x in expected.items():
    np.testing.assert_allclose(actual[name], x, rtol=0, atol=tolerance * max(np.abs(x).max(), 1))


@pytest.mark.parametrize('name', FAMILIES)
def test_both_ways_live(name, transformers, tmp_path):
  module = build_module(name)
  module.save_pretrained(tmp_path / 'source')
  vit = vit_jax.load(tmp_path / 'source')
  images = images_of_family(SIZE)
  expected = outputs_of(module, vit.model, images)
  assert_close(our_outputs(vit, images, expected), expected)
  vit.save(tmp_path / 'target', layout='huggingface')
  config = json.loads((tmp_path / 'target' / 'config.json').read_text())
  (written,) = config['architectures']
  assert written == FAMILIES[name].written
  copy, info = getattr(transformers, written).from_pretrained(
    tmp_path / 'target', output_loading_info=True
  )
  assert not any(info.values()), info
  again = outputs_of(copy.eval(), vit.model, images)
  if common := expected.keys() & again.keys():
    assert_close({n: again[n] for n in common}, {n: expected[n] for n in common})
  else:  # a backbone, as a classifier without classes, gives the class token
    np.testing.assert_allclose(again['logits'], expected['tokens'][:, 0], atol=1e-5)

  loaded = vit_jax.load(tmp_path / 'target')
  assert loaded.model == vit.model
  assert loaded.preprocessing == vit.preprocessing
  jax.tree.map(np.testing.assert_array_equal, loaded.params, vit.params)
  if FAMILIES[name].is_identical:
    old, new = (
      safetensors.numpy.load_file(tmp_path / each / 'model.safetensors')
      for each in ('source', 'target')
    )
    # Towers alone have another prefix in Transformers 5, which reads both.
    new = {n.removeprefix('' if n in old else 'vision_model.'): x for n, x in new.items()}
    assert old.keys() == new.keys()
    for each in old:
      if not each.endswith('mask_token'):
        np.testing.assert_array_equal(old[each], new[each], err_msg=each)


def load_stored(name: str, size: tuple[int, int]) -> vit_jax.Classifier:
  return vit_jax.load(GOLDEN / 'families' / name.replace(' ', '_'), size)


@pytest.mark.parametrize('size', [SIZE, OTHER_SIZE])
@pytest.mark.parametrize('name', STORED)
def test_stored_outputs(name, size):
  """Those of another size need the interpolation of the family's position embeddings."""
  start = f'{name}/{"x".join(map(str, size))}/'
  if name == 'AIMv2' and size != SIZE:
    pytest.skip('Transformers has no interpolation of its positions')
  expected = {n.removeprefix(start): EXPECTED[n] for n in EXPECTED.files if n.startswith(start)}
  assert_close(our_outputs(load_stored(name, size), images_of_family(size), expected), expected)


# --- configs and processors -------------------------------------------------------------------


@pytest.fixture
def copy_of(tmp_path):
  """Copies the folder of a stored model, with other fields in its config.json."""

  def copy(name: str, **fields) -> pathlib.Path:
    folder = tmp_path / 'copy'
    shutil.copytree(GOLDEN / 'families' / name.replace(' ', '_'), folder)
    path = folder / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder

  return copy


IMAGENET, CLIP = (0.485, 0.456, 0.406), (0.48145466, 0.4578275, 0.40821073)
PROCESSORS = {
  'MAE': (IMAGENET, 'squash bilinear'),
  'DeiT': (IMAGENET, 'squash 0.875 bicubic'),
  'DINOv2 with registers': (IMAGENET, 'crop 0.875 bicubic'),
  'DINOv3': (IMAGENET, 'squash bilinear'),
  'SigLIP': ((), 'squash bicubic'),
  'CLIP': (CLIP, 'crop bicubic'),
  'TIPSv2': ((0.0, 0.0, 0.0), 'squash bilinear'),
  'AIMv2': (CLIP, 'crop bicubic'),
}


@pytest.mark.parametrize('name', PROCESSORS)
def test_without_a_processor_that_of_the_family_is_assumed(name):
  vit = load_stored(name, SIZE)
  assert (vit.model.pixel_mean, vit.preprocessing.summary()) == PROCESSORS[name]
  assert 'there is no preprocessor_config.json: that of' in str(vit.report)


@pytest.mark.parametrize('name', ['CLIP', 'DINOv3', 'DINOv2 with a head', 'TIPSv2', 'AIMv2'])
def test_tensors_alone_have_the_defaults_of_their_family(name, tmp_path):
  file = GOLDEN / 'families' / name.replace(' ', '_') / 'model.safetensors'
  shutil.copy(file, tmp_path / 'x.safetensors')
  vit, known = vit_jax.load(tmp_path / 'x.safetensors', num_heads=2), load_stored(name, SIZE)
  assert vit.model == known.model
  assert 'the file states no activation' in str(vit.report)


def test_processor_of_dinov3(copy_of):
  folder = copy_of('DINOv3')
  content = {'image_processor_type': 'DINOv3ViTImageProcessorFast', 'size': 28}
  (folder / 'preprocessor_config.json').write_text(json.dumps(content))
  vit = vit_jax.load(folder)
  assert (vit.model.pixel_mean, vit.preprocessing.summary()) == (IMAGENET, 'squash bilinear')


def test_processor_of_tips(copy_of):
  folder = copy_of('TIPSv2')
  content = {'image_processor_type': 'Tipsv2ImageProcessor', 'size': {'height': 28, 'width': 28}}
  (folder / 'preprocessor_config.json').write_text(json.dumps(content))
  vit = vit_jax.load(folder)
  assert (vit.model.pixel_mean, vit.model.pixel_std) == ((0.0,) * 3, (1.0,) * 3)
  assert vit.preprocessing.summary() == 'squash bilinear'


WRONG = {
  'another family': ('SigLIP', {'model_type': 'vit'}, 'has the tensors of SigLIP.*describes ViT'),
  'another depth': ('DINOv3', {'num_hidden_layers': 3}, 'of depth 2, but its config.json says 3'),
  'another width': ('DINOv3', {'hidden_size': 48}, 'of width 24, but its config.json says 48'),
  'another size': ('DeiT', {'image_size': 35}, 'does not match its image_size .35, 35.'),
  'a DINOv2': (
    'TIPSv2',
    {'model_type': 'dinov2_with_registers'},
    'tensors of TIPS.*describes DINO',
  ),
  'AIMv2 without a gate': ('AIMv2', {'use_gated_mlp': False}, 'the activation silu'),
  'another MLP': (
    'DINOv3',
    {'intermediate_size': 50},
    'of mlp_dim 40, but its config.json says 50',
  ),
  'other registers': ('DINOv3', {'num_register_tokens': 2}, 'of registers 4, but its .* says 2'),
  'a gate that is missing': (
    'DINOv3',
    {'use_gated_mlp': True, 'hidden_act': 'silu'},
    'of mlp gelu, but its config.json says swiglu',
  ),
  'a gate that is not told': (
    'DINOv2 with SwiGLU',
    {'use_swiglu_ffn': False},
    'of mlp swiglu, but its config.json says gelu',
  ),
  'another activation': ('CLIP', {'hidden_act': 'relu'}, 'the activation relu'),
  'a gated GELU': ('DINOv3 with SwiGLU', {'hidden_act': 'gelu'}, 'gated MLP with the activation'),
  'NaFlex': ('SigLIP', {'model_type': 'siglip2_vision_model'}, 'NaFlex'),
}


@pytest.mark.parametrize('case', WRONG)
def test_a_config_that_does_not_fit_is_refused(case, copy_of):
  name, fields, message = WRONG[case]
  with pytest.raises(UserError, match=message) as caught:
    vit_jax.load(copy_of(name, **fields))
  assert '\n' not in str(caught.value)


def test_an_empty_tensor_is_refused(tmp_path):
  source = GOLDEN / 'families' / 'DINOv2_with_registers'
  tensors = safetensors.numpy.load_file(source / 'model.safetensors')
  for name in tensors:
    changed = tensors | {name: np.zeros((0,), np.float32)}
    safetensors.numpy.save_file(changed, tmp_path / 'model.safetensors')
    if not name.endswith(('mask_token', 'register_tokens')):
      with pytest.raises(UserError):
        vit_jax.load(tmp_path / 'model.safetensors')


INCOMPLETE = {
  'a bias of one block': ('DINOv3', 'layer.1.attention.q_proj.bias', 'not that of all blocks'),
  'the bias of the patches': (
    'DINOv2 with registers',
    'embeddings.patch_embeddings.projection.bias',
    'it has no embedding/bias',
  ),
  'the bias of the head': ('DeiT', 'classifier.bias', 'it has no head/bias'),
}


@pytest.mark.parametrize('case', INCOMPLETE)
def test_a_file_that_is_not_complete_is_refused(case, copy_of):
  name, tensor, message = INCOMPLETE[case]
  path = copy_of(name) / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  del tensors[tensor]
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(UserError, match=f'is not complete.*: .*{message}'):
    vit_jax.load(path.parent)


def test_a_gated_mlp_of_dinov2_has_its_own_activation(copy_of):
  vit = vit_jax.load(copy_of('DINOv2 with SwiGLU', hidden_act='relu'))
  assert vit.model.mlp == 'swiglu'


def test_msn_resizes_positions_as_its_code_does(copy_of):
  folder = copy_of('MAE', model_type='vit_msn')
  path = folder / 'model.safetensors'
  tensors = {n: x for n, x in safetensors.numpy.load_file(path).items() if 'decoder' not in n}
  safetensors.numpy.save_file(tensors, path)
  assert vit_jax.load(folder).position_resize == 'bicubic'


def test_patches_of_naflex_are_refused(copy_of):
  path = copy_of('SigLIP') / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  tensors['embeddings.patch_embedding.weight'] = np.zeros((24, 147), np.float32)
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(UserError, match='NaFlex'):
    vit_jax.load(path.parent)


def test_unused_tensors_are_named():
  report = load_stored('CLIP with a head', SIZE).report
  assert report and 'vision_model.post_layernorm.bias' in report.ignored
  report = load_stored('DINOv3', SIZE).report
  assert report and report.ignored == ('embeddings.mask_token',)


# --- files of the original code ---------------------------------------------------------------


def stored_tensors(name: str) -> dict[str, np.ndarray]:
  file = GOLDEN / 'families' / name.replace(' ', '_') / 'model.safetensors'
  return safetensors.numpy.load_file(file)


@pytest.mark.parametrize('name', ['TIPSv2', 'TIPSv2 with SwiGLU'])
def test_original_files_of_tips(name, tmp_path):
  """An npz with the names of google-deepmind/tips; only the registers tell it from a DINOv2."""
  names = {'c_fc': 'fc1', 'c_proj': 'fc2'}
  tensors = {
    functools.reduce(lambda n, pair: n.replace(*pair), names.items(), each): x
    for each, x in stored_tensors(name).items()
  }
  np.savez(tmp_path / 'x.npz', **tensors)
  vit, known = vit_jax.load(tmp_path / 'x.npz', num_heads=2), load_stored(name, SIZE)
  assert (vit.model, vit.preprocessing) == (known.model, known.preprocessing)
  assert vit.position_resize == known.position_resize == 'bilinear_antialias'
  jax.tree.map(np.testing.assert_array_equal, vit.params, known.params)
  tensors['register_tokens'] = np.tile(tensors['register_tokens'], (1, 4, 1))
  np.savez(tmp_path / 'y.npz', **tensors)
  dino = vit_jax.load(tmp_path / 'y.npz', num_heads=2)
  assert (dino.model.pixel_mean, dino.position_resize) == (IMAGENET, 'bicubic_antialias')


def test_original_files_of_aimv2(tmp_path):
  """Those of apple/ml-aim, which have no pooling."""
  stored, tensors = stored_tensors('AIMv2'), {}
  names = {'embeddings.patch_embed': 'preprocessor.patchifier.proj'}
  names |= {'embeddings.rms_norm': 'preprocessor.patchifier.norm'}
  names |= {'rms_norm': 'trunk.post_trunk_norm'}
  for i in range(2):
    old, new = f'encoder.layers.{i}.', f'trunk.blocks.{i}.'
    qkv = [stored[f'{old}attention.{each}_proj.weight'] for each in 'qkv']
    tensors[f'{new}attn.qkv.weight'] = np.concatenate(qkv)
    names |= {f'{old}attention.out_proj': f'{new}attn.proj'}
    names |= {
      f'{old}ffn.{n}_proj': f'{new}mlp.fc{j}' for n, j in dict(gate=1, down=2, up=3).items()
    }
    names |= {f'{old}rms_norm{j}': f'{new}norm_{j}' for j in (1, 2)}
  for old, new in names.items():
    tensors |= {
      f'{new}.{n}': stored[f'{old}.{n}'] for n in ('weight', 'bias') if f'{old}.{n}' in stored
    }
  tensors['preprocessor.pos_embed'] = stored['embeddings.position_embedding.weight'][None]
  safetensors.numpy.save_file(tensors, tmp_path / 'x.safetensors')
  vit, known = vit_jax.load(tmp_path / 'x.safetensors', num_heads=2), load_stored('AIMv2', SIZE)
  assert vit.model == known.model.clone(pool='gap', pool_mlp=True)
  expected = {n: x for n, x in known.params.items() if n != 'MAPHead_0'}
  jax.tree.map(np.testing.assert_array_equal, vit.params, expected)


def test_aimv2_has_wide_heads(tmp_path):
  tensors = stored_tensors('AIMv2')
  del tensors['head.cls_token']
  safetensors.numpy.save_file(
    {n: np.resize(x, [256 if side == 24 else side for side in x.shape])
     for n, x in tensors.items() if not n.startswith('head.')},
    tmp_path / 'x.safetensors',
  )  # fmt: skip
  assert vit_jax.load(tmp_path / 'x.safetensors').model.num_heads == 2


def test_aimv2_with_text(tmp_path):
  """Its projection is the head, as CLIP's."""
  tensors = {f'vision_model.{n}': x for n, x in stored_tensors('AIMv2').items()}
  projection = np.random.default_rng(0).normal(size=(8, 24)).astype(np.float32)
  tensors |= {'visual_projection.weight': projection, 'logit_scale': np.ones((), np.float32)}
  tensors['text_model.encoder.layers.0.rms_norm1.weight'] = np.ones(16, np.float32)
  safetensors.numpy.save_file(tensors, tmp_path / 'model.safetensors')
  sizes = dict(num_attention_heads=2, image_size=28, patch_size=7)
  config = {'model_type': 'aimv2', 'vision_config': sizes}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  vit, images = vit_jax.load(tmp_path), images_of_family(SIZE)
  expected = EXPECTED['AIMv2/28x28/pooled'] @ projection.T
  np.testing.assert_allclose(vit(images), expected, atol=1e-5)
  assert not vit.model.head_bias and 'the text tower is left out' in str(vit.report)


# --- writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize('layout', ['model', 'npz', 'huggingface'])
@pytest.mark.parametrize(
  'name', ['DINOv3', 'CLIP with a head', 'DINOv2 with registers', 'MAE', 'TIPSv2', 'AIMv2']
)
def test_own_layouts_keep_everything(name, layout, tmp_path):
  vit, target = load_stored(name, SIZE), tmp_path / ('x.npz' if layout == 'npz' else 'x')
  vit.save(target, layout)
  loaded = vit_jax.load(target)
  if layout == 'npz' and name == 'MAE':  # which the original loaders read, too
    assert loaded.model == vit.model.clone(pixel_mean=(), pixel_std=())
  else:
    assert loaded.model == vit.model
    jax.tree.map(np.testing.assert_array_equal, loaded.params, vit.params)
  for field in ('preprocessing', 'position_resize', 'license', 'image_size', 'loss'):
    assert getattr(loaded, field) == getattr(vit, field), field


@pytest.mark.parametrize(('name', 'text'), [('DINOv3', 'DINOv3 License'), ('MAE', 'CC BY-NC 4.0')])
def test_terms_of_the_weights_are_told_and_written(name, text, tmp_path):
  vit = load_stored(name, SIZE)
  assert text in str(vit.report)
  for layout in ('huggingface', 'model'):
    vit.save(tmp_path / layout, layout)
    vit.save(tmp_path / layout, layout, overwrite=True)
    assert text in (tmp_path / layout / 'LICENSE').read_text()
  assert load_stored('CLIP', SIZE).license is None


def test_the_family_resizes_positions():
  vit = load_stored('DINOv2 with registers', SIZE)
  assert vit.position_resize == 'bicubic_antialias'
  resized = load_stored('DINOv2 with registers', OTHER_SIZE).params['Transformer']
  again = vit.at_size(OTHER_SIZE).params['Transformer']
  jax.tree.map(np.testing.assert_array_equal, again, resized)
  corners = vit.at_size(OTHER_SIZE, 'corners').params['Transformer']
  tables = (each['posembed_input']['pos_embedding'] for each in (again, corners))
  assert np.abs(np.subtract(*tables)).max() > 1e-3


def test_an_architecture_that_no_class_has_is_refused(tmp_path):
  vit = load_stored('DINOv3', SIZE).with_head(3)
  with pytest.raises(UserError, match='a head, which DINOv3ViTModel does not.*--layout=model'):
    vit.save(tmp_path / 'x', 'huggingface')
  vit.save(tmp_path / 'x')  # a folder of our own
  assert vit_jax.load(tmp_path / 'x').model == vit.model
  oblong = load_stored('CLIP', OTHER_SIZE)
  with pytest.raises(UserError, match='images that are not square, which CLIPVision'):
    oblong.save(tmp_path / 'y', 'huggingface')


def test_a_model_with_average_pooling_is_a_siglip_without_its_head(tmp_path):
  vit = vit_jax.load(GOLDEN / 'vit_gap.npz')
  vit.save(tmp_path / 'x', 'huggingface')
  config = json.loads((tmp_path / 'x' / 'config.json').read_text())
  assert config['architectures'] == ['SiglipForImageClassification']
  loaded = vit_jax.load(tmp_path / 'x')
  assert loaded.model == vit.model
  jax.tree.map(np.testing.assert_array_equal, loaded.params, vit.params)


def test_registers_of_another_number_are_those_of_dinov2(tmp_path):
  vit = load_stored('TIPSv2', SIZE)
  params = vit.params | {'registers': np.tile(vit.params['registers'], (1, 4, 1))}
  for each, written in (
    (vit, 'Tipsv2VisionModel'),
    (dataclasses.replace(vit, model=vit.model.clone(registers=4), params=params), 'Dinov2With'),
  ):
    each.save(tmp_path / written, 'huggingface')
    config = json.loads((tmp_path / written / 'config.json').read_text())
    assert config['architectures'][0].startswith(written)


def test_a_trained_pooling_of_aimv2_is_written(tmp_path):
  """Its query is projected, and keys and values have biases, which the class has not."""
  vit, rng = load_stored('AIMv2', SIZE), np.random.default_rng(0)
  head = jax.tree.map(
    lambda x: np.float32(x + rng.normal(0, 0.3, x.shape)), vit.params['MAPHead_0']
  )
  trained = dataclasses.replace(vit, params=vit.params | {'MAPHead_0': head})
  trained.save(tmp_path / 'x', 'huggingface')
  images = images_of_family(SIZE)
  expected = trained.features(images)
  assert np.abs(np.asarray(expected - vit.features(images))).max() > 0.1
  loaded = vit_jax.load(tmp_path / 'x')
  np.testing.assert_allclose(loaded.features(images), expected, atol=1e-5)
  other = dataclasses.replace(vit, model=vit.model.clone(numerics=Numerics('float32', 'exact')))
  with pytest.raises(UserError, match='which Aimv2VisionModel does not support'):
    other.save(tmp_path / 'y', 'huggingface')
