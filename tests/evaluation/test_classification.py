"""Evaluation is exact for every number of examples, and counts them."""

import jax
import numpy as np
import pytest

from tests.helpers import random_params
from vit_jax.config import MeshConfig
from vit_jax.data.loading import loader
from vit_jax.data.loading.reader import Reader
from vit_jax.data.sources import Source
from vit_jax.distributed import sharding
from vit_jax.evaluation import classification
from vit_jax.evaluation.eval_step import make_eval_step
from vit_jax.models.losses import softmax_cross_entropy, targets
from vit_jax.models.vit import VisionTransformer

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
LABELS = {
  'single-label': RNG.integers(0, 3, 40, dtype=np.int32),
  'multi-label': RNG.integers(0, 2, (40, 3), dtype=np.uint8),
}
MODEL = VisionTransformer(4, 16, 1, 24, 2, num_classes=3, pool='gap')


@pytest.fixture(scope='module')
def params():
  return random_params(MODEL, (4, 4), scale=0.5)


@pytest.fixture(scope='module')
def logits(params) -> np.ndarray:
  images = IMAGES.astype(np.float32) / 127.5 - 1
  return np.asarray(jax.jit(MODEL.apply)({'params': params}, images))


@pytest.fixture(scope='module')
def eval_step():
  return jax.jit(make_eval_step(MODEL, 'softmax'))


@pytest.mark.parametrize('kind', LABELS)
@pytest.mark.parametrize('size', [1, 8, 13, 40])
def test_evaluation_equals_numpy(size, kind, eval_step, params, logits):
  mesh = sharding.make_mesh(MeshConfig())
  labels, multi_label = LABELS[kind][:size], kind == 'multi-label'
  source = Source(
    'x', size, lambda i: (IMAGES[i], labels[i]), ('a', 'b', 'c'), multi_label=multi_label
  )
  reader = Reader(source, lambda picture, rng: picture.pixels(None), IMAGES[0].shape)
  with loader.DataLoader({'test': loader.Stream(reader, mesh.size)}, mesh) as data_loader:
    metrics = classification.evaluate(eval_step, params, data_loader.batches('test'))
  losses = softmax_cross_entropy(logits[:size], targets(labels, 3))
  top = logits[:size].argmax(axis=-1)
  correct = labels[np.arange(size), top] == 1 if multi_label else top == labels
  assert set(metrics) == {'accuracy', 'loss', 'examples'}
  assert (metrics['examples'], metrics['accuracy']) == (size, correct.mean())
  np.testing.assert_allclose(metrics['loss'], losses.mean(), rtol=1e-5)


def test_sums_are_divided_once():
  values = [(3, 3, 0.5), (5, 1, 4.5)]  # the mean of the batches' accuracies would be 0.6
  names = ('examples', 'correct', 'loss')
  sums = [dict(zip(names, map(np.asarray, row), strict=True)) for row in values]
  metrics = classification.evaluate(lambda params, batch: batch, None, iter(sums))
  assert metrics == {'accuracy': 0.5, 'loss': 5 / 8, 'examples': 8}
