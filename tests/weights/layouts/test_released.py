"""All JAX layouts: golden logits of hybrids, BiT and big_vision, old names, unfinished runs, and
the report of a load."""

import dataclasses
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.helpers import GOLDEN, assert_same_tree
from vit_jax.config import Preprocessing, load_config
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.resnet import BiTResNet
from vit_jax.models.variants import RESNET_VARIANTS
from vit_jax.weights.layouts import released
from vit_jax.weights.position_tables import resize_position_embedding

SPECIAL = {
  'hybrid_stem': dict(patch_size=32, resnet_width=64, resnet_blocks=()),
  'hybrid_stages': dict(patch_size=8, resnet_width=32, resnet_blocks=(2, 1)),
  'bit_resnet': dict(width=32, blocks=(1, 2)),
  'big_vision_map_scan': dict(pool='map', depth=3),
  'big_vision_tok': dict(pool='token', depth=3),
}
TOKEN = GOLDEN / 'vit_token_prelogits.npz'
BLOCK = 'Transformer/encoderblock_0/'


def read(name: str) -> dict[str, np.ndarray]:
  with np.load(GOLDEN / f'{name}.npz') as archive:
    return dict(archive)


def check_logits(vit: vit_jax.Classifier, name: str) -> None:
  expected = np.load(GOLDEN / f'{name}_expected.npz')
  np.testing.assert_allclose(vit(expected['images']), expected['logits'], atol=2e-5)


@pytest.mark.parametrize('name', SPECIAL)
def test_golden_logits(name):
  vit = vit_jax.load(GOLDEN / f'{name}.npz')
  check_logits(vit, name)
  architecture = build.architecture(vit.model)
  assert {field: architecture[field] for field in SPECIAL[name]} == SPECIAL[name]
  assert architecture['num_classes'] == 7


def squeeze_norms(tensors):
  return {n: x.reshape(-1) if re.search(r'/gn|^gn', n) else x for n, x in tensors.items()}


def old_positions(tensors):  # big_vision between 2021 and 2022
  return {n.replace('Transformer/posembed_input/', 'Transformer/'): x for n, x in tensors.items()}


def current_linen(tensors):
  names = released._TO_LINEN
  return {re.sub('|'.join(names), lambda m: names[m[0]], n): x for n, x in tensors.items()}


def numbered_convolutions(tensors):  # as in some of BiT's files
  return {
    n.replace('c/standardized_conv2d/', 'c/standardized_conv2d_1/'): x for n, x in tensors.items()
  }


def inlined_map_head(tensors):
  return {n.replace('MAPHead_0/', ''): x for n, x in tensors.items()}


def training_state(tensors):
  rest = {'opt/state/step': np.zeros((), np.int32), 'opt/state/x/mu': np.zeros(3, np.float32)}
  return {f'opt/target/{n}': x for n, x in tensors.items()} | rest


def image_tower(tensors):
  return {n.replace('params/', 'params/img/'): x for n, x in tensors.items()} | {
    'params/t': np.zeros(1, np.float32)
  }


def numpy_bfloat16(tensors):  # NumPy writes bfloat16 as V2
  return {n: np.asarray(jnp.asarray(x, jnp.bfloat16)).view('V2') for n, x in tensors.items()}


VARIATIONS = [
  ('hybrid_stages', squeeze_norms),
  ('hybrid_stem', squeeze_norms),
  ('hybrid_stem', current_linen),
  ('vit_token_prelogits', current_linen),
  ('vit_token_prelogits', old_positions),
  ('vit_gap', old_positions),
  ('vit_gap', training_state),
  ('bit_resnet', numbered_convolutions),
  ('big_vision_map_scan', inlined_map_head),
  ('big_vision_map_scan', image_tower),
]


