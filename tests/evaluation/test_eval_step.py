"""The eval step sums over the examples that the mask selects."""

import jax
import numpy as np
import pytest

from tests.helpers import BATCH, IMAGES, jit, make_model, random_params
from vit_jax.evaluation.eval_step import make_eval_step


@pytest.fixture(scope='module')
def params():
  return random_params(make_model(), (8, 8))


@pytest.fixture(scope='module')
def logits(params) -> np.ndarray:
  images = IMAGES.astype(np.float32) / 127.5 - 1
  return np.asarray(jit(make_model().apply)({'params': params}, images), float)


@pytest.mark.parametrize('multi_hot', [False, True])
def test_eval_step_sums_over_the_mask(multi_hot, params, logits):
  mask = np.array([1, 1, 0, 1, 0, 1, 1, 0], bool)
  labels = np.eye(3, dtype=np.uint8)[BATCH['label']] if multi_hot else BATCH['label']
  eval_step = jit(make_eval_step(make_model(dropout_rate=0.5), 'softmax'))
  sums = eval_step(params, {'image': IMAGES, 'label': labels, 'mask': mask})
  probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  losses = -np.log(probabilities[np.arange(8), BATCH['label']])
  correct = logits.argmax(axis=-1) == BATCH['label']
  assert (sums['examples'], sums['correct']) == (5, (correct & mask).sum())
  np.testing.assert_allclose(sums['loss'], losses[mask].sum(), rtol=1e-5)
  assert ('label' in sums) != multi_hot
  if not multi_hot:
    np.testing.assert_array_equal(sums['label'], np.where(mask, BATCH['label'], -1))
    np.testing.assert_array_equal(sums['top_class'], np.where(mask, logits.argmax(-1), -1))


def test_masked_examples_change_nothing(params):
  eval_step = jit(make_eval_step(make_model(), 'softmax'))
  batch = BATCH | {'mask': np.arange(8) < 5}
  changed = jax.tree.map(np.copy, batch)
  changed['image'][5:], changed['label'][5:] = 0, 1
  jax.tree.map(np.testing.assert_array_equal, eval_step(params, batch), eval_step(params, changed))
