"""Each array is read once by all processes together, and gathered over their network.

Otherwise each process reads all that its devices hold, and of replicated parameters that is all.
"""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.distributed.sharding import MIN_SIZE_TO_SHARD, with_shardings


def divide(abstract_state: Any) -> Any:
  """The same arrays, divided among all devices where an axis of them allows it.

  Args:
    abstract_state: a tree of `ShapeDtypeStruct`s with `NamedSharding`s.
  """
  shardings = jax.tree.map(_divided_sharding, abstract_state)
  return with_shardings(abstract_state, shardings)


def _divided_sharding(array: jax.ShapeDtypeStruct) -> NamedSharding:
  """Adds the axes of the mesh along which an array is replicated to its largest possible axis."""
  sharding, shape = array.sharding, array.shape
  assert isinstance(sharding, NamedSharding)
  spec = [_names(axes) for axes in (*sharding.spec, *[None] * (len(shape) - len(sharding.spec)))]
  sizes = sharding.mesh.shape
  unused = tuple(name for name in sizes if name not in sum(spec, ()))
  parts = [math.prod(sizes[name] for name in (*names, *unused)) for names in spec]
  possible = [axis for axis in range(len(shape)) if shape[axis] % parts[axis] == 0]
  if not possible or math.prod(shape) < MIN_SIZE_TO_SHARD:
    return sharding
  spec[max(possible, key=lambda axis: shape[axis])] += unused
  return NamedSharding(sharding.mesh, P(*(names or None for names in spec)))


def _names(axes: Any) -> tuple[str, ...]:
  """The axes of a mesh in an entry of a `PartitionSpec`."""
  return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def gather(state: Any, abstract_state: Any) -> Any:
  """The arrays of a state with the shardings of `abstract_state`; `state` may share them."""
  arrays, tree = jax.tree.flatten(state)
  shardings = [array.sharding for array in jax.tree.leaves(abstract_state)]
  differing = [
    i
    for i, (array, sharding) in enumerate(zip(arrays, shardings, strict=True))
    if not array.sharding.is_equivalent_to(sharding, array.ndim)
  ]
  if differing:
    gather_all = jax.jit(lambda x: x, out_shardings=[shardings[i] for i in differing])
    gathered = gather_all([arrays[i] for i in differing])
    for i, array in zip(differing, gathered, strict=True):
      arrays[i] = array
  return jax.tree.unflatten(tree, arrays)
