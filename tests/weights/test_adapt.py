"""Adapting weights to a model: position embeddings, heads, channels."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import vit_jax
from tests.helpers import GOLDEN, assert_same_tree
from vit_jax.config import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models.vit import Numerics
from vit_jax.weights.adapt import load_params
from vit_jax.weights.position_tables import resize_position_embedding


@pytest.fixture(scope='module')
def golden() -> vit_jax.Classifier:
  return vit_jax.load(GOLDEN / 'vit_token_prelogits.npz')


@pytest.mark.parametrize(('old', 'new'), [(14, 24), (16, 37), (24, 14), (7, 12)])
def test_golden_resized_position_embeddings(old, new):
  expected = np.load(GOLDEN / f'posemb_{old}_to_{new}.npz')
  resized = resize_position_embedding(expected['old'], (old, old), (new, new))
  assert resized.dtype == np.float32
  np.testing.assert_allclose(resized, expected['new'], atol=1e-5)


def test_resizing_to_a_rectangle_aligns_corners_and_is_linear():
  rows, columns = np.meshgrid(np.arange(4.0), np.arange(3.0), indexing='ij')
  old = np.stack([rows, columns], axis=-1).reshape(1, 12, 2).astype(np.float32)
  new = resize_position_embedding(old, (4, 3), (7, 2)).reshape(7, 2, 2)
  np.testing.assert_allclose(new[..., 0], np.repeat(np.linspace(0, 3, 7)[:, None], 2, axis=1))
  np.testing.assert_allclose(new[..., 1], np.repeat([[0.0, 2.0]], 7, axis=0))


def test_resizing_keeps_the_class_token_and_the_grid_of_the_same_size():
  old = np.random.default_rng(0).normal(size=(1, 7, 4)).astype(np.float32)
  np.testing.assert_array_equal(resize_position_embedding(old, (2, 3), (2, 3)), old)
  new = resize_position_embedding(old, (2, 3), (5, 4))
  assert new.shape == (1, 21, 4)
  np.testing.assert_array_equal(new[:, 0], old[:, 0])


def test_load_resizes_to_a_rectangle(golden):
  vit = vit_jax.load(GOLDEN / 'vit_token_prelogits.npz', image_size=(96, 32))
  new = vit.params['Transformer']['posembed_input']['pos_embedding']
  old = golden.params['Transformer']['posembed_input']['pos_embedding']
  assert vit.image_size == (96, 32)
  assert new.shape == (1, 1 + 6 * 2, 48)
  grids = (old[0, 1:].reshape(4, 4, 48), new[0, 1:].reshape(6, 2, 48))
  for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
    np.testing.assert_allclose(grids[0][corner], grids[1][corner], atol=1e-6)
  assert vit(np.zeros((1, 96, 32, 3), np.float32)).shape == (1, 7)


@pytest.mark.parametrize('size', [63, (64, 40), 8])
def test_sizes_that_patches_do_not_tile_are_refused(size):
  with pytest.raises(UserError, match='do not tile'):
    vit_jax.load(GOLDEN / 'vit_gap.npz', image_size=size)


def test_a_new_head_is_zero_and_drops_pre_logits(golden):
  vit = vit_jax.load(GOLDEN / 'vit_token_prelogits.npz', num_classes=5)
  assert vit.params['head']['kernel'].shape == (48, 5)
  assert not any(np.any(leaf) for leaf in vit.params['head'].values())
  assert (vit.model.num_classes, vit.model.pre_logits) == (5, 0)
  assert set(golden.params) - set(vit.params) == {'pre_logits'}
  assert_same_tree(vit.params['Transformer'], golden.params['Transformer'])


def test_without_a_head_features_are_returned(golden):
  images = np.load(GOLDEN / 'vit_token_prelogits_expected.npz')['images']
  vit = vit_jax.load(GOLDEN / 'vit_token_prelogits.npz', num_classes=0)
  head = jax.device_get(golden.params['head'])
  assert 'head' not in vit.params
  logits = np.asarray(vit(images)) @ head['kernel'] + head['bias']
  np.testing.assert_allclose(logits, golden(images), atol=2e-5)


@pytest.mark.parametrize(
  ('name', 'channels'), [('vit_gap', 1), ('vit_gap', 6), ('hybrid_stem', 6), ('bit_resnet', 6)]
)
def test_weights_are_adapted_to_other_numbers_of_channels(name, channels, tmp_path):
  vit = vit_jax.load(GOLDEN / f'{name}.npz')
  params, report = load_params(GOLDEN / f'{name}.npz', vit.model, (*vit.image_size, channels))
  assert f'for {channels} channels' in str(report.resized)
  gray = np.random.default_rng(0).uniform(-1, 1, (2, *vit.image_size, 1)).astype(np.float32)
  params['head'] = vit.params['head']
  other = dataclasses.replace(vit, params=params)
  assert other.channels == channels
  # An image that is the same in every channel gives the same logits as before.
  expected = vit(np.repeat(gray, 3, axis=-1))
  np.testing.assert_allclose(other(np.repeat(gray, channels, axis=-1)), expected, atol=1e-4)
  other.save(tmp_path / 'x.npz')
  again = vit_jax.load(tmp_path / 'x.npz')
  assert again.channels == channels
  pixels = again.preprocess(np.zeros((20, 20, channels), np.uint8))
  assert pixels.shape == (*vit.image_size, channels)


def test_the_report_says_where_a_run_differs_from_its_source(tmp_path):
  vit = vit_jax.load(GOLDEN / 'vit_gap.npz')
  shape, rule = (*vit.image_size, 3), Preprocessing('squash', 1.0, fill=(1,))
  exact = vit.model.clone(numerics=Numerics(gelu='exact', layer_norm_epsilon=1e-5))
  dataclasses.replace(vit, model=exact, preprocessing=rule).save(tmp_path / 'x.npz')
  _, report = load_params(tmp_path / 'x.npz', vit.model, shape, preprocessing=Preprocessing())
  assert (
    'the source has model.gelu=exact, model.layer_norm_epsilon=1e-05, '
    'data.test.resize=squash, data.test.crop_fraction=1.0' in report.notes
  )
  _, report = load_params(tmp_path / 'x.npz', exact, shape, preprocessing=rule)
  assert not report.notes


def test_channels_and_image_size_are_adapted_together():
  model = vit_jax.load(GOLDEN / 'vit_gap.npz').model
  params, report = load_params(GOLDEN / 'vit_gap.npz', model, (96, 32, 1))
  expected, _ = load_params(GOLDEN / 'vit_gap.npz', model, (64, 64, 1))
  assert len(report.resized) == 2
  assert_same_tree(params['embedding'], expected['embedding'])
  assert params['Transformer']['posembed_input']['pos_embedding'].shape == (1, 6 * 2, 48)


def test_a_non_square_model_can_be_resized_again_and_given_a_new_head(golden, tmp_path):
  vit = vit_jax.load(GOLDEN / 'vit_token_prelogits.npz', image_size=(32, 96))
  vit_jax.Classifier(vit.model, vit.params, (32, 96), list('abcdefg')).save(
    tmp_path / 'model', 'model'
  )
  loaded = vit_jax.load(tmp_path / 'model', image_size=(64, 48), num_classes=3)
  positions = loaded.params['Transformer']['posembed_input']['pos_embedding']
  old = vit.params['Transformer']['posembed_input']['pos_embedding']
  np.testing.assert_array_equal(positions, resize_position_embedding(old, (2, 6), (4, 3)))
  assert loaded.labels is None  # they name the classes of the old head


def test_initial_weights_for_training(golden):
  model = golden.model.clone(num_classes=4, pre_logits=0, dropout_rate=0.1)
  params, _ = load_params(GOLDEN / 'vit_token_prelogits.npz', model, (32, 96, 3))
  expected = vit_jax.load(GOLDEN / 'vit_token_prelogits.npz', (32, 96), num_classes=4)
  assert_same_tree(params, expected.params)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'width': 64}, 'width is 48 in the file, 64 in the config'),
    ({'depth': 3, 'pool': 'map'}, 'depth is 2 in the file, 3 .*; pool is token in the file, map'),
  ],
)
def test_weights_of_another_architecture_are_refused(fields, message, golden):
  model = golden.model.clone(**fields)
  with pytest.raises(UserError, match=message):
    load_params(GOLDEN / 'vit_token_prelogits.npz', model, (64, 64, 3))


NAMES = list('abcdefg')


@pytest.fixture(scope='module')
def named(golden, tmp_path_factory):
  """Weights with a head, a `pre_logits` layer, and names of the classes."""
  path = tmp_path_factory.mktemp('named') / 'model'
  vit_jax.Classifier(golden.model, golden.params, golden.image_size, NAMES).save(path, 'model')
  return path


@pytest.mark.parametrize(
  ('init_head', 'class_names', 'is_kept'),
  [
    ('new', NAMES, False),
    ('keep', NAMES, True),
    ('keep', (), True),
    ('auto', NAMES, True),
    ('auto', NAMES[::-1], False),
    ('auto', (), False),
  ],
)
def test_the_head_is_kept_or_new(init_head, class_names, is_kept, golden, named):
  shape = (*golden.image_size, 3)
  options: Any = {'init_head': init_head, 'class_names': class_names}
  params, report = load_params(named, golden.model, shape, **options)
  if is_kept:
    assert_same_tree(params, golden.params)
    assert report.is_plain
  else:
    assert not any(np.any(leaf) for leaf in params['head'].values())
    assert len(report.reinitialized) == 2


def test_a_head_without_names_is_kept_only_on_request(golden):
  shape, file = (*golden.image_size, 3), GOLDEN / 'vit_token_prelogits.npz'
  params, _ = load_params(file, golden.model, shape, init_head='auto', class_names=NAMES)
  assert not np.any(params['head']['kernel'])
  params, _ = load_params(file, golden.model, shape, init_head='keep', class_names=NAMES)
  assert_same_tree(params, golden.params)


@pytest.mark.parametrize(
  ('fields', 'class_names', 'message'),
  [
    (
      {'num_classes': 3},
      NAMES[:3],
      'has 7 classes, and the data has 3; set --config.init_head=new',
    ),
    ({'pre_logits': 0}, NAMES, 'has a head on pre_logits=40, and config.model.pre_logits is 0'),
    ({}, [*NAMES[:6], 'x'], "has 'g' as class 6, and the data has 'x'"),
  ],
)
def test_a_head_that_cannot_be_kept_is_refused(fields, class_names, message, golden, named):
  model = golden.model.clone(**fields)
  options: Any = {'init_head': 'keep', 'class_names': class_names}
  with pytest.raises(UserError, match=message):
    load_params(named, model, (*golden.image_size, 3), **options)
  load_params(named, model, (*golden.image_size, 3), **(options | {'init_head': 'auto'}))
