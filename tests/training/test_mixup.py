"""Mixup and CutMix of a batch, alone, in the train step and on meshes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import BATCH, KEY, MULTI_HOT, assert_close, first_state, jit, make_model, rate
from vit_jax.config import MeshConfig, StepConfig
from vit_jax.distributed import sharding as mesh_lib
from vit_jax.training import step as step_lib
from vit_jax.training.mixup import mix

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 12, 10, 2), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 3, 4, 0], np.int32)
ONE_HOT = np.eye(5, dtype=np.float32)[LABELS]


@functools.partial(jax.jit, static_argnums=(1, 2))
def mixed(batch, mixup_alpha, cutmix_alpha, key):
  return mix(batch, 5, mixup_alpha, cutmix_alpha, key)


def draws(mixup_alpha: float, cutmix_alpha: float, number: int = 200):
  """Own shares of all pixels, read off a batch whose images are 0 but for one; and of labels."""
  images = np.zeros_like(IMAGES)
  images[2] = 255
  keys = jax.random.split(jax.random.key(1), number)
  batch = {'image': images, 'label': LABELS}
  many = jax.jit(jax.vmap(lambda key: mix(batch, 5, mixup_alpha, cutmix_alpha, key)))(keys)
  return np.asarray(many['image'][:, 2, ..., 0]) / 255, np.asarray(many['label'][:, 2, 2])


def blend_of(share: np.ndarray, x: np.ndarray) -> np.ndarray:
  return share * x + (1 - share) * np.roll(x, 1, axis=0)


def test_mixup_blends_images_and_labels_alike():
  actual = mixed({'image': IMAGES, 'label': LABELS}, 0.8, 0.0, KEY)
  share = actual['label'][1, 1]
  assert 0 < share < 1 and actual['image'].dtype == np.float32
  np.testing.assert_allclose(actual['image'], blend_of(share, IMAGES.astype(float)), atol=1e-3)
  np.testing.assert_allclose(actual['label'], blend_of(share, ONE_HOT), atol=1e-6)


def test_mixup_shares_are_of_the_beta_distribution():
  shares, labels = draws(0.4, 0.0, 2000)
  np.testing.assert_allclose(shares[:, 0, 0], labels, atol=1e-5)
  assert np.ptp(shares, axis=(1, 2)).max() < 1e-6
  assert abs(labels.mean() - 0.5) < 0.03
  assert abs(labels.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.015


def test_cutmix_pastes_a_rectangle_of_the_partner():
  shares, labels = draws(0.0, 1.0)
  np.testing.assert_allclose(shares.mean(axis=(1, 2)), labels, atol=1e-5)
  corners = set()
  for share in shares:
    assert set(np.unique(share)) <= {0.0, 1.0}
    rows, columns = np.nonzero(share == 0)
    if rows.size:
      box = share[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
      assert not box.any()
      corners.add((rows.min(), columns.min()))
  assert len(corners) > 30
  assert 0.5 < labels.mean() < 0.75  # less than half is replaced: boxes are cut at the border


def test_both_together_are_drawn_evenly():
  shares, _ = draws(0.8, 1.0, 400)
  is_cut = [(share == 0).any() or (share == 1).all() for share in shares]
  assert 0.4 < np.mean(is_cut) < 0.6


def test_multi_hot_labels_are_mixed():
  actual = mixed({'image': IMAGES, 'label': np.uint8(ONE_HOT)}, 0.8, 0.0, KEY)
  assert_close(actual, mixed({'image': IMAGES, 'label': LABELS}, 0.8, 0.0, KEY))


def test_devices_change_nothing():
  """Nor does a device send more than a row to the next one."""
  mesh = mesh_lib.make_mesh(MeshConfig())
  parts = mesh.devices.size
  assert parts > 1
  batch = {
    'image': RNG.integers(0, 256, (4 * parts, 4, 4, 3), dtype=np.uint8),
    'label': np.arange(4 * parts, dtype=np.int32) % 5,
  }
  rows, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
  sharded = jax.jit(
    lambda batch, key: mix(batch, 5, 0.8, 1.0, key),
    in_shardings=(rows, everywhere),
    out_shardings=rows,
  )
  assert_close(sharded(batch, KEY), mixed(batch, 0.8, 1.0, KEY))
  text = sharded.lower(batch, KEY).compile().as_text()
  assert 'f32[1,4,4,3]' in text and ' all-gather(' not in text and ' all-to-all(' not in text


def make_step(**fields):
  config = StepConfig(batch_size=8, **({'label_smoothing': 0.1} | fields))
  return step_lib.make_train_step(make_model(), optax.sgd(rate, momentum=0.9), rate, config)


@pytest.fixture(scope='module')
def state():
  return first_state()


def test_accumulation_mixes_the_whole_batch(state):
  batch, fields = BATCH | {'label': MULTI_HOT}, dict(mixup_alpha=0.8, cutmix_alpha=1.0)
  expected, wanted = jit(make_step(**fields))(state, batch, KEY)
  actual, metrics = jit(make_step(accumulation_steps=4, **fields))(state, batch, KEY)
  assert_close(metrics, wanted)
  assert_close(actual.params, expected.params)


def test_the_loss_is_that_of_mixed_and_smoothed_targets(state):
  _, metrics = jit(make_step(mixup_alpha=0.8))(state, BATCH, KEY)
  _, key = jax.random.split(jax.random.fold_in(KEY, 0))
  batch = jax.jit(lambda: mix(BATCH, 3, 0.8, 0.0, key))()
  logits = jit(make_model().apply)({'params': state.params}, batch['image'] / 127.5 - 1)
  wanted = 0.9 * np.asarray(batch['label']) + 0.1 / 3
  expected = -(wanted * np.asarray(jax.nn.log_softmax(logits))).sum(axis=-1).mean()
  assert math.isclose(metrics['train/loss'], expected, rel_tol=1e-4)


def test_every_step_draws_again(state):
  train_step = jit(make_step(mixup_alpha=0.8))
  losses = {
    float(train_step(state.replace(step=jnp.int32(i)), BATCH, KEY)[1]['train/loss'])
    for i in range(4)
  }
  assert len(losses) == 4


def test_without_mixing_the_program_is_unchanged(state):
  plain, off = (
    jax.jit(make_step(**fields)).lower(state, BATCH, KEY).as_text()
    for fields in ({}, {'mixup_alpha': 0.0, 'cutmix_alpha': 0.0})
  )
  assert plain == off
  assert plain != jax.jit(make_step(mixup_alpha=0.1)).lower(state, BATCH, KEY).as_text()
