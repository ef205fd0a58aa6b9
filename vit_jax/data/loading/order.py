"""The order of training examples: which one is at which position of an endless sequence.

Each epoch is a permutation that is computed index by index, so that its memory does not grow with
the data: encryption by a block cipher of few rounds (Simon, eprint.iacr.org/2013/404), repeated
until the result is an index (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
Rounds, keys and the interleaving of mixtures are those of Grain's `shuffle`, `repeat` and `mix`,
computed here for many positions at once and independently of the versions of libraries.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from vit_jax.data.sources import Source
from vit_jax.data.sources.splitting.permutation import permute_each
from vit_jax.errors import UserError

_ROUNDS = 4
_MIN_BLOCK_BITS = 16
_SMALLEST_PROPORTION = 100  # of a mixture: weights are integers relative to that of the smallest
_WINDOW = 1024  # positions within which the sources of a mixture, or classes, are shuffled
_KEY_FACTOR = 0x9E3779B97F4A7C15  # of splitmix64, spreads the keys of permutations


@functools.lru_cache
def round_keys(seed: int, count: int = _ROUNDS) -> tuple[int, ...]:
  """Derives 32-bit keys from a seed as std::seed_seq{seed} of C++ does (its `generate`)."""
  bits, shift, mask = [0x8B8B8B8B] * count, (count - 1) // 2, 2**32 - 1  # fewer than 7 keys
  previous, middle = count - 1, (count - shift) // 2

  def mix(x: int) -> int:
    return x ^ (x >> 27)

  for k in range(max(2, count)):
    i, j, last = k % count, (k + middle) % count, (k + previous) % count
    first = 1664525 * mix(bits[i] ^ bits[j] ^ bits[last]) & mask
    second = first + (1 if k == 0 else k % count + (seed if k == 1 else 0)) & mask
    bits[j] = bits[j] + first & mask
    bits[(j + shift) % count] = bits[(j + shift) % count] + second & mask
    bits[i] = second
  for k in range(max(2, count), 2 * max(2, count)):
    i, j, last = k % count, (k + middle) % count, (k + previous) % count
    first = 1566083941 * mix(bits[i] + bits[j] + bits[last] & mask) & mask
    second = first - k % count & mask
    bits[j] ^= first
    bits[(j + shift) % count] ^= second
    bits[i] = second
  return tuple(bits)


def _rotate(x: np.ndarray, by: int, width: int) -> np.ndarray:
  """Rotates words of `width` bits to the left; the bits above them are arbitrary."""
  return (x << np.uint64(by)) | (x >> np.uint64(width - by))


def _encrypt(values: np.ndarray, keys: Sequence[int], width: int) -> np.ndarray:
  """Encrypts (N,) uint64 of two words of `width` bits each."""
  mask = np.uint64(2**width - 1)
  left, right = values >> np.uint64(width), values & mask
  for key in keys:
    f = (_rotate(right, 1, width) & _rotate(right, 8, width)) ^ _rotate(right, 2, width)
    left, right = right, (left ^ f ^ np.uint64(key)) & mask
  return (left << np.uint64(width)) | right


def permute(indices: np.ndarray, size: int, seed: int) -> np.ndarray:
  """Maps indices in [0, size) to their places in a permutation of them.

  Equals `index_shuffle` of Grain, except where that is not a permutation: of 4^k + 1 examples
  (k >= 8, such as 65,537), where it never returns the last one.

  Args:
    indices: (N,) integers.
    size: of the permutation.
    seed: 32 bits.

  Returns:
    (N,) int64.
  """
  if size <= 2**_MIN_BLOCK_BITS:
    return _small_permutation(size, seed)[indices]
  values, keys, width = (
    indices.astype(np.uint64),
    round_keys(seed),
    -(-(size - 1).bit_length() // 2),
  )
  outside = np.arange(len(values))
  while len(outside):  # each round leaves at most three of four
    values[outside] = _encrypt(values[outside], keys, width)
    outside = outside[values[outside] >= size]
  return values.astype(np.int64)


@functools.lru_cache(16)
def _small_permutation(size: int, seed: int) -> np.ndarray:
  """The whole permutation, (size,) int64: of the encrypted blocks only few may be indices."""
  blocks = np.arange(2**_MIN_BLOCK_BITS, dtype=np.uint64)
  encrypted = _encrypt(blocks, round_keys(seed), _MIN_BLOCK_BITS // 2).astype(np.int64)
  following = np.where(blocks < size, blocks, encrypted).astype(np.int64)
  for _ in range(_MIN_BLOCK_BITS):  # doubles the number of encryptions
    following = following[following]
  return following[encrypted[:size]]


@dataclasses.dataclass(frozen=True)
class ShuffledEpochs:
  """The examples [first, first + size) again and again, each time in another order."""

  size: int
  seed: int  # 32 bits; that of an epoch is larger by its number
  first: int = 0

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    """Maps (N,) int64 positions to (N,) int64 indices of examples."""
    epochs, places = np.divmod(positions, self.size)
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
      selected = epochs == epoch
      seed = (self.seed + int(epoch)) % 2**32
      indices[selected] = permute(places[selected], self.size, seed)
    return self.first + indices


@dataclasses.dataclass(frozen=True)
class Interleaved:
  """Several orders that take turns, evenly in fixed proportion."""

  orders: tuple[ShuffledEpochs, ...]
  proportions: tuple[int, ...]

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    """Maps (N,) int64 positions to (N,) int64 indices of examples."""
    indices, remaining = np.empty_like(positions), sum(self.proportions)
    # How many of the elements before and up to each position come from the orders that are left.
    selected, before, after = np.arange(len(positions)), positions, positions + 1
    for order, proportion in zip(self.orders, self.proportions, strict=True):
      rest = remaining - proportion
      next_before, next_after = _share(before, rest, remaining), _share(after, rest, remaining)
      keys, is_next = before - next_before, before - next_before != after - next_after
      indices[selected[is_next]] = order(keys[is_next])
      selected, remaining = selected[~is_next], rest
      before, after = next_before[~is_next], next_after[~is_next]
    return indices


def _share(counts: np.ndarray, part: int, total: int) -> np.ndarray:
  """Returns counts * part // total without overflow of the product."""
  whole, rest = np.divmod(counts, total)
  return whole * part + rest * part // total


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Several orders, interleaved at random, but in exact proportion in each 1,024 positions.

  Orders that take turns would never have two examples side by side of one that is drawn less than
  half of the time, and Mixup combines neighbors.
  """

  in_turn: Interleaved
  seed: int

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    """Maps (N,) int64 positions to (N,) int64 indices of examples."""
    windows, places = np.divmod(positions, _WINDOW)
    indices = np.empty_like(places)
    for window in np.unique(windows):
      selected = windows == window
      indices[selected] = _window(self, int(window))[places[selected]]
    return indices


@functools.lru_cache(16)
def _window(order: Mixture, window: int) -> np.ndarray:
  """The (1024,) indices at the positions of a window: each source keeps the order of its own."""
  indices = order.in_turn(np.arange(window * _WINDOW, (window + 1) * _WINDOW))
  stops = [part.first + part.size for part in order.in_turn.orders]
  sources = np.searchsorted(stops, indices, side='right')
  shuffled = sources[_random_order(_WINDOW, order.seed, window)]
  result = np.empty_like(indices)
  result[np.argsort(shuffled, kind='stable')] = indices[np.argsort(sources, kind='stable')]
  return result


@dataclasses.dataclass(frozen=True)
class ClassBalanced:
  """All classes equally often, and each example of a class as often as the others of it.

  Each window has all classes in exact proportion, in random order: 1,024 positions, or as many as
  there are classes. The examples of a class come in permutations, one after the other.
  """

  examples: np.ndarray  # (N,) indices, those of a class side by side
  counts: np.ndarray  # (C,) examples of each class, none is 0
  seed: int

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    """Maps (N,) int64 positions to (N,) int64 indices of examples."""
    num_classes = len(self.counts)
    per_window = max(_WINDOW // num_classes, 1)
    windows, places = np.divmod(positions, per_window * num_classes)
    classes, draws = np.empty_like(places), windows * per_window
    for window in np.unique(windows):
      selected = windows == window
      order = _random_order(per_window * num_classes, self.seed, int(window)) % num_classes
      rank = np.empty_like(order)  # of a place, among those of its class
      rank[np.argsort(order, kind='stable')] = np.tile(np.arange(per_window), num_classes)
      classes[selected] = order[places[selected]]
      draws[selected] += rank[places[selected]]
    epochs, draws = np.divmod(draws, self.counts[classes])
    keys = self.seed + (classes * 2**32 + epochs).astype(np.uint64) * np.uint64(_KEY_FACTOR)
    ends = np.cumsum(self.counts)
    starts = ends[classes] - self.counts[classes]
    return self.examples[starts + permute_each(draws, self.counts[classes], keys)]


@functools.lru_cache(16)
def _random_order(size: int, seed: int, window: int) -> np.ndarray:
  """A permutation of `size` places, (size,) int64."""
  random = np.random.Philox(key=[seed, window]).random_raw(size)
  return np.argsort(random, kind='stable')


Order = ShuffledEpochs | Mixture | ClassBalanced


def class_balanced_order(source: Source, seed: int) -> ClassBalanced:
  """Maps positions in the endless sequence to indices of examples, all classes equally often.

  Raises:
    UserError: for a mixture, multi-label data, or data whose labels are not known in advance.
  """
  reason = None
  if source.multi_label:
    reason = 'has several labels per image'
  elif source.weights:
    reason = 'is a mixture, which its weights balance'
  elif source.labels is None:
    reason = 'does not tell its labels without its images'
  if source.labels is None or reason:
    raise UserError(
      f'{source.name} {reason}, so its classes cannot be drawn equally often; set '
      '--config.data.class_balanced=False.'
    )
  labels = source.labels()
  examples = np.argsort(labels, kind='stable')
  counts = np.bincount(labels + 1, minlength=1)  # -1 is no class
  return ClassBalanced(examples[counts[0] :], counts[1:][counts[1:] > 0], _shuffle_seed(seed))


def example_order(source: Source, seed: int) -> Order:
  """Maps positions in the endless sequence to indices of examples; each epoch is a permutation.

  A weighted mixture interleaves the permutations of its sources.
  """
  if not source.weights:
    return ShuffledEpochs(source.size, _shuffle_seed(seed))
  smallest, total = min(source.weights), sum(source.weights)
  scale = _SMALLEST_PROPORTION / (smallest / total)
  proportions = tuple(int(weight / total * scale) for weight in source.weights)
  stops, orders = np.cumsum(source.component_sizes), []
  for i, (size, stop) in enumerate(zip(source.component_sizes, stops, strict=True)):
    orders.append(ShuffledEpochs(size, _shuffle_seed(seed + 2**16 * i), int(stop) - size))
  return Mixture(Interleaved(tuple(orders), proportions), seed)


def _shuffle_seed(seed: int) -> int:
  """The seed that Grain derives for `range(…).seed(seed).shuffle()`."""
  return int(np.random.SeedSequence((seed, 1)).generate_state(1, np.uint32)[0])
