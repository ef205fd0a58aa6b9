"""Loaded models compute with the attention of the device that holds their arrays."""

import jax
import numpy as np
import pytest

from vit_jax.config import ModelConfig
from vit_jax.models import build, inference
from vit_jax.models.dot_product_attention import einsum_attention

SIZES = {'patch_size': 4, 'width': 16, 'depth': 2, 'mlp_dim': 16, 'num_heads': 2}


def random_images(count):
  return np.random.default_rng(0).uniform(-1, 1, (count, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def model():
  return build.model_from_config(ModelConfig(**SIZES, dtype='float32'), 3, platform='cpu')


@pytest.fixture(scope='module')
def params(model):
  return model.init(jax.random.key(0), random_images(1))['params']


@pytest.fixture
def chosen(monkeypatch):
  """The platforms whose attention was chosen; it is that of a CPU."""
  platforms = []

  def choose(name, platform, device):
    platforms.append((name, device))
    return einsum_attention

  monkeypatch.setattr(build, 'choose_attention', choose)
  return platforms


def test_the_attention_is_that_of_the_device(model, params, chosen):
  images, device = random_images(2), jax.devices()[-1]
  expected = model.apply({'params': params}, images)
  for arrays in (params, images), jax.device_put((params, images), device):
    np.testing.assert_allclose(inference.logits(model, *arrays), expected, rtol=1e-5)
  default = jax.numpy.zeros(()).devices()
  assert chosen == [('auto', *default), ('auto', device)]


def test_numpy_arrays_go_to_the_default_device(model, params, chosen):
  device = jax.devices()[-1]
  with jax.default_device(device):
    logits = inference.logits(model, jax.device_get(params), random_images(2))
  assert logits.devices() == {device}
  assert chosen == [('auto', device)]


def test_the_model_keeps_its_attention_inside_of_jit_and_on_several_devices(model, params, chosen):
  images = random_images(jax.device_count())
  expected = inference.logits(model, params, images)
  chosen.clear()
  jitted = jax.jit(lambda params, images: inference.logits(model, params, images))
  np.testing.assert_allclose(jitted(params, images), expected, rtol=1e-5, atol=1e-6)
  if jax.device_count() == 1:
    pytest.skip('the rest needs several devices')
  mesh = jax.sharding.Mesh(jax.devices(), 'data')
  images = jax.device_put(images, jax.NamedSharding(mesh, jax.P('data')))
  params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
  logits = inference.logits(model, params, images)
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
  assert not chosen
