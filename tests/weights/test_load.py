"""Loading released weights: golden logits, the layout on disk, damaged files."""

import dataclasses
import io
import os
import pathlib
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.helpers import GOLDEN, assert_same_tree
from vit_jax.config import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.layouts import released

ARCHITECTURES = {
  'vit_gap': dict(patch_size=16, pool='gap', pre_logits=0),
  'vit_patch14': dict(patch_size=14, pool='token', pre_logits=0),
  'vit_token_prelogits': dict(patch_size=16, pool='token', pre_logits=40),
}
POSITIONS = 'Transformer/posembed_input/pos_embedding'
QUERY = 'Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel'


@pytest.fixture(scope='module')
def golden() -> vit_jax.Classifier:
  return vit_jax.load(GOLDEN / 'vit_token_prelogits.npz')


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
  with np.load(GOLDEN / 'vit_token_prelogits.npz') as archive:
    return dict(archive)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_golden_logits(name):
  expected = np.load(GOLDEN / f'{name}_expected.npz')
  vit = vit_jax.load(GOLDEN / f'{name}.npz')
  logits = vit(expected['images'])
  assert logits.dtype == np.float32
  np.testing.assert_allclose(logits, expected['logits'], atol=2e-5)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_architecture_is_read_off_the_tensors(name):
  vit = vit_jax.load(GOLDEN / f'{name}.npz')
  expected = dict(width=48, depth=2, mlp_dim=96, num_heads=3, num_classes=7) | ARCHITECTURES[name]
  expected |= dict(resnet_width=0, resnet_blocks=(), norm='layer')
  expected |= dict(position_embedding='1d', position_entry='stem', axial=False)
  architecture = build.architecture(vit.model)
  assert {name: architecture.pop(name) for name in expected} == expected
  assert architecture == {name: getattr(VisionTransformer, name) for name in architecture}
  assert vit.image_size == ((56, 56) if name == 'vit_patch14' else (64, 64))
  assert vit.labels is None


def test_round_trip_is_bit_exact_and_published_on_disk(golden, tensors, tmp_path):
  golden.save(tmp_path / 'copy.npz')
  with np.load(tmp_path / 'copy.npz') as archive:
    written = dict(archive)
  assert_same_tree(written, tensors)
  assert not (tmp_path / 'copy.npz.part').exists()
  parts = {name.split('/')[2] for name in written if 'encoderblock_1' in name}
  assert parts == {'LayerNorm_0', 'LayerNorm_2', 'MlpBlock_3', 'MultiHeadDotProductAttention_1'}
  assert_same_tree(vit_jax.load(tmp_path / 'copy.npz').params, golden.params)


@pytest.mark.parametrize('pool', ['token', 'gap', 'map'])
def test_any_model_survives_a_round_trip(pool, tmp_path):
  model = VisionTransformer(4, 16, 2, 24, 2, num_classes=3, pool=pool)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
    build.abstract_params(model, (8, 8)),
  )
  released.write_npz(tmp_path / 'x.npz', params)
  vit = vit_jax.load(tmp_path / 'x.npz')
  assert vit.model.pool == pool
  assert_same_tree(vit.params, params)


def test_parameters_have_the_names_of_current_linen(golden):
  block = golden.params['Transformer']['encoderblock_0']
  names = {'LayerNorm_0', 'LayerNorm_1', 'MlpBlock_0', 'MultiHeadDotProductAttention_0'}
  assert set(block) == names


