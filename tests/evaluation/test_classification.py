"""Evaluation is exact at every size, and says how many examples it scored."""

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax.data.loading import loader
from vit_jax.data.loading.reader import Reader
from vit_jax.data.sources import Source
from vit_jax.distributed import sharding as mesh_lib
from vit_jax.evaluation import classification
from vit_jax.models import build
from vit_jax.models.losses import softmax_cross_entropy, targets
from vit_jax.models.vit import VisionTransformer
from vit_jax.training.step import make_eval_step

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
LABELS = {
  'one': RNG.integers(0, 3, 40, dtype=np.int32),
  'many': RNG.integers(0, 2, (40, 3), dtype=np.uint8),
}
MODEL = VisionTransformer(4, 16, 1, 24, 2, num_classes=3, pool='gap')


@pytest.fixture(scope='module')
def params():
  return jax.tree.map(
    lambda leaf: RNG.normal(0, 0.5, leaf.shape).astype(np.float32),
    build.abstract_params(MODEL, (4, 4)),
  )


@pytest.fixture(scope='module')
def logits(params) -> np.ndarray:
  images = IMAGES.astype(np.float32) / 127.5 - 1
  return np.asarray(jax.jit(MODEL.apply)({'params': params}, images))


@pytest.fixture(scope='module')
def eval_step():
  return jax.jit(make_eval_step(MODEL, 'softmax'))


@pytest.mark.parametrize('kind', ['one', 'many'])
@pytest.mark.parametrize('size', [1, 8, 13, 40])
def test_evaluation_equals_numpy(size, kind, eval_step, params, logits):
  mesh = mesh_lib.make_mesh(config_lib.default_config().mesh)
  wanted = LABELS[kind][:size]
  source = Source(
    'x', size, lambda i: (IMAGES[i], wanted[i]), ('a', 'b', 'c'), multi_label=kind == 'many'
  )
  reader = Reader(source, lambda picture, rng: picture.pixels(None), IMAGES[0].shape)
  with loader.DataLoader({'test': loader.Stream(reader, mesh.size)}, mesh) as feed:
    found = classification.evaluate(eval_step, params, feed.batches('test'))
  losses = softmax_cross_entropy(logits[:size], targets(np.asarray(wanted), 3))
  top = logits[:size].argmax(axis=-1)
  right = top == wanted if kind == 'one' else wanted[np.arange(size), top] == 1
  assert set(found) == {'accuracy', 'loss', 'examples'}
  assert (found['examples'], found['accuracy']) == (size, right.mean())
  np.testing.assert_allclose(found['loss'], losses.mean(), rtol=1e-5)


def test_sums_are_divided_once():
  parts = [(3, 3, 0.5), (5, 1, 4.5)]  # the mean of the batches' accuracies would be 0.6
  names = ('examples', 'correct', 'loss')
  batches = [dict(zip(names, map(np.asarray, part), strict=True)) for part in parts]
  found = classification.evaluate(lambda params, batch: batch, None, iter(batches))
  assert found == {'accuracy': 0.5, 'loss': 5 / 8, 'examples': 8}
