"""A fixed permutation of the examples of a split: the same on every machine and in every version.

Slices of data that may be sorted by class, and prepared data sets, follow it. It takes no memory
and no random generator: a Feistel network of six rounds on the bits of an index, repeated while the
result is beyond the end (cycle walking; Black and Rogaway, 2002, "Ciphers with arbitrary finite
domains"), with the constants of splitmix64 (Steele, Lea and Flood, 2014).
"""

from typing import Any, TypeVar

import numpy as np

_MIN_BITS = 8  # fewer mix badly
_MIN_HALF = 2  # bits, where many small permutations have keys of their own
_MASK = 2**64 - 1
_ROUND_KEYS = tuple(i * 0x9E3779B97F4A7C15 % 2**63 for i in range(1, 7))  # 2^64 / golden ratio
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of splitmix64

_Integers = TypeVar('_Integers', int, np.ndarray)  # one, or an array of uint64


def _permute_bits(x: _Integers, half: Any, key: Any = 0) -> _Integers:
  """Permutes the numbers of 2 * `half` bits; `half` and `key` are integers, or one for each."""
  left, right = x >> half, x & ((1 << half) - 1)
  for round_key in _ROUND_KEYS:
    mixed = (right + round_key + key) * _FACTORS[0] & _MASK
    mixed = (mixed ^ (mixed >> 29)) * _FACTORS[1] & _MASK
    left, right = right, left ^ (mixed >> (64 - half))
  return (left << half) | right


def _half(size: int) -> int:
  return (max((size - 1).bit_length(), _MIN_BITS) + 1) // 2


def permute(i: int, size: int) -> int:
  """Returns the example at position `i` of the permutation of `size` examples."""
  half = _half(size)
  i = _permute_bits(int(i), half)
  while i >= size:
    i = _permute_bits(i, half)
  return i


def permutation(size: int) -> np.ndarray:
  """Returns `permute` of all positions: (size,) int64."""
  half, result = _half(size), np.arange(size, dtype=np.uint64)
  beyond = np.arange(size)
  while len(beyond):
    result[beyond] = _permute_bits(result[beyond], half)
    beyond = beyond[result[beyond] >= size]
  return result.astype(np.int64)


def permute_each(positions: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
  """Maps each position to its place in a permutation of its own size, which its key chooses.

  Args:
    positions: (N,) integers in [0, size).
    sizes: (N,) integers, at least 1.
    keys: (N,) uint64.

  Returns:
    (N,) int64.
  """
  half = np.maximum((np.frexp(sizes - 1)[1] + 1) // 2, _MIN_HALF).astype(np.uint64)
  result, sizes = positions.astype(np.uint64), sizes.astype(np.uint64)
  beyond = np.flatnonzero(sizes > 1)
  while len(beyond):
    result[beyond] = _permute_bits(result[beyond], half[beyond], keys[beyond])
    beyond = beyond[result[beyond] >= sizes[beyond]]
  return result.astype(np.int64)
