"""`Classifier`: images of every kind in, features, tokens and predictions out; JAX and pickle."""

import dataclasses
import io
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.helpers import GOLDEN, assert_same_tree
from vit_jax.config import Preprocessing
from vit_jax.errors import UserError

LABELS = list('abcdefg')


@pytest.fixture(scope='module')
def vit() -> vit_jax.Classifier:
  return vit_jax.load(GOLDEN / 'vit_token_prelogits.npz', labels=LABELS)


@pytest.fixture(scope='module')
def images() -> np.ndarray:
  return np.random.default_rng(0).uniform(-1, 1, (3, 64, 64, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def photo() -> np.ndarray:
  return np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)


class Tensor:
  """What a tensor of PyTorch is to NumPy."""

  def __init__(self, array: np.ndarray):
    self._array, self.shape = array, array.shape

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return self._array


def test_every_kind_of_image_gives_the_same_pixels(vit, photo, tmp_path):
  file, path = io.BytesIO(), tmp_path / 'größe.png'
  Image.fromarray(photo).save(file, 'png')
  path.write_bytes(file.getvalue())
  channels_first = photo.transpose(2, 0, 1)
  kinds = [path, str(path), file.getvalue(), Image.open(file), photo, Tensor(channels_first)]
  kinds += [photo.astype(np.float32) / 255, Tensor(channels_first.astype(np.float64) / 255)]
  batch = vit.preprocess(kinds)
  assert (batch.shape, batch.dtype) == ((len(kinds), 64, 64, 3), np.float32)
  assert -1 <= batch.min() < batch.max() <= 1
  for each in batch:
    np.testing.assert_array_equal(each, vit.preprocess(photo))
  np.testing.assert_array_equal(vit.preprocess(np.stack([photo, photo])), batch[:2])


def test_no_images_are_an_empty_batch(vit):
  assert vit.preprocess([]).shape == (0, *vit.image_size, 3)
  assert vit.predict([]) == []


def test_gray_arrays_become_rgb(vit, photo):
  gray = photo[..., 0]
  expected = vit.preprocess(np.repeat(gray[..., None], 3, axis=2))
  np.testing.assert_array_equal(vit.preprocess([gray, gray[..., None]]), [expected, expected])


def test_the_resize_rule_of_the_model_is_used(vit, photo):
  squash = dataclasses.replace(vit, preprocessing=Preprocessing(resize='squash', crop_fraction=1.0))
  expected = np.asarray(Image.fromarray(photo).resize((64, 64), Image.Resampling.BILINEAR))
  np.testing.assert_allclose(squash.preprocess(photo), expected / 127.5 - 1, atol=1.01 / 127.5)
  assert np.abs(squash.preprocess(photo) - vit.preprocess(photo)).mean() > 0.1


def test_predict_names_the_classes(vit, photo, tmp_path):
  Image.fromarray(photo).save(tmp_path / 'x.png')
  one, again = vit.predict([tmp_path / 'x.png', photo], top_k=3)
  assert one == again and len(one) == 3
  probabilities = np.asarray(vit.probabilities(vit.preprocess([photo])))[0]
  order = np.argsort(-probabilities)[:3]
  assert [label for label, _ in one] == [LABELS[i] for i in order]
  np.testing.assert_allclose([p for _, p in one], probabilities[order], rtol=1e-6)
  assert vit.predict(photo, top_k=100) == [vit.predict([photo], top_k=7)[0]]
  nameless = dataclasses.replace(vit, labels=None)
  assert nameless.predict(photo, top_k=1)[0][0][0] == f'class {order[0]}'


def test_predictions_do_not_depend_on_the_batch_size(vit):
  photos = np.random.default_rng(2).integers(0, 256, (5, 20, 30, 3), dtype=np.uint8)
  whole, parts = vit.predict(photos), vit.predict(iter(photos), batch_size=2)
  assert [[label for label, _ in row] for row in whole] == [[x for x, _ in row] for row in parts]
  close = np.array([[p for _, p in row] for row in whole])
  np.testing.assert_allclose([[p for _, p in row] for row in parts], close, rtol=1e-5)


@pytest.mark.parametrize('arguments', [dict(top_k=0), dict(batch_size=0), dict(batch_size=2**40)])
def test_predict_refuses_numbers_out_of_range(vit, photo, arguments):
  with pytest.raises(ValueError, match='must be'):
    vit.predict(photo, **arguments)


def test_predict_needs_a_head(vit, photo):
  with pytest.raises(UserError, match='no head'):
    vit.with_head(0).predict(photo)


def test_features_are_the_input_of_the_head(vit, images):
  head, features = jax.device_get(vit.params['head']), np.asarray(vit.features(images))
  assert features.shape == (3, 40)  # after pre_logits
  np.testing.assert_allclose(features @ head['kernel'] + head['bias'], vit(images), atol=1e-5)


def test_tokens_come_from_the_last_layer_norm(images):
  vit = vit_jax.load(GOLDEN / 'vit_patch14.npz')
  images = np.random.default_rng(0).uniform(-1, 1, (2, 56, 56, 3)).astype(np.float32)
  patches, prefix = vit.tokens(images, return_prefix_tokens=True)
  assert (patches.shape, prefix.shape) == ((2, 16, 48), (2, 1, 48))
  np.testing.assert_allclose(prefix[:, 0], vit.features(images), atol=1e-6)
  last = vit.intermediates(images, [-1], norm=True)[-1]
  np.testing.assert_allclose(last, patches, atol=1e-6)
  np.testing.assert_array_equal(vit.tokens(images), patches)


def test_tokens_without_a_class_token_average_to_the_features(images):
  vit = vit_jax.load(GOLDEN / 'vit_gap.npz')
  patches, prefix = vit.tokens(images, return_prefix_tokens=True)
  assert (patches.shape, prefix.shape) == ((3, 16, 48), (3, 0, 48))
  np.testing.assert_allclose(patches.mean(axis=1), vit.features(images), atol=1e-5)


def test_intermediates_are_the_outputs_of_the_blocks(vit, images):
  outputs = vit.intermediates(images, layers=[-2, 1, 0])
  assert list(outputs) == [-2, 1, 0]
  assert all(x.shape == (3, 16, 48) for x in outputs.values())
  np.testing.assert_array_equal(outputs[-2], outputs[0])
  # The output of the first block is that of a model of one block, before its last LayerNorm.
  first = dataclasses.replace(vit, model=vit.model.clone(depth=1))
  np.testing.assert_allclose(first.intermediates(images, [0])[0], outputs[0], atol=1e-5)
  assert not np.allclose(outputs[0], outputs[1], atol=1e-2)


def test_layers_that_do_not_exist_are_refused(vit, images):
  with pytest.raises(ValueError, match='no layer 2; the model has 2 blocks'):
    vit.intermediates(images, [2])


def test_a_resnet_has_features_but_no_tokens():
  vit = vit_jax.load(GOLDEN / 'bit_resnet.npz')
  images = np.zeros((1, *vit.image_size, 3), np.float32)
  assert vit.features(images).ndim == 2
  with pytest.raises(ValueError, match='ResNet'):
    vit.tokens(images)


def test_it_is_a_pytree_whose_leaves_are_the_parameters(vit, images):
  leaves = jax.tree.leaves(vit)
  assert [x.shape for x in leaves] == [x.shape for x in jax.tree.leaves(vit.params)]
  doubled = jax.tree.map(lambda x: 2 * x, vit)
  assert doubled.labels == LABELS and doubled.image_size == vit.image_size
  np.testing.assert_array_equal(doubled.params['cls'], 2 * vit.params['cls'])


def test_it_works_inside_jit_vmap_and_grad(vit, images):
  expected = vit(images)
  np.testing.assert_allclose(jax.jit(lambda v, x: v(x))(vit, images), expected, atol=1e-5)
  np.testing.assert_allclose(jax.jit(vit)(images), expected, atol=1e-5)
  np.testing.assert_allclose(jax.vmap(vit)(images[:, None])[:, 0], expected, atol=1e-5)

  def loss(classifier):
    return jnp.sum(classifier(images) ** 2)

  gradient = jax.grad(loss)(vit)
  assert isinstance(gradient, vit_jax.Classifier)
  np.testing.assert_allclose(gradient.params['head']['bias'], 2 * expected.sum(axis=0), rtol=1e-4)


def test_it_pickles(vit, images):
  again = pickle.loads(pickle.dumps(vit))
  np.testing.assert_array_equal(again(images), vit(images))
  assert (again.labels, again.preprocessing) == (LABELS, vit.preprocessing)
  assert str(again.report) == str(vit.report)


def test_with_head_replaces_the_head(vit, images):
  new = vit.with_head(3, labels=['x', 'y', 'z'])
  assert (new.model.num_classes, new.model.pre_logits, new.labels) == (3, 0, ['x', 'y', 'z'])
  np.testing.assert_array_equal(new(images), np.zeros((3, 3)))
  loaded = vit_jax.load(GOLDEN / 'vit_token_prelogits.npz', num_classes=3)
  assert_same_tree(new.params, loaded.params)
  np.testing.assert_array_equal(vit.with_head(0)(images), vit.features(images))
  with pytest.raises(UserError, match='2 names; the model has 3'):
    vit.with_head(3, labels=['x', 'y'])
  with pytest.raises(UserError, match='num_classes'):
    vit.with_head(-1)


@pytest.mark.parametrize('size', [96, (32, 80)])
def test_at_size_resizes_the_position_embeddings(vit, size):
  loaded = vit_jax.load(GOLDEN / 'vit_token_prelogits.npz', image_size=size)
  resized = vit.at_size(size)
  assert (resized.image_size, resized.labels) == (loaded.image_size, LABELS)
  assert_same_tree(resized.params, loaded.params)
  with pytest.raises(UserError, match='do not tile'):
    vit.at_size(65)


def test_load_takes_dtype_device_and_labels(vit, images, tmp_path):
  names = tmp_path / 'names.txt'
  names.write_text('\n'.join(LABELS))
  half = vit_jax.load(
    GOLDEN / 'vit_token_prelogits.npz', dtype='bfloat16', device='cpu', labels=names
  )
  assert half.labels == LABELS
  assert {x.dtype for x in jax.tree.leaves(half.params)} == {np.dtype('float32')}
  difference = np.abs(half(images) - vit(images)).max()
  assert 0 < difference < 0.1
  for dtype in (jnp.bfloat16, np.dtype(jnp.bfloat16)):
    assert vit_jax.load(GOLDEN / 'vit_gap.npz', dtype=dtype).model.numerics.dtype == jnp.bfloat16
  device = jax.devices()[-1]
  placed = vit_jax.load(GOLDEN / 'vit_gap.npz', device=device)
  assert {device} == placed.params['head']['bias'].devices()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (dict(dtype='int8'), 'float32, bfloat16'),
    (dict(device='abacus'), 'abacus'),
    (dict(labels=['a']), '1 name'),
    (dict(labels='missing.txt'), 'missing.txt'),
    (dict(mean='red'), 'mean'),
  ],
)
def test_load_refuses_what_cannot_be(arguments, message):
  with pytest.raises(UserError, match=message):
    vit_jax.load(GOLDEN / 'vit_gap.npz', **arguments)


