"""Evaluation is exact for every number of examples, and counts them."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import average_precision_score, confusion_matrix, log_loss, recall_score

from tests.helpers import random_params
from vit_jax.config import MeshConfig
from vit_jax.data.loading import loader
from vit_jax.data.loading.reader import Reader
from vit_jax.data.sources import Source
from vit_jax.distributed import processes, sharding
from vit_jax.errors import StoppedError, UserError
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
    result = classification.evaluate(eval_step, params, data_loader.batches('test'))
  losses = softmax_cross_entropy(logits[:size], targets(labels, 3))
  top = logits[:size].argmax(axis=-1)
  correct = labels[np.arange(size), top] == 1 if multi_label else top == labels
  assert (result.examples, result.accuracy) == (size, correct.mean())
  np.testing.assert_allclose(result.loss, losses.mean(), rtol=1e-5)
  assert result.rows is not None
  np.testing.assert_array_equal(result.rows.index, np.arange(size))
  np.testing.assert_array_equal(result.rows.correct, correct)
  assert result.metrics['top_5_accuracy'] == (labels.any(axis=1).mean() if multi_label else 1)
  if multi_label:
    present = labels.any(axis=0)
    scores = log_softmax(logits[:size], axis=1)[:, present]
    precision = average_precision_score(labels[:, present], scores)
    assert result.metrics['mean_average_precision'] == pytest.approx(precision)
    assert not result.confusion_matrix and 'mean_per_class_accuracy' not in result.metrics
    return
  assert result.loss == pytest.approx(
    log_loss(labels, softmax(logits[:size], axis=1), labels=range(3))
  )
  matrix = confusion_matrix(labels, top, labels=range(3))
  assert [[result.confusion_matrix.get((i, j), 0) for j in range(3)] for i in range(3)] == (
    matrix.tolist()
  )
  mean = recall_score(labels, top, average='macro', labels=np.unique(labels))
  assert result.metrics['mean_per_class_accuracy'] == pytest.approx(mean)


def score_rows(batch: dict) -> dict:
  """What an eval step returns for a batch of nothing but {'mask', 'correct', 'loss'}."""
  size = len(batch['mask'])
  others = {'label': np.int32, 'top_class': np.int32, 'top_5_correct': np.bool_}
  zeros = {name: np.zeros(size, dtype) for name, dtype in others.items()}
  return batch | zeros | {'confidence': np.ones(size, np.float32)}


def test_sums_are_divided_once():
  values = [([1, 1, 0], 0.5), ([1, 0, 0, 0, 0], 1.5)]  # the mean of the accuracies would be 0.43
  batches = [
    {
      'mask': np.ones(len(correct), np.bool_),
      'correct': np.array(correct, np.bool_),
      'loss': np.full(len(correct), loss, np.float32),
    }
    for correct, loss in values
  ]
  result = classification.evaluate(lambda params, batch: score_rows(batch), None, iter(batches))
  assert result.accuracy == 3 / 8 and result.loss == 9 / 8 and result.examples == 8
  assert result.metrics['expected_calibration_error'] == 5 / 8


def test_masked_examples_are_left_out():
  mask = np.array([1, 0, 1, 0], bool)
  batch = {'mask': mask, 'correct': ~mask, 'loss': np.where(mask, 1, np.nan).astype(np.float32)}
  result = classification.evaluate(lambda params, batch: score_rows(batch), None, [batch, batch])
  assert (result.examples, result.correct, result.loss) == (4, 0, 1)
  assert result.rows is not None and result.rows.index.tolist() == [0, 2, 4, 6]
  with pytest.raises(UserError, match='None of the test examples'):
    empty = batch | {'mask': np.zeros(4, bool)}
    classification.evaluate(lambda params, batch: score_rows(batch), None, [empty])


def test_too_many_scores_are_not_kept(monkeypatch):
  mask = np.ones(4, bool)
  batch = score_rows({'mask': mask, 'correct': mask, 'loss': np.ones(4, np.float32)})
  del batch['label']
  batch |= {'labels': np.eye(4, dtype=np.uint8), 'scores': np.eye(4, dtype=np.float32)}

  def evaluate() -> dict:
    return classification.evaluate(lambda params, x: dict(x), None, [batch, batch]).metrics

  monkeypatch.setattr(classification, '_MAX_SCORES', 32)
  assert evaluate()['mean_average_precision'] == 1
  monkeypatch.setattr(classification, '_MAX_SCORES', 31)
  assert 'mean_average_precision' not in evaluate() and evaluate()['examples'] == 8


def test_mistakes_name_confusions_and_weak_classes():
  matrix = {(0, 0): 90, (0, 1): 8, (0, 2): 2, (1, 1): 5, (2, 0): 1}
  result = classification.Result(106, 95, 0.5, matrix)
  assert result.metrics['mean_per_class_accuracy'] == pytest.approx((0.9 + 1 + 0) / 3)
  assert result.mistakes(['cat', 'dog', 'owl']) == [
    'most confused: cat as dog (8 of 100), cat as owl (2 of 100), owl as cat (1 of 1)',
    'lowest accuracy: owl 0% (0 of 1), cat 90% (90 of 100)',
  ]
  assert classification.Result(1, 1, 0.5, {(0, 0): 1}).mistakes(['cat', 'dog']) == []


def test_an_evaluation_ends_when_the_run_must_stop(monkeypatch):
  ones = np.ones(1, np.bool_)
  batch = {'mask': ones, 'correct': ones, 'loss': np.ones(1, np.float32)}
  batches, answers = iter([batch] * 5), iter([False, True])
  monkeypatch.setattr(processes, 'should_stop', lambda: next(answers))
  with pytest.raises(StoppedError):
    classification.evaluate(lambda params, x: score_rows(x), None, batches)
  assert len(list(batches)) == 3
