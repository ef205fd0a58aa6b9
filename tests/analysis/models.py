"""Tiny models that the tests of the analysis share."""

import functools

import jax
import numpy as np

import vit_jax
from tests.analysis.numpy_vit import float64
from tests.helpers import GOLDEN, jit, random_params
from vit_jax.models.vit import VisionTransformer

GOLDEN_MODELS = ('vit_token_prelogits', 'vit_gap', 'big_vision_map_scan', 'hybrid_stem')


@functools.cache
def golden(name: str) -> vit_jax.Classifier:
  return vit_jax.load(GOLDEN / f'{name}.npz')


def golden_images(name: str) -> np.ndarray:
  return np.load(GOLDEN / f'{name}_expected.npz')['images'][:2]


def golden_logits(name: str) -> np.ndarray:
  return np.load(GOLDEN / f'{name}_expected.npz')['logits'][:2]


def tiny(image_size=(8, 12), num_classes=3, **fields) -> vit_jax.Classifier:
  """Two blocks of width 16 on patches of 4 x 4 pixels."""
  model = VisionTransformer(4, 16, 2, 24, 2, num_classes, **fields)
  return vit_jax.Classifier(model, random_params(model, image_size), image_size)


def noise(vit: vit_jax.Classifier, count: int = 2) -> np.ndarray:
  size = (count, *vit.image_size, 3)
  return np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)


def embedded(vit: vit_jax.Classifier, images: np.ndarray) -> tuple[dict, np.ndarray]:
  """The parameters and the embedded patches (B, h w, D), in float64."""

  @jit
  def embed(params, images):
    _, state = vit.model.apply(
      {'params': params},
      images,
      capture_intermediates=lambda module, _: module.name == 'embedding',
      mutable=['intermediates'],
    )
    return state['intermediates']['embedding']['__call__'][0]

  patches = np.asarray(embed(vit.params, images))
  params = float64(jax.device_get(vit.params))
  return params, np.float64(patches).reshape(len(images), -1, patches.shape[-1])