def test_the_recorded_dtype_is_the_default(vit, images, tmp_path):
  half = vit_jax.load(GOLDEN / 'vit_token_prelogits.npz', dtype='bfloat16')
  half.save(tmp_path / 'half', 'model')
  np.testing.assert_array_equal(vit_jax.load(tmp_path / 'half')(images), half(images))
  full = vit_jax.load(tmp_path / 'half', dtype='float32')
  np.testing.assert_array_equal(full(images), vit(images))


def test_stablehlo_is_named_by_its_preprocessing(vit):
  exported = jax.export.deserialize(bytearray(vit.to_stablehlo()))
  description = json.loads(exported.fun_name)
  assert description['image_size'] == [64, 64]
  assert description['preprocessing'] == {
    **dataclasses.asdict(vit.preprocessing),
    'fill': [],
    'mean': [0.5] * 3,
    'std': [0.5] * 3,
  }


def test_a_notebook_shows_the_model_and_escapes_names(vit):
  hostile = ['<script>alert(1)</script>', '"><img src=x>', '\u202eabc', *'defg']
  shown = dataclasses.replace(vit, labels=hostile)._repr_html_()
  for text in ('VisionTransformer', '64 × 64 pixels, 3 channels', vit.preprocessing.summary()):
    assert text in shown
  assert f'{sum(x.size for x in jax.tree.leaves(vit.params)):,} parameters' in shown
  assert '&lt;script&gt;alert(1)' in shown and '<script' not in shown and '<img' not in shown
  assert r'\u202eabc' in shown and 'vit_token_prelogits.npz' in shown
  features = vit.with_head(0)._repr_html_()
  assert 'no head' in features and '<details>' not in features
  many = vit.with_head(3000, [f'name {i}' for i in range(3000)])._repr_html_()
  assert 'name 999' in many and 'name 1000' not in many and '2,000 more' in many
