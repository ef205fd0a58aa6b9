"""Dropout whose draws are a pure function of each example's key: the same on every mesh.

One hash (Threefry-2x32, as of `jax.random`) gives four draws of 16 bits, where `jax.random` makes
one of it: at rates of some percent the hashes are what dropout costs.

Shapes: B examples, S sequences of an example; most often S = 1.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p

Array = jax.Array

_LEVELS = 2**16  # of a draw
_DRAWS = 4  # of a hash, two words of 32 bits


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
    rate: in [0, 1); rounded to a multiple of 2^-16.
    keys: (B,), of the examples.
    broadcast_dims: axes, not the first, along which there is one draw; if 1 is among them, all
      sequences of an example share it.
  """
  if keys is None or (isinstance(rate, float) and rate == 0):
    return x
  examples = x.reshape(keys.shape[0], -1, *x.shape[2:])  # (B, S times axis 1, …)
  shape = [1 if i in broadcast_dims else size for i, size in enumerate(examples.shape)]
  threshold = jnp.round(jnp.float32(rate) * _LEVELS)
  is_kept = _draw_bits(keys, shape) >= threshold.astype(jnp.uint32)
  keep = 1 - threshold / _LEVELS
  return jnp.where(is_kept, examples / keep, 0).astype(x.dtype).reshape(x.shape)


def _draw_bits(keys: Array, shape: Sequence[int]) -> Array:
  """Uniform integers below 2^16: (B, …) uint32, from keys (B,).

  Draws of one hash lie apart along axis 1, which TPUs need not move between lanes.
  """
  count = -(-shape[1] // _DRAWS)
  hashes = (shape[0], count, *shape[2:])
  number = jnp.zeros(hashes, jnp.uint32)
  for axis in range(1, len(hashes)):
    number = number * hashes[axis] + jax.lax.broadcasted_iota(jnp.uint32, hashes, axis)
  words = jax.random.key_data(keys)  # (B, 2), or more of another generator
  first, second = (
    jnp.broadcast_to(words[:, i].reshape(-1, *[1] * (len(shape) - 1)), hashes) for i in range(2)
  )
  pair = threefry2x32_p.bind(first, second, jnp.zeros_like(number), number)
  draws = [(word >> bits) % _LEVELS for word in pair for bits in (0, 16)]
  return jnp.concatenate(draws, axis=1)[:, : shape[1]]
