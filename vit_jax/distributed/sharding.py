"""The device mesh, the sharding rule and the placement of batches."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.config import MeshConfig
from vit_jax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')  # a batch is split over both
# Smaller parameters are not worth the communication of splitting them.
_MIN_SIZE_TO_SHARD = 2**14


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of `config.mesh`: {data, fsdp, tensor}, where one -1 means what is left.

  Several slices lie along `data`, because the network between them is the slow one: a slice
  holds whole `fsdp` and `tensor` axes.

  Args:
    config: data, fsdp, tensor and num_slices.
    devices: of the mesh; all there are by default.

  Raises:
    UserError: when the axes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [config.data, config.fsdp, config.tensor]
  text = f'config.mesh is data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]}'
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise UserError(f'{text}; the sizes are positive, and at most one is -1 (what is left).')
  known = math.prod(size for size in sizes if size != -1)
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  if math.prod(sizes) != len(devices):
    fsdp = math.gcd(config.fsdp, len(devices))
    hint = f'; --config.mesh.fsdp={fsdp} would' if (config.data, config.tensor) == (-1, 1) else ''
    raise UserError(
      f'{text}, which does not multiply to the {len(devices)} devices there are{hint}.'
    )
  slices = _slices(devices, config.num_slices)
  if sizes[0] % len(slices):
    raise UserError(
      f'config.mesh.num_slices is {len(slices)}, which does not divide data={sizes[0]}; '
      'slices lie along the data axis.'
    )
  shape = (sizes[0] // len(slices), *sizes[1:])
  # An axis of 16 on 8 x 8 chips takes one of their sides and a part of the other.
  parts = [
    mesh_utils.create_device_mesh(shape, part, allow_split_physical_axes=True) for part in slices
  ]
  return Mesh(np.concatenate(parts), AXES, axis_types=(AxisType.Auto,) * 3)


def _slices(devices: list[jax.Device], num_slices: int) -> list[list[jax.Device]]:
  """The devices of each TPU slice; of other devices, as many parts in device order."""
  # A slice_index of GPUs and CPUs tells hosts apart, not networks.
  is_tpu = devices[0].platform == 'tpu'
  indices = {getattr(device, 'slice_index', 0) if is_tpu else 0 for device in devices}
  if len(indices) > 1:
    slices = [[d for d in devices if d.slice_index == index] for index in sorted(indices)]
  elif num_slices > 0 and len(devices) % num_slices == 0:
    size = len(devices) // num_slices
    slices = [devices[i : i + size] for i in range(0, len(devices), size)]
  else:
    slices = []
  if not slices or len(slices) != num_slices:
    raise UserError(
      f'config.mesh.num_slices is {num_slices}, but the {len(devices)} devices are of '
      f'{len(indices)} slice{"s"[: len(indices) > 1]}; --config.mesh.num_slices={len(indices)}.'
    )
  return slices


def _batch_parts(mesh: Mesh) -> int:
  """Into how many parts a batch is split."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(mesh: Mesh, batch_size: int, what: str) -> None:
  """Raises `UserError` unless the devices divide the batch."""
  parts = _batch_parts(mesh)
  if batch_size < 1 or batch_size % parts:
    raise UserError(
      f'{what} is {batch_size}, which the {parts} parts of the mesh (data x fsdp) do not '
      f'divide; {max(batch_size // parts, 1) * parts} would do.'
    )


def _spec(path: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh) -> P:
  """How one array of the state is split: heads and MLP over `tensor`, the rest over `fsdp`."""
  keys = [getattr(key, 'key', getattr(key, 'name', '')) for key in path]
  axes: list[str | None] = [None] * len(shape)
  tensor_axis = None
  if {'query', 'key', 'value'} & set(keys):
    tensor_axis = len(shape) - 2  # (D, K, D/K) and (K, D/K): the heads
  elif ('out' in keys and 'kernel' in keys) or ('Dense_1' in keys and 'kernel' in keys):
    tensor_axis = 0  # (K, D/K, D) and (M, D)
  elif 'Dense_0' in keys:
    tensor_axis = len(shape) - 1  # (D, M) and (M,)
  if tensor_axis is not None and 0 <= tensor_axis < len(shape):
    if shape[tensor_axis] % mesh.shape['tensor'] == 0:
      axes[tensor_axis] = 'tensor'
  if math.prod(shape) >= _MIN_SIZE_TO_SHARD:
    for i in sorted(range(len(shape)), key=lambda i: -shape[i]):
      if axes[i] is None and shape[i] % mesh.shape['fsdp'] == 0:
        axes[i] = 'fsdp'
        break
  return P(*axes)


def state_shardings(abstract_state: Any, mesh: Mesh) -> Any:
  """A `NamedSharding` for each array; optimizer moments fall where their parameters do."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(mesh, _spec(path, leaf.shape, mesh)), abstract_state
  )


def with_shardings(abstract_state: Any, shardings: Any) -> Any:
  """An abstract tree that says where each of its arrays goes."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    abstract_state,
    shardings,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device holds whole."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, P(BATCH_AXES))


def batch_sizes(mesh: Mesh, batch_size: int, accumulation_steps: int = 1) -> dict[str, int]:
  """Examples of a step: {'global', 'host', 'device', 'micro'}; micro is a device's at a time."""
  device = batch_size // _batch_parts(mesh)
  host = mesh.devices.flat[0].process_index
  parts = mesh.devices.reshape(_batch_parts(mesh), -1)
  on_host = sum(any(d.process_index == host for d in part) for part in parts)
  return {
    'global': batch_size,
    'host': device * on_host,
    'device': device,
    'micro': device // accumulation_steps,
  }


def sharded_bytes(abstract: Any) -> dict[str, int]:
  """Bytes of a tree: {'sharded', 'replicated'}, and what one device holds of it: 'device'."""
  sizes = {'sharded': 0, 'replicated': 0, 'device': 0}
  for leaf in jax.tree.leaves(abstract):
    size = leaf.size * leaf.dtype.itemsize
    part = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    sizes['replicated' if part == size else 'sharded'] += size
    sizes['device'] += part
  return sizes


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """The rows of the global batch that this process's devices hold, ascending."""
  indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  rows = {row for (index,) in indices for row in range(*index.indices(batch_size))}
  return np.array(sorted(rows))


def _copy(array: np.ndarray) -> np.ndarray:
  """A copy at an address that XLA takes over as it is, rather than to copy it once more."""
  memory = np.empty(array.nbytes + 64, np.uint8)
  start = -memory.ctypes.data % 64
  copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
  copy[...] = array
  return copy


def place_batch(
  local_batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int, rows: np.ndarray
) -> dict[str, jax.Array]:
  """Makes global arrays of `batch_size` rows from the rows this process has read."""
  sharding = batch_sharding(mesh)

  def place(local: np.ndarray) -> jax.Array:
    shape = (batch_size, *local.shape[1:])
    parts = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
      wanted = range(*index[0].indices(batch_size))
      start = int(np.searchsorted(rows, wanted[0]))
      part = local[start : start + len(wanted)]
      # Other devices copy what they are given; a CPU would go on reading it from its place.
      parts.append(jax.device_put(_copy(part) if device.platform == 'cpu' else part, device))
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)

  return {name: place(local) for name, local in local_batch.items()}
