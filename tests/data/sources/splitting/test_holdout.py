"""Held-out examples: fixed by name, of every class, whole groups, folds."""

import numpy as np
import pytest

from vit_jax.data.sources.source import is_held_out
from vit_jax.data.sources.splitting.holdout import Fold, find_groups, held_out, parse_fold
from vit_jax.errors import UserError


def examples(num_classes: int, count: int) -> tuple[list[str], list[int]]:
  pairs = [(f'{label}/{i}.jpg', label) for label in range(num_classes) for i in range(count)]
  names, labels = zip(*pairs, strict=True)
  return list(names), list(labels)


def test_one_in_five_is_held_out_by_its_name():
  names, labels = examples(3, 100)
  assert held_out(names, labels).tolist() == [is_held_out(name) for name in names]


@pytest.mark.parametrize('count', [2, 3, 4, 5, 8])
def test_small_classes_are_on_both_sides(count):
  names, labels = examples(200, count)
  mask, labels = held_out(names, labels), np.array(labels)
  assert set(labels[mask]) == set(labels[~mask]) == set(range(200))
  by_name = dict(zip(names, mask.tolist(), strict=True))
  reordered = held_out(names[::-1], labels[::-1])
  assert dict(zip(names[::-1], reordered.tolist(), strict=True)) == by_name


def test_a_single_example_is_trained_on_or_tested_by_its_name():
  names = [f'{i}/x.jpg' for i in range(100)]
  assert held_out(names, range(100)).tolist() == [is_held_out(name) for name in names]


def test_added_examples_move_only_those_that_were_moved():
  names, labels = examples(50, 4)
  before = dict(zip(names, held_out(names, labels), strict=True))
  names, labels = examples(50, 40)
  after = dict(zip(names, held_out(names, labels), strict=True))
  moved = [name for name in before if before[name] != after[name]]
  assert all(before[name] != is_held_out(name) for name in moved)
  assert 0 < len(moved) < 35


def test_groups_are_never_on_both_sides():
  rng = np.random.default_rng(0)
  patients = [f'p{i}' for i in rng.integers(0, 12, 400)]
  names = [f'{patient}_{i}' for i, patient in enumerate(patients)]
  labels = rng.integers(0, 3, 400)
  mask = held_out(names, labels, find_groups('(p[0-9]+)_', names))
  sides = {
    patient: {bool(mask[i]) for i, p in enumerate(patients) if p == patient} for patient in patients
  }
  assert all(len(side) == 1 for side in sides.values())
  assert set(labels[mask]) == set(labels[~mask]) == {0, 1, 2}


def test_a_group_that_is_all_of_a_class_stays_whole():
  names = ['a/1', 'a/2', 'b/1', 'b/2']
  mask = held_out(names, [0, 0, 1, 1], ['g', 'g', 'h', 'h'])
  assert mask[0] == mask[1] and mask[2] == mask[3]


@pytest.mark.parametrize('count', [2, 5, 7])
@pytest.mark.parametrize('grouped', [False, True])
def test_folds_test_every_example_once(count, grouped):
  names, labels = examples(30, 9)
  groups = [name[:-5] for name in names] if grouped else None
  masks = [held_out(names, labels, groups, Fold(k + 1, count)) for k in range(count)]
  assert (np.sum(masks, 0) == 1).all()
  if not grouped:
    assert all(set(np.array(labels)[mask]) == set(range(30)) for mask in masks)


def test_a_class_of_two_examples_is_never_without_training():
  names, labels = examples(40, 2)
  for k in range(5):
    mask = held_out(names, labels, fold=Fold(k + 1, 5))
    assert set(np.array(labels)[~mask]) == set(range(40))


def test_the_first_of_five_folds_is_what_is_held_out_by_default():
  names, labels = examples(3, 100)
  np.testing.assert_array_equal(held_out(names, labels, fold=Fold(1, 5)), held_out(names, labels))


def test_several_labels():
  labels = [[0], [0, 1], [1, 2], [2], [], [3, 0]]
  mask = held_out(list('abcdef'), labels)
  for label in range(3):
    assert len({bool(mask[i]) for i, classes in enumerate(labels) if label in classes}) == 2


@pytest.mark.parametrize('text', ['', '0/5', '6/5', '1/1', '2/21', 'a/b', '1/5/9'])
def test_a_fold_that_is_none_is_one_sentence(text):
  with pytest.raises(UserError, match='is not a fold; write fold=1/5'):
    parse_fold(text)
  assert parse_fold('2/5') == Fold(2, 5)


def test_bad_groups_are_one_sentence():
  with pytest.raises(UserError, match='does not match b.jpg; every image needs a group'):
    find_groups(r'(\d+)', ['1.jpg', 'b.jpg'])
  with pytest.raises(UserError, match='group=\\( is not a regular expression'):
    find_groups('(', ['a'])
