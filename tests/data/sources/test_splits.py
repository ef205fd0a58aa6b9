"""Splits, their slices and sums: what they mean to TFDS, and what is no split."""

import dataclasses

import numpy as np
import pytest

from vit_jax.data.sources import Source, open_source, split_names
from vit_jax.data.sources.splits import bounds, concatenate, parse, select
from vit_jax.errors import UserError

SIZES = {'train': 1437, 'validation': 60, 'test': 7}


def numbers(size: int, name: str = 'numbers (train)', start: int = 0) -> Source:
  """The label of example i is start + i."""
  return Source(
    name, size, lambda i: (np.zeros((1, 1, 3), np.uint8), np.int32(start + i)), ('a', 'b')
  )


def open_whole(name: str) -> Source:
  """1437 train, 60 validation, 7 test examples; labels count through all of them."""
  start = {'train': 0, 'validation': 10_000, 'test': 20_000}[name]
  return numbers(SIZES[name], f'numbers ({name})', start)


def labels(source: Source) -> list[int]:
  return [int(source.read(i)[1]) for i in range(source.size)]


@pytest.mark.parametrize(
  'split',
  [
    'train',
    'train[:98%]',
    'train[98%:]',
    'train[800:1000]',
    'train[-200:]',
    'train[:-1%]',
    'train[12.5%:37.5%]',
    'test[:50%]',
    'test[33%:66%]',
    'test[-50%:]',
    'train[1_000:]',
    'train[:800]+validation[:50]',
    'train[:1%] + validation[50%:] +test',
    'test[:3]+test[2:]',
    'validation[5:-5]',
  ],
)
def test_splits_mean_what_they_mean_to_tfds(split):
  from tensorflow_datasets.core.splits import ReadInstruction, SplitInfo

  class Info(SplitInfo):  # the sizes are all it is asked for
    def __init__(self, size):
      object.__setattr__(self, 'size', size)

    num_examples = property(lambda self: self.size)

  infos = {name: Info(size) for name, size in SIZES.items()}
  expected = []
  for part in ReadInstruction.from_spec(split).to_absolute(infos):
    expected += labels(open_whole(part.splitname))[part.from_ : part.to]
  assert labels(select(open_whole, split)) == expected


def test_vtab_takes_a_sum_of_two_splits():
  source = open_source('digits', 'train[:800]+test[:200]')
  assert (source.size, source.name) == (1000, 'digits (train[:800]+test[:200])')
  train, test = open_source('digits', 'train'), open_source('digits', 'test')
  for i, (whole, j) in {0: (train, 0), 799: (train, 799), 800: (test, 0), 999: (test, 199)}.items():
    np.testing.assert_array_equal(source.read(i)[0], whole.read(j)[0])
    assert source.describe(i) == whole.describe(j)


def test_examples_of_a_slice_are_called_by_their_place_in_the_split():
  source = select(open_whole, 'train[5:9]+validation[-2:]')
  assert source.describe(0) == 'numbers (train), example 5'
  assert source.describe(5) == 'numbers (validation), example 59'


def test_a_whole_split_is_the_source_itself():
  whole = numbers(5)
  assert select(lambda name: whole, ' train ') is whole


def test_each_split_is_opened_once():
  opened = []

  def open_one(name):
    opened.append(name)
    return open_whole(name)

  select(open_one, 'train[:5]+validation+train[9:]')
  assert opened == ['train', 'validation']


@pytest.mark.parametrize(
  ('split', 'message'),
  [
    ('', "split '' cannot be read; a split is a name"),
    ('train+', "split '' cannot be read"),
    ('train[', r"'train\[' cannot be read"),
    ('train[:]', 'cannot be read'),
    ('train[5]', 'cannot be read'),
    ('train[::2]', 'cannot be read'),
    ('train[:5shard]', 'cannot be read'),
    ('train test', 'cannot be read'),
    ('train[:1.5]', 'parts of examples'),
    ('train[10:20%]', 'mixes'),
    ('train[:101%]', '100%'),
    ('test[:8]', r'test\[:8\] goes beyond the 7 examples'),
    ('test[-8:]', 'goes beyond'),
    ('test[3:3]', r"test\[3:3\] is empty: 'test' has 7 examples"),
    ('test[:1%]', r'test\[:1%\] is empty'),
    ('train+test[5:2]', 'empty'),
  ],
)
def test_what_is_no_split_ends_in_one_sentence(split, message):
  with pytest.raises(UserError, match=message) as caught:
    select(open_whole, split)
  assert '\n' not in str(caught.value)


def test_parts_are_written_as_they_are_read():
  for split in 'train', 'a-b.c', 'x[:98%]', 'x[12.5%:]', 'x[-200:300_000_000]':
    (part,) = parse(split)
    assert parse(str(part)) == (part,)


def test_splits_of_300_million_are_exact():
  (part,) = parse('train[:98%]')
  assert bounds(part, 303_000_000) == (0, 296_940_000)


def test_sums_take_the_same_classes_only():
  other = dataclasses.replace(numbers(3), class_names=('a', 'c'))
  with pytest.raises(UserError, match='missing: b; not expected: c'):
    concatenate([numbers(3), other], 'x')
  several = dataclasses.replace(numbers(3, 'many'), multi_label=True)
  with pytest.raises(UserError, match='numbers .train. has one label .* many has several'):
    concatenate([numbers(3), several], 'x')


def test_the_fingerprint_follows_the_parts():
  def opened(fingerprint, split):
    source = dataclasses.replace(numbers(9), fingerprint=fingerprint)
    return select(lambda name: source, split).fingerprint

  assert opened('', 'a[:3]+a') == ''
  assert opened('x', 'a[:3]+a') == opened('x', 'a[:3]+a')
  assert len({opened(fp, split) for fp in 'xy' for split in ('a[:3]', 'a[:4]', 'a')}) == 6


def test_names_of_splits():
  assert split_names('digits') == ('train', 'test')
  assert split_names('synthetic:imagenet') == ('train', 'validation')