@pytest.mark.parametrize(('name', 'vary'), VARIATIONS)
def test_older_names_load_the_same_weights(name, vary, tmp_path):
  np.savez(tmp_path / 'x.npz', **vary(read(name)))
  loaded = vit_jax.load(tmp_path / 'x.npz')
  assert_same_tree(loaded.params, vit_jax.load(GOLDEN / f'{name}.npz').params)


def test_other_tensors_of_a_training_state_are_ignored_and_reported(tmp_path):
  np.savez(tmp_path / 'x.npz', **training_state(read('vit_gap')))
  report = vit_jax.load(tmp_path / 'x.npz').report
  assert report.ignored == ('opt/state/step', 'opt/state/x/mu')
  assert len(report.loaded) == len(read('vit_gap'))


@pytest.mark.parametrize(
  'change', [numpy_bfloat16, lambda tensors: {n: x.astype(np.float16) for n, x in tensors.items()}]
)
def test_half_precision_is_loaded_and_noted(change, tmp_path):
  np.savez(tmp_path / 'x.npz', **change(read('vit_gap')))
  vit = vit_jax.load(tmp_path / 'x.npz')
  exact = vit_jax.load(GOLDEN / 'vit_gap.npz')
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(vit.params))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-6), vit.params, exact.params
  )
  assert re.search('float16 weights were converted to float32', str(vit.report))


def test_an_old_and_a_new_name_of_one_parameter_are_refused(tmp_path):
  tensors = read('vit_gap')
  tensors[f'{BLOCK}LayerNorm_1/scale'] = tensors[f'{BLOCK}LayerNorm_2/scale']
  np.savez(tmp_path / 'x.npz', **tensors)
  with pytest.raises(UserError, match='twice'):
    vit_jax.load(tmp_path / 'x.npz')


def test_stacks_of_different_depths_are_refused(tmp_path):
  tensors = read('big_vision_map_scan')
  name = 'params/Transformer/encoderblock/LayerNorm_0/scale'
  np.savez(tmp_path / 'x.npz', **{**tensors, name: tensors[name][:2]})
  with pytest.raises(UserError, match=r'encoderblock_2/LayerNorm_0/scale \(file: missing'):
    vit_jax.load(tmp_path / 'x.npz')


@pytest.mark.parametrize('name', ['hybrid_stem', 'bit_resnet', 'vit_token_prelogits'])
def test_writing_reproduces_the_published_file(name, tmp_path):
  """Same names and shapes, but for the norms that older linen kept as (1, 1, 1, C)."""
  vit_jax.load(GOLDEN / f'{name}.npz').save(tmp_path / 'copy.npz')
  with np.load(tmp_path / 'copy.npz') as archive:
    assert_same_tree(dict(archive), squeeze_norms(read(name)))


def test_a_bit_model_takes_images_of_any_size(tmp_path):
  vit = vit_jax.load(GOLDEN / 'bit_resnet.npz')
  assert vit(np.zeros((2, 33, 47, 3), np.float32)).shape == (2, 7)
  assert vit.preprocess(np.zeros((50, 60, 3), np.uint8)).shape == (224, 224, 3)
  with pytest.raises(ValueError):
    vit(np.zeros((33, 47, 3), np.float32))
  vit_jax.load(GOLDEN / 'bit_resnet.npz', image_size=(64, 32)).save(tmp_path / 'm', 'model')
  loaded = vit_jax.load(tmp_path / 'm')
  assert loaded.image_size == (64, 32)
  assert_same_tree(loaded.params, vit.params)


@pytest.mark.parametrize(
  ('variant', 'count'),
  # Counted by timm 1.0.31: resnetv2_50x1_bit and so on with 21,843 classes.
  [
    ('R50x1', 68_256_659),
    ('R50x3', 345_399_315),
    ('R101x1', 87_248_787),
    ('R101x3', 516_015_123),
    ('R152x2', 321_728_979),
    ('R152x4', 1_107_299_923),
  ],
)
def test_parameter_counts_of_bit(variant, count):
  row = RESNET_VARIANTS[variant]
  params = build.abstract_params(BiTResNet(row.width, row.blocks, 21_843), (224, 224))
  assert build.count_parameters(params) == count


