"""Votes of nearest neighbors equal scikit-learn's, whatever the blocks; ties have an order."""

import dataclasses

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from tests.helpers import clustered_features
from vit_jax.errors import UserError
from vit_jax.evaluation.probes import knn
from vit_jax.evaluation.probes.frozen_features import Features

TRAIN, TEST = clustered_features('train', 90), clustered_features('test', 50)


@pytest.mark.parametrize('temperature', [0.07, 0.001])  # 0.001: exp(1 / T) overflows
def test_accuracies_equal_scikit_learns(temperature):
  metrics = knn.evaluate(TRAIN, TEST, neighbors=[20, 1, 7, 90], temperature=temperature)
  for k in (1, 7, 20, 90):
    weights = {'weights': lambda distances: np.exp(-(distances - distances.min()) / temperature)}
    classifier = KNeighborsClassifier(k, metric='cosine', algorithm='brute', **weights)
    classifier.fit(TRAIN.values.astype(np.float64), TRAIN.labels)
    expected = np.mean(classifier.predict(TEST.values.astype(np.float64)) == TEST.labels)
    assert metrics.pop(f'accuracy_{k}nn') == expected
    assert 0.3 < expected < 1
  assert not metrics


@pytest.mark.parametrize('blocks', [(50, 90), (25, 13)])
def test_blocks_change_nothing(blocks):
  def normalized(values):
    return values / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)

  cosines = normalized(TEST.values) @ normalized(TRAIN.values).T
  order = np.argsort(-cosines, axis=1)[:, :30]
  rows, similarities, indices = zip(*knn.nearest(TRAIN, TEST, 30, *blocks), strict=True)
  assert [each.stop - each.start for each in rows[:-1]] == [blocks[0]] * (len(rows) - 1)
  np.testing.assert_array_equal(np.concatenate(indices), order)
  expected = np.take_along_axis(cosines, order, axis=1)
  np.testing.assert_allclose(np.concatenate(similarities), expected, atol=1e-6)


@pytest.mark.parametrize('train_block', [8, 3])
def test_the_first_of_equal_neighbors_counts(train_block):
  values = np.array([[0, 1], [2, 0], [0, 0], [1, 0], [0, 3], [1, 0], [0, 1], [4, 0]], np.float32)
  train = Features(values, np.arange(8, dtype=np.int32), 8, 'train')
  test = Features(np.array([[0, 0], [2, 0]], np.float32), np.array([0, 1], np.int32), 8, 'test')
  [(_, similarities, indices)] = knn.nearest(train, test, 6, train_block=train_block)
  assert similarities.tolist() == [[0] * 6, [1, 1, 1, 1, 0, 0]]
  assert indices.tolist() == [[0, 1, 2, 3, 4, 5], [1, 3, 5, 7, 0, 2]]
  # Of two classes with one vote each the first wins: 0 and 1 of the first, 1 and 3 of the second.
  assert knn.evaluate(train, test, neighbors=[2]) == {'accuracy_2nn': 1}


def test_neither_the_order_of_the_examples_nor_the_scale_matters():
  order = np.random.default_rng(0).permutation(90)
  scales = 2.0 ** (order[:, None] % 3)
  shuffled = dataclasses.replace(
    TRAIN, values=(TRAIN.values[order] * scales).astype(np.float32), labels=TRAIN.labels[order]
  )
  assert knn.evaluate(shuffled, TEST, neighbors=[5]) == knn.evaluate(TRAIN, TEST, neighbors=[5])


def test_too_many_neighbors_are_refused():
  with pytest.raises(UserError, match='^train has 90 examples, fewer than the 91 neighbors'):
    knn.evaluate(TRAIN, TEST, neighbors=[3, 91])
