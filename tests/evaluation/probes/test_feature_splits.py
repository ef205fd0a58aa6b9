"""Splits that cannot be evaluated are refused; each class is held out in proportion."""

import dataclasses

import numpy as np
import pytest

from tests.helpers import clustered_features
from vit_jax.errors import UserError
from vit_jax.evaluation.probes import feature_splits, fewshot, knn, linear_probe
from vit_jax.evaluation.probes.frozen_features import Features

TRAIN, TEST = clustered_features('train', 60), clustered_features('test', 30)
EVALUATIONS = {'fewshot': fewshot.evaluate, 'knn': knn.evaluate, 'probe': linear_probe.evaluate}


def features_of(labels) -> Features:
  return Features(np.zeros((len(labels), 2), np.float32), np.array(labels, np.int32), 4, 'train')


@pytest.mark.parametrize('evaluate', EVALUATIONS.values(), ids=EVALUATIONS)
def test_the_same_examples_are_refused(evaluate):
  copy = dataclasses.replace(TRAIN, values=TRAIN.values.copy(), name='copy')
  with pytest.raises(UserError, match='^train and copy are the same 60 examples'):
    evaluate(TRAIN, copy)


@pytest.mark.parametrize('evaluate', EVALUATIONS.values(), ids=EVALUATIONS)
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(evaluate, value):
  values = TEST.values.copy()
  values[17, 3] = value
  with pytest.raises(UserError, match='^The features of example 17 of test are not finite'):
    evaluate(TRAIN, dataclasses.replace(TEST, values=values))


def test_empty_splits_and_other_classes_are_refused():
  empty = dataclasses.replace(TEST, values=TEST.values[:0], labels=TEST.labels[:0])
  with pytest.raises(UserError, match='^test has no examples'):
    feature_splits.check_splits(TRAIN, empty)
  with pytest.raises(UserError, match='^train has 3 classes, but test has 5'):
    feature_splits.check_splits(TRAIN, dataclasses.replace(TEST, num_classes=5))


def test_a_tenth_of_each_class_is_held_out():
  labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [100, 26, 2, 1]))
  held_out = feature_splits.held_out(features_of(labels))
  assert np.bincount(labels[held_out], minlength=4).tolist() == [10, 3, 1, 0]
  np.testing.assert_array_equal(held_out, feature_splits.held_out(features_of(labels)))
  assert (held_out != feature_splits.held_out(features_of(labels), seed=1)).any()
  with pytest.raises(UserError, match='^train has no class with two examples'):
    feature_splits.held_out(features_of([0, 1, 2]))


@pytest.mark.parametrize('num_classes', [3, 5])  # the last ones may have no examples
def test_indices_by_class(num_classes):
  labels = np.array([2, 0, 2, 1, 0], np.int32)
  indices = feature_splits.indices_by_class(labels, num_classes)
  assert [each.tolist() for each in indices] == [[1, 4], [3], [0, 2], [], []][:num_classes]
