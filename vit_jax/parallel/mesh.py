"""The device mesh, the sharding rule, the placement of batches, and the distributed start."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')  # a batch is split over both
# Smaller parameters are not worth the communication of splitting them.
_MIN_SIZE_TO_SHARD = 2**14


def start_distributed(coordinator: str | None, num_processes: int | None, process_id: int | None):
  """Joins the other processes of the run; without arguments nothing happens."""
  if coordinator is None:
    if num_processes is not None or process_id is not None:
      raise UserError('--num_processes and --process_id go with --coordinator=HOST:PORT.')
    return
  if num_processes is None or process_id is None:
    raise UserError('--coordinator goes with --num_processes and --process_id.')
  if not re.fullmatch(r'.+:\d+', coordinator):
    raise UserError(f'--coordinator is {coordinator!r}; it takes HOST:PORT.')
  if not 0 <= process_id < num_processes:
    raise UserError(
        f'--process_id is {process_id} of --num_processes={num_processes}; it counts from 0.'
    )
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')  # CPU only; else unused
  jax.distributed.initialize(coordinator, num_processes, process_id)


def make_mesh(
    config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Mesh:
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
    raise UserError(f'{text}, which does not multiply to the {len(devices)} devices there are.')
  slices = _slices(devices, config.num_slices)
  if sizes[0] % len(slices):
    raise UserError(
        f'config.mesh.num_slices is {len(slices)}, which does not divide data={sizes[0]}; '
        'slices lie along the data axis.'
    )
  shape = (sizes[0] // len(slices), *sizes[1:])
  parts = [
      jax.make_mesh(shape, AXES, devices=part, axis_types=(AxisType.Auto,) * 3) for part in slices
  ]
  if len(parts) == 1:
    return parts[0]
  stacked = np.concatenate([part.devices for part in parts])
  return Mesh(stacked, AXES, axis_types=(AxisType.Auto,) * 3)


def _slices(devices: list[jax.Device], num_slices: int) -> list[list[jax.Device]]:
  """The devices of each slice; where the platform has none, as many parts in device order."""
  indices = {getattr(device, 'slice_index', 0) for device in devices}
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
        f'{len(indices)} slice{"s"[: len(indices) > 1]}.'
    )
  return slices


def check_batch_size(mesh: Mesh, batch_size: int, what: str) -> None:
  """Raises `UserError` unless the devices divide the batch."""
  parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
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


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """The rows of the global batch that this process's devices hold, ascending."""
  indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  rows = {row for (index,) in indices for row in range(*index.indices(batch_size))}
  return np.array(sorted(rows))


def place_batch(
    local_batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int, rows: np.ndarray
) -> dict[str, jax.Array]:
  """Makes global arrays of `batch_size` rows from the rows this process has read."""
  sharding = batch_sharding(mesh)

  def place(local: np.ndarray) -> jax.Array:
    def part(index: tuple[slice, ...]) -> np.ndarray:
      wanted = range(*index[0].indices(batch_size))
      start = int(np.searchsorted(rows, wanted[0]))
      return local[start : start + len(wanted)]

    return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, part)

  return {name: place(local) for name, local in local_batch.items()}
