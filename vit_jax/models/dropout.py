"""Dropout whose draws are a pure function of each example's key: the same on every mesh.

The hash has 6 operations where the Threefry-2x32 of `jax.random` has more than a hundred, which
make a train step of B/16 on a TPU half as long again (benchmarks/LOG.md). The keys themselves,
one for each example and layer, are Threefry's.

Shapes: B examples, S sequences of an example; most often S = 1.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array

_LEVELS = 2**24  # of a draw; all are float32 numbers


def example_keys(key: Array, examples: Array | None, count: int) -> Array:
  """A key for each example of a batch, (count,), from their numbers (count,) or 0, 1, 2, …."""
  numbers = jnp.arange(count) if examples is None else examples
  return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def split_keys(keys: Array | None, count: int) -> Array | list[None]:
  """Keys of the examples, (B,) -> `count` of each, (count, B); without keys a list of None."""
  return [None] * count if keys is None else jax.vmap(jax.random.split, (0, None), 1)(keys, count)


def dropout(
  x: Array, rate: float | Array, keys: Array | None, broadcast_dims: Sequence[int] = ()
) -> Array:
  """Zeroes a share `rate` of `x` and scales up the rest; without keys returns `x`.

  Args:
    x: (B S, …), of at least two axes.
    rate: in [0, 1); rounded to a multiple of 2^-24.
    keys: (B,), of the examples.
    broadcast_dims: axes, not the first, along which there is one draw; if 1 is among them, all
      sequences of an example share it.
  """
  if keys is None or (isinstance(rate, float) and rate == 0):
    return x
  examples = x.reshape(keys.shape[0], -1, *x.shape[2:])  # (B, S times axis 1, …)
  shape = [1 if i in broadcast_dims else size for i, size in enumerate(examples.shape)]
  threshold = jnp.round(jnp.float32(rate) * _LEVELS)
  is_kept = _draw_bits(keys, shape) >= threshold.astype(jnp.uint32) * jnp.uint32(2**32 // _LEVELS)
  keep = 1 - threshold / _LEVELS
  return jnp.where(is_kept, examples / keep, 0).astype(x.dtype).reshape(x.shape)


def _draw_bits(keys: Array, shape: Sequence[int]) -> Array:
  """Uniform 32-bit integers, of which the upper 24 bits are good: (B, …) uint32, from keys (B,).

  A draw hashes the key with the element's number in row-major order, so that tokens added at the
  end of axis 1 change no other draw. The factors are those of lowbias32
  (nullprogram.com/blog/2018/07/31), of which this is the middle. Draws of neighbors correlate by
  less than 0.003, as much as those of one example do by chance.
  """
  number = jnp.zeros(shape, jnp.uint32)
  for axis in range(1, len(shape)):
    number = number * shape[axis] + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
  words = jax.random.key_data(keys).reshape(shape[0], -1, *[1] * (len(shape) - 1))
  x = (number ^ words[:, 0]) * jnp.uint32(0x7FEB352D)
  return ((x ^ (x >> 15)) + words[:, 1]) * jnp.uint32(0x846CA68B)
