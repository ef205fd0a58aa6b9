"""What people call the splits."""

import pytest

from vit_jax.data.sources.splitting.split_aliases import choose_split, split_and_rest, split_of
from vit_jax.errors import UserError

NAMES = {
  'train': 'train Train TRAINING training seg_train train_set trainset TrainSet images_train '
  'train2017 train-images traindata trainval train_val Train_Images Imagestrain train1',
  'val': 'val valid Validation VALIDATION dev val_set valid-images eval my_validation_data',
  'test': 'test Test Testing seg_test test1 testset test_images tests',
}


@pytest.mark.parametrize(
  ('split', 'name'), [(split, name) for split, names in NAMES.items() for name in names.split()]
)
def test_names_of_splits(split, name):
  assert split_of(name) == split


@pytest.mark.parametrize(
  'name', 'oval cat values testament steam_train train_test contest devil trainers 1 _'.split()
)
def test_other_names(name):
  assert split_of(name) is None


def test_the_rest_of_a_name():
  assert split_and_rest('fruits-360_Training') == ('train', ('fruits',))


def test_the_split_that_serves_a_request():
  assert choose_split(['Train', 'validation'], 'train') == 'Train'
  assert choose_split(['train', 'validation'], 'val') == 'validation'
  assert choose_split(['train', 'validation'], 'test') == 'validation'
  assert choose_split(['train', 'validation', 'test'], 'test') == 'test'
  assert choose_split(['train', 'extra'], 'extra') == 'extra'
  assert choose_split(['train'], 'test') is None
  assert choose_split(['train'], 'other') is None
  with pytest.raises(UserError, match="'val' may mean dev or validation"):
    choose_split(['validation', 'dev'], 'val')
