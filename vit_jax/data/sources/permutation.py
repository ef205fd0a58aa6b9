"""A fixed permutation of the examples of a split: the same on every machine and in every version.

Slices of data that may be sorted by class, and prepared data sets, follow it. It takes no memory
and no random generator: a Feistel network of six rounds on the bits of an index, repeated while the
result is beyond the end (cycle walking; Black and Rogaway, 2002, "Ciphers with arbitrary finite
domains"), with the constants of splitmix64 (Steele, Lea and Flood, 2014).
"""

from typing import TypeVar

import numpy as np

_MIN_BITS = 8  # fewer mix badly
_MASK = 2**64 - 1
_ROUND_KEYS = tuple(i * 0x9E3779B97F4A7C15 % 2**63 for i in range(1, 7))  # 2^64 / golden ratio
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of splitmix64

_Integers = TypeVar('_Integers', int, np.ndarray)  # one, or an array of uint64


def _permute_bits(x: _Integers, half: int) -> _Integers:
  """Permutes the numbers of 2 * `half` bits."""
  left, right = x >> half, x & ((1 << half) - 1)
  for key in _ROUND_KEYS:
    mixed = (right + key) * _FACTORS[0] & _MASK
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