@pytest.mark.parametrize(
  ('name', 'count'),
  # Counted by timm 1.0.31: vit_tiny_r_s16_p8_224, vit_small_r26_s32_224,
  # vit_base_r50_s16_224 and vit_large_r50_s32_224 with 1,000 classes.
  [
    ('r_ti16', 6_337_704),
    ('r26_s32', 36_431_912),
    ('r50_b16', 98_659_112),
    ('r50_l32', 328_994_856),
  ],
)
def test_parameter_counts_of_hybrids(name, count):
  config = load_config(f'configs/finetune.py:{name},imagenet')
  model = build.model_from_config(config.model, num_classes=1000)
  size = (config.data.image_size,) * 2
  build.check_image_size(size, model, 'image_size')
  params = build.abstract_params(model, (224, 224))
  assert build.count_parameters(params) == count


@pytest.mark.parametrize('name', ['vit_token_prelogits', 'hybrid_stem', 'bit_resnet'])
def test_models_that_transformers_lacks_go_into_a_vit_jax_folder(name, tmp_path):
  vit = dataclasses.replace(vit_jax.load(GOLDEN / f'{name}.npz'), labels=list('abcdefg'))
  vit.save(tmp_path / 'x')
  loaded = vit_jax.load(tmp_path / 'x')
  assert (tmp_path / 'x' / 'params.npz').exists() and loaded.labels == list('abcdefg')
  assert_same_tree(loaded.params, vit.params)
  with pytest.raises(
    UserError, match='no class of Transformers has|which ViTForImageClassification does not'
  ):
    vit.save(tmp_path / 'y', 'huggingface')


def test_keeping_pre_logits(tmp_path):
  vit = vit_jax.load(TOKEN, num_classes=3, keep_pre_logits=True)
  assert (vit.model.pre_logits, vit.model.num_classes) == (40, 3)
  old = vit_jax.load(TOKEN)
  assert_same_tree(vit.params['pre_logits'], old.params['pre_logits'])
  assert not np.any(vit.params['head']['kernel'])
  assert vit(np.zeros((1, 64, 64, 3), np.float32)).shape == (1, 3)


@pytest.mark.parametrize(('old', 'new'), [((4, 4), (6, 9)), ((6, 9), (4, 3)), ((1, 5), (3, 5))])
def test_half_pixel_resizing_agrees_with_jax_image(old, new):
  rng = np.random.default_rng(0)
  embedding = rng.normal(size=(1, 1 + old[0] * old[1], 5)).astype(np.float32)
  resized = resize_position_embedding(embedding, old, new, 'half_pixel')
  grid = jax.image.resize(embedding[0, 1:].reshape(*old, 5), (*new, 5), 'linear', antialias=False)
  np.testing.assert_allclose(resized[0, 1:].reshape(*new, 5), grid, atol=1e-5)
  np.testing.assert_array_equal(resized[:, 0], embedding[:, 0])


def test_half_pixel_resizing_is_an_option_of_load():
  one = vit_jax.load(TOKEN, 96)
  two = vit_jax.load(TOKEN, 96, position_resize='half_pixel')
  assert 'half_pixel' in str(two.report)
  assert not np.allclose(one(np.ones((1, 96, 96, 3))), two(np.ones((1, 96, 96, 3))))
  with pytest.raises(UserError, match='choose one of auto, corners, half_pixel'):
    vit_jax.load(TOKEN, position_resize='cubic')


