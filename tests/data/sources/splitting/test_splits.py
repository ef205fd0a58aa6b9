"""Splits, their slices and sums: they mean what they mean to TFDS; invalid ones are errors."""

import dataclasses

import numpy as np
import pytest

from tests.helpers import read_labels
from vit_jax.data.sources import Source, open_source, split_names
from vit_jax.data.sources.splitting.splits import bounds, concatenate, parse, select
from vit_jax.errors import UserError

SIZES = {'train': 1437, 'validation': 60, 'test': 7}


def numbers(
  size: int, name: str = 'numbers (train)', start: int = 0, shuffled: bool = True
) -> Source:
  """The label of example i is start + i."""

  def read(i):
    return np.zeros((1, 1, 3), np.uint8), np.int32(start + i)

  return Source(name, size, read, ('a', 'b'), shuffled=shuffled)


def open_split(name: str) -> Source:
  """1437 train, 60 validation, 7 test examples; labels count through all of them."""
  start = {'train': 0, 'validation': 10_000, 'test': 20_000}[name]
  return numbers(SIZES[name], f'numbers ({name})', start)


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

  class Info(SplitInfo):  # only its size is used
    def __init__(self, size):
      object.__setattr__(self, 'size', size)

    num_examples = property(lambda self: self.size)

  infos = {name: Info(size) for name, size in SIZES.items()}
  expected = []
  for term in ReadInstruction.from_spec(split).to_absolute(infos):
    expected += read_labels(open_split(term.splitname))[term.from_ : term.to]
  assert read_labels(select(open_split, split)) == expected


def test_slices_of_sorted_data_have_all_classes():
  def labels(split):
    sorted_data = numbers(1000, shuffled=False)
    return read_labels(select(lambda name: sorted_data, split))

  assert labels('all') == list(range(1000))
  assert labels('all+all')[1000:] == list(range(1000))
  assert {label // 50 for label in labels('all[:75%]')} == set(range(20))
  assert len({label // 50 for label in labels('all[-10%:]')}) > 15
  parts = [labels('all[:300]'), labels('all[300:420]'), labels('all[-580:]')]
  assert sorted(sum(parts, [])) == list(range(1000))
  assert parts[0][:5] == [29, 101, 113, 833, 553]  # never changes
  assert labels('all[:420]') == parts[0] + parts[1]


def test_a_sum_reads_one_split_after_the_other():
  source = open_source('digits', 'train[:800]+test[:200]')
  assert (source.size, source.name) == (1000, 'digits (train[:800]+test[:200])')
  train, test = open_source('digits', 'train'), open_source('digits', 'test')
  for i, (whole, j) in {0: (train, 0), 799: (train, 799), 800: (test, 0), 999: (test, 199)}.items():
    np.testing.assert_array_equal(source.read(i)[0], whole.read(j)[0])
    assert source.describe(i) == whole.describe(j)


def test_examples_of_a_slice_are_described_by_their_index_in_the_split():
  source = select(open_split, 'train[5:9]+validation[-2:]')
  assert source.describe(0) == 'numbers (train), example 5'
  assert source.describe(5) == 'numbers (validation), example 59'


def test_a_whole_split_is_the_source_itself():
  whole = numbers(5)
  assert select(lambda name: whole, ' train ') is whole


def test_each_split_is_opened_once():
  opened = []

  def open_one(name):
    opened.append(name)
    return open_split(name)

  select(open_one, 'train[:5]+validation+train[9:]')
  assert opened == ['train', 'validation']


@pytest.mark.parametrize(
  ('split', 'message'),
  [
    ('', "split '' cannot be parsed; a split is a name"),
    ('train+', "split '' cannot be parsed"),
    ('train[', r"'train\[' cannot be parsed"),
    ('train[:]', 'cannot be parsed'),
    ('train[5]', 'cannot be parsed'),
    ('train[::2]', 'cannot be parsed'),
    ('train[:5shard]', 'cannot be parsed'),
    ('train test', 'cannot be parsed'),
    ('train[:1.5]', 'has a fractional number of examples'),
    ('train[10:20%]', 'mixes examples and percent'),
    ('train[:101%]', 'more than 100%'),
    ('test[:8]', r'test\[:8\] exceeds the 7 examples'),
    ('test[-8:]', 'exceeds'),
    ('test[3:3]', r"test\[3:3\] is empty: 'test' has 7 examples"),
    ('test[:1%]', r'test\[:1%\] is empty'),
    ('train+test[5:2]', 'empty'),
  ],
)
def test_an_invalid_split_is_an_error_of_one_sentence(split, message):
  with pytest.raises(UserError, match=message) as caught:
    select(open_split, split)
  assert '\n' not in str(caught.value)


def test_slices_are_formatted_as_they_are_parsed():
  for split in 'train', 'a-b.c', 'x[:98%]', 'x[12.5%:]', 'x[-200:300_000_000]':
    (term,) = parse(split)
    assert parse(str(term)) == (term,)


def test_splits_of_300_million_are_exact():
  (term,) = parse('train[:98%]')
  assert bounds(term, 303_000_000) == (0, 296_940_000)


def test_a_sum_needs_equal_classes():
  other = dataclasses.replace(numbers(3), class_names=('a', 'c'))
  with pytest.raises(UserError, match='missing: b; not expected: c'):
    concatenate([numbers(3), other], 'x')
  multi_label = dataclasses.replace(numbers(3, 'many'), multi_label=True)
  with pytest.raises(
    UserError, match='numbers .train. has one label per image and many has several'
  ):
    concatenate([numbers(3), multi_label], 'x')


def test_the_fingerprint_depends_on_the_terms():
  def opened(fingerprint, split):
    source = dataclasses.replace(numbers(9), fingerprint=fingerprint)
    return select(lambda name: source, split).fingerprint

  assert opened('', 'a[:3]+a') == ''
  assert opened('x', 'a[:3]+a') == opened('x', 'a[:3]+a')
  assert len({opened(fp, split) for fp in 'xy' for split in ('a[:3]', 'a[:4]', 'a')}) == 6


def test_split_names_lists_the_splits_of_a_source():
  assert split_names('digits') == ('train', 'test')
  assert split_names('synthetic:imagenet') == ('train', 'validation')