class Bomb:
  """Unpickling it creates a file."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def truncate(path, tensors):
  np.savez(path, **tensors)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage(path, tensors):
  np.savez(path, **tensors)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0xFF
  path.write_bytes(data)


def remove_block(path, tensors):
  for name in list(tensors):
    if 'encoderblock_0/' in name:
      tensors[name.replace('encoderblock_0/', 'encoderblock_2/')] = tensors[name]
    if 'encoderblock_1/' in name:
      del tensors[name]
  np.savez(path, **tensors)


def save_one_array(path, tensors):
  with path.open('wb') as file:
    np.save(file, tensors['head/kernel'])


def patch_directory(offset, value):
  def write(path, tensors):
    np.savez(path, **tensors)
    data = bytearray(path.read_bytes())
    data[data.index(b'PK\x01\x02') + offset] = value  # in the first entry of the zip's directory
    path.write_bytes(data)

  return write


def change(name, function):
  return lambda path, tensors: np.savez(path, **{**tensors, name: function(tensors[name])})


DAMAGED = {
  'missing file': (lambda path, tensors: None, 'There is no model'),
  'empty file': (lambda path, tensors: path.touch(), 'is empty'),
  'text': (lambda path, tensors: path.write_text('hello, world\n' * 99), 'x.npz'),
  'html': (lambda path, tensors: path.write_text('<html>404</html>'), 'x.npz'),
  'truncated': (truncate, 'truncated'),
  'a flipped byte': (damage, 'damaged'),
  'a single array': (save_one_array, 'single array'),
  'unknown compression': (patch_directory(10, 99), 'not supported'),
  'an encrypted zip': (patch_directory(8, 1), 'encrypted'),
  'a zip of other files': (
    lambda path, tensors: zipfile.ZipFile(path, 'w').close(),
    'has no tensors',
  ),
  'no block': (
    lambda path, tensors: np.savez(path, **{'embedding/kernel': np.zeros((4, 4, 3, 8))}),
    'not a Vision Transformer',
  ),
  'missing block': (remove_block, 'encoderblock_1/'),
  'no positions': (
    lambda path, tensors: np.savez(path, **{n: x for n, x in tensors.items() if n != POSITIONS}),
    'has no position embeddings',
  ),
  'a missing tensor': (
    lambda path, tensors: np.savez(path, **{n: x for n, x in tensors.items() if n != 'cls'}),
    'x.npz',
  ),
  'transposed kernel': (
    change('Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel', np.transpose),
    r'encoderblock_1/MlpBlock_0/Dense_0/kernel \(file: \(96, 48\), model: \(48, 96\)\)',
  ),
  'transposed embedding': (change('embedding/kernel', np.transpose), 'x.npz'),
  'flat query': (change(QUERY, np.ravel), 'shapes'),
  'NaN': (change(QUERY, lambda x: np.where(x > 0.05, np.nan, x)), 'finite'),
  'integers': (change('head/bias', lambda x: x.astype(int)), 'head/bias'),
  'not a square': (change(POSITIONS, lambda x: x[:, :15]), 'not a square'),
}


@pytest.mark.parametrize('case', DAMAGED)
def test_damaged_files_end_in_one_sentence(case, tensors, tmp_path):
  write, message = DAMAGED[case]
  write(tmp_path / 'x.npz', tensors)
  with pytest.raises(UserError, match=message) as caught:
    vit_jax.load(tmp_path / 'x.npz')
  assert '\n' not in str(caught.value)
  assert 'x.npz' in str(caught.value)


def test_pickled_objects_are_refused_and_never_run(tensors, tmp_path):
  bomb = np.array([Bomb(tmp_path / 'exploded')], dtype=object)
  np.savez(tmp_path / 'x.npz', **tensors, extra=bomb)
  with pytest.raises(UserError, match='pickled') as caught:
    vit_jax.load(tmp_path / 'x.npz')
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'exploded').exists()
  np.load(tmp_path / 'x.npz', allow_pickle=True)['extra']  # it would have worked
  assert (tmp_path / 'exploded').exists()


@pytest.mark.parametrize('labels', [None, ['cat', 'größer dog', '3', '', 'e', 'f', 'g']])
def test_folder_round_trip(labels, golden, tmp_path):
  vit = vit_jax.load(GOLDEN / 'vit_token_prelogits.npz', image_size=(32, 96))
  preprocessing = Preprocessing(
    resize='border', crop_fraction=0.75, antialias=False, rounding='torchvision', fill=(1, 2, 3)
  )
  saved = vit_jax.Classifier(vit.model, vit.params, (32, 96), labels, preprocessing, 'sigmoid')
  saved.save(tmp_path / 'model', 'model')
  saved.save(tmp_path / 'model', 'model', overwrite=True)  # again, in its place
  for source in (tmp_path / 'model', tmp_path, tmp_path / 'model' / 'params.npz'):
    loaded = vit_jax.load(source)
    assert loaded.image_size == (32, 96)
    assert loaded.preprocessing == preprocessing
    assert (loaded.labels, loaded.loss) == (labels, 'sigmoid')
    assert_same_tree(loaded.params, vit.params)
  names = {'params.npz', 'config.json'} | ({'labels.txt'} if labels else set())
  assert {path.name for path in (tmp_path / 'model').iterdir()} == names
  assert [path.name for path in tmp_path.iterdir()] == ['model']


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_probabilities(loss, golden):
  images = np.load(GOLDEN / 'vit_token_prelogits_expected.npz')['images']
  logits = np.asarray(golden(images), float)
  expected = {
    'softmax': np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True),
    'sigmoid': 1 / (1 + np.exp(-logits)),
  }[loss]
  probabilities = dataclasses.replace(golden, loss=loss).probabilities(images)
  np.testing.assert_allclose(probabilities, expected, rtol=1e-5)


def test_a_folder_with_other_files_is_not_overwritten(golden, tmp_path):
  (tmp_path / 'thesis.tex').write_text('years of work')
  with pytest.raises(UserError, match='thesis.tex'):
    golden.save(tmp_path, 'model')
  assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']
  assert not list(tmp_path.parent.glob('*.part'))


def test_a_folder_without_a_model_is_refused(tmp_path):
  with pytest.raises(UserError, match='has no model'):
    vit_jax.load(tmp_path)


@pytest.mark.parametrize('content', ['', '[]', '{"image_size": 64}', '{"crop_fraction": 1.0}'])
def test_a_damaged_config_json_is_refused(content, golden, tmp_path):
  golden.save(tmp_path / 'model', 'model')
  (tmp_path / 'model' / 'config.json').write_text(content)
  with pytest.raises(UserError, match='model'):
    vit_jax.load(tmp_path / 'model')


@pytest.mark.parametrize(
  'images',
  [
    np.zeros((1, 64, 64, 3), np.uint8),
    np.zeros((1, 64, 64, 3), int),
    np.zeros((64, 64, 3), np.float32),
    np.zeros((1, 64, 32, 3), np.float32),
    np.zeros((1, 3, 64, 64), np.float32),
    np.zeros((1, 64, 64, 4), np.float32),
  ],
)
def test_images_of_another_shape_or_dtype_are_refused(images, golden):
  with pytest.raises(ValueError, match=r'\(B, 64, 64, 3\)'):
    golden(images)


@pytest.mark.parametrize('kind', [np.float32, np.float64, jnp.float32])
def test_float_images_of_any_precision_are_accepted(kind, golden):
  images = np.load(GOLDEN / 'vit_token_prelogits_expected.npz')['images']
  np.testing.assert_allclose(golden(kind(images)), golden(images), atol=1e-6)


def test_preprocess_takes_bytes_pillow_images_and_arrays(golden):
  pixels = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
  image, file = Image.fromarray(pixels), io.BytesIO()
  image.save(file, 'PNG')
  preprocessed = [golden.preprocess(image_like) for image_like in (file.getvalue(), image, pixels)]
  assert (preprocessed[0].shape, preprocessed[0].dtype) == ((64, 64, 3), np.float32)
  assert -1 <= preprocessed[0].min() < -0.3 < 0.3 < preprocessed[0].max() <= 1
  np.testing.assert_array_equal(preprocessed[0], preprocessed[1])
  np.testing.assert_array_equal(preprocessed[0], preprocessed[2])
  white = golden.preprocess(np.full((64, 64, 3), 255, np.uint8))
  np.testing.assert_array_equal(white, np.ones((64, 64, 3)))


DEEP = '[' * 100_000


def write_header(path, header):
  path.write_bytes(len(header).to_bytes(8, 'little') + header.encode())


def write_comment(path, comment):
  """Replaces the metadata of an npz file."""
  with zipfile.ZipFile(path, 'a') as archive:
    data = comment[:60_000].encode()
    archive.comment = f'vit_jax {zlib.crc32(data):08x} '.encode() + data


@pytest.mark.parametrize(
  ('file', 'write', 'text'),
  [
    ('hf/config.json', pathlib.Path.write_text, DEEP),
    ('hf/config.json', pathlib.Path.write_text, '{"image_size": ' + DEEP),
    ('hf/config.json', pathlib.Path.write_text, '{"a": ' * 100_000),
    ('hf/preprocessor_config.json', pathlib.Path.write_text, DEEP),
    ('hf/model.safetensors.index.json', pathlib.Path.write_text, '{"weight_map": ' + DEEP),
    ('x.safetensors', write_header, '{"a": ' + DEEP),
    ('x.npz', write_comment, DEEP),
    ('x.npz', write_comment, '{"model": ' + DEEP),
  ],
)
def test_lists_in_lists_end_in_one_sentence(file, write, text, tmp_path):
  source = tmp_path / file.split('/')[0]
  vit_jax.load(GOLDEN / 'vit_patch14.npz').save(source)
  write(tmp_path / file, text)
  with pytest.raises(UserError, match='is damaged') as caught:
    vit_jax.load(source)
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize('name', [b'\xff', b'\xff.npz'])
def test_a_path_need_not_be_utf_8(name, golden, tmp_path):
  path = tmp_path / os.fsdecode(name)
  golden.save(path)
  assert vit_jax.load(path).image_size == golden.image_size
  with pytest.raises(UserError) as caught:
    golden.save(path)
  assert r'\udcff' in str(caught.value) and str(caught.value).isascii()


# --- normalization ----------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['mean', 'std'])
@pytest.mark.parametrize('value', [[0.5, 0.5], [0.5] * 4, [], float('nan'), [float('inf')] * 3])
def test_a_mean_and_std_that_pixels_cannot_have(name, value):
  with pytest.raises(UserError, match=f'{name}(=| is )'):
    vit_jax.load(GOLDEN / 'vit_gap.npz', **{'mean': 0.4, 'std': 0.4, name: value})


@pytest.mark.parametrize('value', [0, -1, [0.5, 0.5, -0.5]])
def test_a_std_is_positive(value):
  with pytest.raises(UserError, match='std is .*positive'):
    vit_jax.load(GOLDEN / 'vit_gap.npz', std=value)


@pytest.mark.parametrize('channels', [1, 3, 5])
def test_normalization_of_any_number_of_channels(channels, tmp_path):
  model = VisionTransformer(8, 48, 1, 96, 3, 5)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.float32(rng.normal(size=x.shape) / np.sqrt(x.shape[0])),
    build.abstract_params(model, (16, 16), channels),
  )
  vit = vit_jax.Classifier(model, params, (16, 16))
  vit.save(tmp_path / 'x.npz')
  mean, std = rng.uniform(0.3, 0.6, channels), rng.uniform(0.2, 0.4, channels)
  pixels = np.float32(rng.uniform(0, 1, (2, 16, 16, channels)))
  for m, s in ((mean, std), (mean[0], std[0])):
    loaded = vit_jax.load(tmp_path / 'x.npz', mean=m, std=s)
    expected = vit(np.float32((pixels - m) / s))
    np.testing.assert_allclose(loaded(2 * pixels - 1), expected, rtol=0, atol=1e-4)
    assert 'normalization of pixels' in str(loaded.report)


def test_nothing_is_assumed_of_released_files():
  """Their GELU is tanh and their pixels are in [-1, 1]."""
  vit = vit_jax.load(GOLDEN / 'vit_gap.npz')
  assert vit.report.notes == () and vit.model.numerics.gelu == 'tanh'


# LiT: names and shapes as google-research/vision_transformer (models_lit.py) saves them.


def write_two_towers(path: pathlib.Path, prefix: str, has_head: bool = True) -> None:
  with np.load(GOLDEN / 'vit_patch14.npz') as archive:
    image_tower = {name: x for name, x in archive.items() if has_head or name[:4] != 'head'}
  text_tower = {
    'txt/Embed_0/embedding': np.ones((50, 8), np.float32),
    'txt/Encoder_0/encoderblock_0/LayerNorm_0/scale': np.ones(8, np.float32),
    'txt/head/kernel': np.ones((8, 7), np.float32),
    't': np.zeros(1, np.float32),
  }
  towers = {f'img/{name}': x for name, x in image_tower.items()} | text_tower
  np.savez(path, **{prefix + name: x for name, x in towers.items()})


@pytest.mark.parametrize('prefix', ['', 'params/'])
def test_the_image_tower_of_lit(prefix, tmp_path):
  write_two_towers(tmp_path / 'LiT.npz', prefix)
  expected, vit = np.load(GOLDEN / 'vit_patch14_expected.npz'), vit_jax.load(tmp_path / 'LiT.npz')
  np.testing.assert_allclose(vit(expected['images']), expected['logits'], atol=2e-5)
  report = str(vit.report)
  assert 'the text tower is left out' in report and f'{prefix}txt/head/kernel' in report
  assert 'the head gives the embedding before its L2 normalization, not classes' in report
  assert vit.predict(np.zeros((56, 56, 3), np.uint8))[0][0][0].startswith('embedding ')
  vit.save(tmp_path / 'x.npz')
  with np.load(tmp_path / 'x.npz') as new, np.load(GOLDEN / 'vit_patch14.npz') as old:
    assert set(new.files) == set(old.files)
  new_head = vit_jax.load(tmp_path / 'LiT.npz', num_classes=3)
  assert (new_head.model.num_classes, new_head.labels) == (3, None)


def test_an_image_tower_without_a_head_returns_the_embedding(tmp_path):
  write_two_towers(tmp_path / 'LiT.npz', '', has_head=False)
  images = np.load(GOLDEN / 'vit_patch14_expected.npz')['images']
  vit, whole = vit_jax.load(tmp_path / 'LiT.npz'), vit_jax.load(GOLDEN / 'vit_patch14.npz')
  np.testing.assert_allclose(vit(images), whole.features(images), atol=2e-5)
  assert vit.labels is None and 'not classes' not in str(vit.report)