def test_an_npz_keeps_the_metadata(tmp_path):
  """In a comment of the zip, which other readers ignore."""
  vit = vit_jax.load(TOKEN, (32, 128), gelu='exact')
  labels = ['größer Hund', '"', 'c', '', 'e', 'f', 'g']
  vit = dataclasses.replace(
    vit, labels=labels, preprocessing=Preprocessing(crop_fraction=0.7), loss='sigmoid'
  )
  vit.save(tmp_path / 'x.npz')
  loaded = vit_jax.load(tmp_path / 'x.npz')
  assert (loaded.labels, loaded.preprocessing.crop_fraction, loaded.loss) == (
    labels,
    0.7,
    'sigmoid',
  )
  assert (loaded.model, loaded.image_size) == (vit.model, (32, 128))  # not the square of 16 patches
  assert_same_tree(loaded.params, vit.params)
  data = bytearray((tmp_path / 'x.npz').read_bytes())
  data[data.rindex(b'sigmoid')] ^= 1
  (tmp_path / 'x.npz').write_bytes(data)
  with pytest.raises(UserError, match='CRC of its comment'):
    vit_jax.load(tmp_path / 'x.npz')


@pytest.mark.parametrize('size', [9_000, 65_436 // 7, 10_000, 100_000])
def test_long_labels_are_kept_where_other_readers_see_nothing(size, tmp_path):
  labels = [letter * size for letter in 'abcdefg']
  vit = dataclasses.replace(vit_jax.load(GOLDEN / 'vit_gap.npz'), labels=labels)
  for name in ('x.npz', 'x.safetensors'):
    vit.save(tmp_path / name)
    assert vit_jax.load(tmp_path / name).labels == labels
  with np.load(tmp_path / 'x.npz') as new, np.load(GOLDEN / 'vit_gap.npz') as old:
    assert sorted(new.files) == sorted(old.files)
    for name in old.files:
      np.testing.assert_array_equal(new[name], old[name])
  with zipfile.ZipFile(tmp_path / 'x.npz') as archive:
    assert archive.testzip() is None
  data = bytearray((tmp_path / 'x.npz').read_bytes())
  data[data.rindex(b'g')] ^= 1
  (tmp_path / 'x.npz').write_bytes(data)
  with pytest.raises(UserError, match='CRC of its comment'):
    vit_jax.load(tmp_path / 'x.npz')


def test_labels_that_no_npz_can_hold_are_not_lost_silently(tmp_path):
  labels = [letter * 10**6 for letter in 'abcdefg']
  vit = dataclasses.replace(vit_jax.load(GOLDEN / 'vit_gap.npz'), labels=labels)
  with pytest.raises(UserError, match='bytes, which an .npz of .* tensors cannot hold'):
    vit.save(tmp_path / 'x.npz')
  assert list(tmp_path.iterdir()) == []


def test_changed_tensors_are_noted():
  report = vit_jax.load(GOLDEN / 'big_vision_tok.npz').report
  assert report.notes == ('the class token had no position embedding and was given zeros',)
  assert not report.is_plain and 'note: the class token' in str(report)


def test_a_contradicting_number_of_heads_is_refused():
  with pytest.raises(UserError, match='has 3 heads, but num_heads is 5'):
    vit_jax.load(TOKEN, num_heads=5)
  with pytest.raises(UserError, match='num_heads is True'):
    vit_jax.load(TOKEN, num_heads=True)


@pytest.mark.parametrize(
  'image',
  [
    np.full((64, 64, 3), 2.0),
    np.full((64, 64, 3), -1.0),
    np.zeros((64, 64, 3), np.int32),
    np.zeros((64,), np.uint8),
    [[1, 2]],
    7,
  ],
)
def test_preprocess_refuses_ambiguous_images(image):
  with pytest.raises(ValueError, match='images are paths, bytes, Pillow images, or arrays'):
    vit_jax.load(GOLDEN / 'vit_gap.npz').preprocess(image)


def test_lists_and_empty_batches():
  vit = vit_jax.load(GOLDEN / 'vit_gap.npz')
  images = np.zeros((1, 64, 64, 3), np.float32)
  np.testing.assert_array_equal(vit(images.tolist()), vit(images))
  assert vit(images[:0]).shape == (0, 7)


def test_the_report_counts_all_tensors_in_one_table():
  report = vit_jax.load(TOKEN, image_size=96, num_classes=5).report
  assert (len(report.loaded), len(report.resized), len(report.reinitialized)) == (37, 1, 2)
  assert len(report.ignored) == 4
  lines = str(report).splitlines()
  assert 'released layout' in lines[0]
  assert [line.split()[:2] for line in lines[1:]] == [
    ['loaded', '37'],
    ['resized', '1'],
    ['re-initialized', '2'],
    ['ignored', '4'],
  ]
  assert '(1, 17, 48) -> (1, 37, 48)' in lines[2]


def test_positions_of_a_rectangle_need_only_the_image_size(tmp_path):
  vit_jax.load(GOLDEN / 'vit_gap.npz', (32, 96)).save(tmp_path / 'own.npz')
  assert vit_jax.load(tmp_path / 'own.npz').image_size == (32, 96)  # from its metadata
  with np.load(tmp_path / 'own.npz') as archive:
    np.savez(tmp_path / 'x.npz', **archive)
  with pytest.raises(UserError, match='not a square; pass the image size'):
    vit_jax.load(tmp_path / 'x.npz')
  vit = vit_jax.load(tmp_path / 'x.npz', (32, 96))
  assert (vit.image_size, vit.report.resized) == ((32, 96), ())


def test_an_unfinished_run_is_loaded_from_its_checkpoints(tiny_run, tmp_path):
  for name in ('config.json', 'checkpoints'):
    (tmp_path / name).symlink_to(tiny_run / name)
  finished = vit_jax.load(tiny_run)
  steps = sorted((tiny_run / 'checkpoints').iterdir(), key=lambda path: int(path.name))
  for source in (tmp_path, tmp_path / 'checkpoints', steps[-1]):
    loaded = vit_jax.load(source)
    assert_same_tree(loaded.params, finished.params)
    assert loaded.image_size == finished.image_size
  assert vit_jax.load(steps[0]).report.loaded == finished.report.loaded


def test_a_run_is_loaded_from_a_relative_path(tiny_run, monkeypatch):
  monkeypatch.chdir(tiny_run / 'model')
  assert vit_jax.load('../checkpoints').report.layout == 'Orbax'


def test_a_damaged_orbax_checkpoint_is_refused(tmp_path):
  (tmp_path / '5' / 'default').mkdir(parents=True)
  (tmp_path / '5' / 'default' / '_METADATA').write_text('{')
  with pytest.raises(UserError, match='cannot be read'):
    vit_jax.load(tmp_path / '5')


def test_a_published_name_is_fetched(tmp_path, monkeypatch):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path))
  (tmp_path / 'imagenet21k').mkdir()
  (tmp_path / 'imagenet21k' / 'ViT-B_16.npz').write_bytes(TOKEN.read_bytes())
  assert vit_jax.load('imagenet21k/ViT-B_16', num_classes=0).model.width == 48
  with pytest.raises(UserError, match='ViT-B_16'):
    vit_jax.load('imagenet21k/ViT-B_17')


def test_parameters_are_loaded_into_their_shards():
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))

  def shard(tree):
    def sharding(leaf):
      axes = [None] * leaf.ndim
      for i, side in enumerate(leaf.shape):
        if side % 8 == 0:
          axes[i] = 'x'
          break
      return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    return jax.tree.map(sharding, tree)

  vit = vit_jax.load(TOKEN, shardings=shard)
  assert_same_tree(vit.params, vit_jax.load(TOKEN).params)
  kernel = vit.params['Transformer']['encoderblock_0']['MlpBlock_0']['Dense_0']['kernel']
  assert {shard.data.shape for shard in kernel.addressable_shards} == {(6, 96)}
