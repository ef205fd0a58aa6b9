"""The order of examples is that of Grain, and the same whatever versions are installed."""

import dataclasses
import itertools
import tracemalloc

import numpy as np
import pytest

from vit_jax.data.loading import order
from vit_jax.data.sources import Source, open_source
from vit_jax.errors import UserError

JFT = open_source('synthetic:jft', 'train')
SIZES = [1, 2, 10, 255, 256, 257, 65_535, 65_536, 65_538, 131_073, 262_144, 1_281_167, 2**31 + 5]
SIZES += [303_000_000, 2**33 - 1, 2**40 + 7]
MIXTURES = [
  ((60, 40), (3.0, 1.0)),
  ((1, 1000), (0.3, 0.7)),
  ((5, 70_000, 300), (1.0, 1.0, 1.0)),
  ((1_281_167, 14_197_122, 7), (2.0, 5.5, 0.01)),
]
POSITIONS = np.concatenate([np.arange(40), 10**6 + np.arange(40), 10**12 + np.arange(40)])


def sized(size: int) -> Source:
  return dataclasses.replace(JFT, size=size)


def mixture(sizes: tuple[int, ...], weights: tuple[float, ...]) -> Source:
  return dataclasses.replace(JFT, size=sum(sizes), component_sizes=sizes, weights=weights)


@pytest.mark.parametrize('size', SIZES)
def test_the_permutation_equals_grains(size):
  name = 'grain._src.python.experimental.index_shuffle.python.index_shuffle_module'
  module = pytest.importorskip(name)
  rng = np.random.default_rng(size)
  for seed in (0, 7, 2**32 - 1, *rng.integers(2**32, size=3).tolist()):
    indices = np.unique([0, size - 1, *rng.integers(size, size=50)])
    expected = [module.index_shuffle(i, size - 1, seed, 4) for i in indices.tolist()]
    np.testing.assert_array_equal(order.permute(indices, size, seed), expected)


@pytest.mark.parametrize(
  ('size', 'seed'), list(itertools.product((1, 3, 77, 1_281_167), (0, 2**31)))
)
def test_epochs_equal_grains(size, seed):
  grain = pytest.importorskip('grain.python')
  expected = grain.MapDataset.range(size).seed(seed).shuffle().repeat()
  actual = order.example_order(sized(size), seed)(POSITIONS)
  np.testing.assert_array_equal(actual, [expected[i] for i in POSITIONS.tolist()])


@pytest.mark.parametrize(('sizes', 'weights'), MIXTURES)
def test_sources_take_turns_as_in_grain(sizes, weights):
  grain = pytest.importorskip('grain.python')
  stops = np.cumsum(sizes).tolist()
  parts = [
    grain.MapDataset.range(stop - size, stop).seed(9 + 2**16 * i).shuffle().repeat()
    for i, (size, stop) in enumerate(zip(sizes, stops, strict=True))
  ]
  expected = grain.MapDataset.mix(parts, [weight / sum(weights) for weight in weights])
  actual = order.example_order(mixture(sizes, weights), 9).in_turn(POSITIONS)
  np.testing.assert_array_equal(actual, [expected[i] for i in POSITIONS.tolist()])


IMAGENET, PARTS = 1_281_167, mixture(*MIXTURES[3])
# {name: (source, seed, first position, indices)}, computed with Grain 0.2.18 (and the
# windows of mixtures with an independent implementation on top of it). If they change, no
# older run can be resumed or repeated.
GOLDEN = {
  'an epoch': (
    sized(IMAGENET),
    0,
    0,
    [854407, 163112, 559831, 1132672, 1090378, 981563, 268754, 958722],
  ),
  'its end and the next one': (
    sized(IMAGENET),
    0,
    IMAGENET - 4,
    [1254515, 987429, 998355, 1165089, 67889, 140629, 735067, 723850],
  ),
  'the eleventh epoch': (
    sized(IMAGENET),
    42,
    10 * IMAGENET,
    [500793, 464641, 691351, 956851, 760303, 886004, 1022684, 624327],
  ),
  'small epochs': (sized(5), 3, 0, [4, 1, 0, 2, 3, 2, 1, 3, 4, 0, 4, 0, 1, 2, 3, 2, 0, 3, 1, 4]),
  '303 million': (
    JFT,
    1,
    500_000 * 4096,
    [165896433, 229519653, 132244894, 228709681, 76881525, 225758021, 169493587, 90411869],
  ),
  'a mixture': (
    mixture(*MIXTURES[0]),
    0,
    0,
    [21, 37, 31, 14, 9, 46, 84, 28, 97, 6, 51, 41, 36, 15, 23, 82],
  ),
  'a later part of a mixture': (
    PARTS,
    1,
    10**9,
    [1614237, 2399406, 1893299, 3210440, 2711033, 1401082, 2973663, 2196204, 12117443, 11855156],
  ),
}


@pytest.mark.parametrize('name', GOLDEN)
def test_golden_indices(name):
  source, seed, first, expected = GOLDEN[name]
  positions = np.arange(first, first + len(expected))
  assert order.example_order(source, seed)(positions).tolist() == expected


