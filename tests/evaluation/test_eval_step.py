"""The eval step scores each example, whatever the others of its batch are."""

import jax
import numpy as np
import pytest

from tests.helpers import BATCH, IMAGES, MULTI_HOT, jit, make_model, random_params
from vit_jax.evaluation.eval_step import make_eval_step, run_batches
from vit_jax.models.losses import LOSSES, targets

MASK = np.array([1, 1, 0, 1, 0, 1, 1, 0], bool)


@pytest.fixture(scope='module')
def params():
  return random_params(make_model(), (8, 8))


@pytest.fixture(scope='module')
def logits(params) -> np.ndarray:
  images = IMAGES.astype(np.float32) / 127.5 - 1
  return np.asarray(jit(make_model().apply)({'params': params}, images))


def softmax(logits) -> np.ndarray:
  return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('labels', [BATCH['label'], MULTI_HOT])
def test_scores_equal_numpy(labels, loss, params, logits):
  eval_step = jit(make_eval_step(make_model(dropout_rate=0.5), loss))
  scores = eval_step(params, {'image': IMAGES, 'label': labels, 'mask': MASK})
  probabilities = softmax(logits) if loss == 'softmax' else 1 / (1 + np.exp(-logits))
  top = logits.argmax(axis=-1)
  is_label = labels > 0 if labels.ndim == 2 else np.eye(3, dtype=bool)[labels]
  np.testing.assert_array_equal(scores['mask'], MASK)
  np.testing.assert_array_equal(scores['top_class'], top)
  np.testing.assert_array_equal(scores['correct'], is_label[np.arange(8), top])
  np.testing.assert_array_equal(scores['top_5_correct'], is_label.any(axis=1))
  np.testing.assert_allclose(scores['confidence'], probabilities.max(axis=-1), rtol=1e-5)
  np.testing.assert_allclose(scores['loss'], LOSSES[loss](logits, targets(labels, 3)), rtol=1e-5)
  if labels.ndim == 1:
    np.testing.assert_array_equal(scores['label'], labels)
    assert 'scores' not in scores
  else:
    np.testing.assert_array_equal(scores['labels'], labels)
    np.testing.assert_allclose(scores['scores'], np.log(probabilities), rtol=1e-4, atol=1e-5)


def test_a_subset_of_the_classes_is_scored_as_if_there_were_no_others(params, logits):
  labels = np.array([0, 1] * 4, np.int32)
  eval_step = jit(make_eval_step(make_model(), 'softmax', class_subset=(2, 0)))
  scores = eval_step(params, {'image': IMAGES, 'label': labels, 'mask': MASK})
  probabilities = softmax(logits[:, [2, 0]])
  np.testing.assert_array_equal(scores['top_class'], probabilities.argmax(axis=-1))
  np.testing.assert_array_equal(scores['correct'], probabilities.argmax(axis=-1) == labels)
  np.testing.assert_allclose(scores['confidence'], probabilities.max(axis=-1), rtol=1e-5)
  losses = -np.log(probabilities[np.arange(8), labels])
  np.testing.assert_allclose(scores['loss'], losses, rtol=1e-5)


def test_other_examples_change_nothing(params):
  eval_step = jit(make_eval_step(make_model(), 'softmax'))
  batch = BATCH | {'mask': np.arange(8) < 5}
  changed = jax.tree.map(np.copy, batch)
  changed['image'][5:], changed['label'][5:] = 0, 1
  one, two = (jax.device_get(eval_step(params, x)) for x in (batch, changed))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:5], b[:5]), one, two)


def test_a_batch_is_fetched_once_the_next_one_is_running():
  events = []

  def step(params, batch):
    events.append(f'run {batch}')
    return {'x': batch}

  for result in run_batches(step, None, range(3)):
    events.append(f'fetched {result["x"]}')
  assert events == ['run 0', 'run 1', 'fetched 0', 'run 2', 'fetched 1', 'fetched 2']
  assert not list(run_batches(step, None, ()))