@pytest.mark.parametrize('size', [2, 65_536, 65_537, 65_538])
def test_each_epoch_is_a_permutation(size):
  """Grain's is not for 65,537 = 4^8 + 1."""
  epochs = order.example_order(sized(size), 1)(np.arange(2 * size)).reshape(2, size)
  for epoch in epochs:
    assert (np.bincount(epoch, minlength=size) == 1).all()
  assert size == 2 or not np.array_equal(*epochs)


@pytest.mark.parametrize('first', [0, 4096, 500_000 * 4096])
def test_the_order_of_300_million_examples_takes_no_memory(first):
  tracemalloc.start()
  indices = order.example_order(JFT, 7)(np.arange(first, first + 4096))
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 1e6  # bytes
  assert len(set(indices.tolist())) == 4096
  assert 0 <= min(indices) < 1e6 and JFT.size - 1e6 < max(indices) < JFT.size


def test_the_next_epoch_of_300_million_examples_is_another_permutation():
  indices = order.example_order(JFT, 7)
  first, before, after = (
    set(indices(np.arange(start, start + 5000)).tolist())
    for start in (0, JFT.size - 5000, JFT.size)
  )
  assert len(before) == len(after) == len(first) == 5000
  assert not before & first  # of one permutation
  assert after != first  # another permutation


def test_a_mixture_is_drawn_in_proportion_and_each_source_is_shuffled_by_epochs():
  indices = order.example_order(mixture((60, 40), (3.0, 1.0)), 0)(np.arange(4096))
  assert {int((part < 60).sum()) for part in indices.reshape(4, 1024)} == {768}
  for source_indices, size in ((indices[indices < 60], 60), (indices[indices >= 60], 40)):
    num_epochs = len(source_indices) // size
    epochs = source_indices[: num_epochs * size].reshape(-1, size)
    assert len(epochs) > 1 and all(len(set(epoch)) == size for epoch in epochs.tolist())
    assert not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize('weights', [(1.0, 1.0), (3.0, 1.0), (9.0, 1.0)])
def test_neighbors_of_a_mixture_are_of_any_two_sources(weights):
  """Mixup combines neighbors."""
  is_rare = order.example_order(mixture((60, 40), weights), 0)(np.arange(8192)) >= 60
  share = weights[1] / sum(weights)
  assert abs((is_rare[1:] & is_rare[:-1]).mean() - share**2) < 0.02
  other = order.example_order(mixture((60, 40), weights), 1)(np.arange(100)) >= 60
  assert not np.array_equal(other, is_rare[:100])


def test_positions_in_any_order_and_number():
  indices = order.example_order(mixture((60, 40), (3.0, 1.0)), 0)
  positions = np.random.default_rng(0).integers(0, 1000, 300)
  expected = np.concatenate([indices(positions[i : i + 1]) for i in range(300)])
  np.testing.assert_array_equal(indices(positions), expected)
  assert indices(positions[:0]).shape == (0,)


def balanced(labels: list[int]) -> order.ClassBalanced:
  array = np.array(labels, np.int32)
  source = dataclasses.replace(JFT, size=len(array), labels=lambda: array, multi_label=False)
  return order.class_balanced_order(source, seed=3)


def test_all_classes_are_drawn_equally_often():
  labels = [2] * 500 + [0] + [7] * 30 + [-1] * 9
  indices = balanced(labels)(np.arange(1023 * 6))
  drawn = np.array(labels)[indices].reshape(6, 1023)
  for window in drawn:  # exactly
    assert [np.sum(window == label) for label in (0, 2, 7, -1)] == [341, 341, 341, 0]
  assert len(np.unique(np.diff(np.flatnonzero(drawn[0] == 0)))) > 5  # but not in turn
  counts = np.bincount(indices, minlength=540)
  assert set(counts[:500]) == {4, 5} and counts[500] == 2046 and set(counts[501:531]) == {68, 69}
  # The examples of a class are permuted anew each time.
  rare = indices[(indices >= 501) & (indices < 531)][:2040].reshape(-1, 30)
  assert len(np.unique(np.sort(rare, axis=1), axis=0)) == 1 and len(np.unique(rare, axis=0)) == 68


def test_the_balanced_order_depends_on_positions_alone():
  balance = balanced(np.random.default_rng(0).zipf(1.5, 2000).clip(0, 300).tolist())
  positions = np.arange(3000) + 10**9
  expected = balance(positions)
  shuffled = np.random.default_rng(1).permutation(3000)
  np.testing.assert_array_equal(balance(positions[shuffled]), expected[shuffled])
  golden = [6, 0, 5, 1, 2, 5, 4, 6, 6, 3]
  assert balanced([0] * 5 + [1] * 2)(np.arange(10)).tolist() == golden


def test_a_balanced_order_needs_labels():
  for source, reason in (
    (JFT, 'several labels per image'),
    (mixture((60, 40), (3.0, 1.0)), 'several labels'),
    (open_source('synthetic:imagenet', 'train'), 'does not tell its labels'),
    (open_source('3*digits + 1*digits', 'train'), 'is a mixture'),
  ):
    with pytest.raises(UserError, match=f'{reason}.*class_balanced=False'):
      order.class_balanced_order(source, 0)
