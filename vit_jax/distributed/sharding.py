"""The device mesh, how parameters and optimizer state are sharded over it, and global batches."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.config import MeshConfig
from vit_jax.errors import UserError
from vit_jax.text import plural

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')  # a batch is sharded over both

# Tensor parallelism (arXiv 1909.08053, Section 3): a pattern for the end of an array's path in the
# state, and the axis that is sharded over `tensor`; D width, K heads, M mlp_dim. Adapters
# (models/lora.py) have some axes of their kernel. The path of an optimizer moment ends with that of
# its parameter. Whether an axis counts from the end matters for
# Adafactor's factored moments, which lack one axis of their kernel.
_MLP = '(MlpBlock_0|token_mixing|channel_mixing)'
TENSOR_RULES = (
  (r'/(query|key|value)/(kernel|lora_b)', -2),  # (D, K, D / K): the heads
  (r'/(query|key|value)/bias', -2),  # (K, D / K)
  (r'/out/(kernel|lora_a)', 0),  # (K, D / K, D)
  (r'/relative_embedding', -2),  # (2 N - 1, K, D / K)
  (rf'/{_MLP}/(Dense_0|gate)/(kernel|lora_b)', -1),  # (D, M): the hidden units
  (rf'/{_MLP}/(Dense_0|gate)/bias', -1),  # (M,)
  (rf'/{_MLP}/Dense_1/(kernel|lora_a)', 0),  # (M, D)
)
_OPTIMIZER_STATE = re.compile(r'/(opt_state|ema_params)/')  # paths in the state
# Elements of an array below which sharding it over `fsdp` is not worth the communication.
MIN_SIZE_TO_SHARD = 2**14
MAX_BATCH_SIZE = 2**20  # examples, over all devices


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh of `jax.Device`s (default: all of the run) with the axes data, fsdp and tensor.

  A TPU slice holds whole `fsdp` and `tensor` axes, because the network between slices is slow.

  Raises:
    UserError: when the axes do not multiply to the number of devices, or `num_slices` is not the
      number of their slices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [config.data, config.fsdp, config.tensor]
  text = f'mesh is data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]}'
  if sizes.count(-1) > 1:
    raise UserError(f'{text}; at most one axis can be -1 (the devices that remain).')
  known = math.prod(size for size in sizes if size != -1)
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  if math.prod(sizes) != len(devices):
    fsdp = math.gcd(config.fsdp, len(devices))
    divides = (config.data, config.tensor) == (-1, 1)
    hint = f'; use fsdp={fsdp}' if divides else '; set one axis to -1 (the devices that remain)'
    raise UserError(f'{text}, which does not multiply to {plural(len(devices), "device")}{hint}.')
  slices = _slices(devices, config.num_slices)
  if sizes[0] % len(slices):
    raise UserError(
      f'mesh.num_slices is {len(slices)}, which does not divide data={sizes[0]}; slices lie along '
      'the data axis.'
    )
  shape = (sizes[0] // len(slices), *sizes[1:])
  # An axis of 16 on 8 x 8 chips takes one of their sides and splits the other.
  slice_meshes = [
    mesh_utils.create_device_mesh(shape, slice_devices, allow_split_physical_axes=True)
    for slice_devices in slices
  ]
  return Mesh(np.concatenate(slice_meshes), AXES, axis_types=(AxisType.Auto,) * 3)


def _slices(devices: list[Any], num_slices: int) -> list[list[Any]]:
  """The devices of each TPU slice; other devices are divided equally, in their order."""
  # The slice_index of a GPU or CPU is that of its host.
  is_tpu = devices[0].platform == 'tpu'
  indices = {getattr(device, 'slice_index', 0) if is_tpu else 0 for device in devices}
  if len(indices) > 1:
    slices = [[d for d in devices if d.slice_index == index] for index in sorted(indices)]
  elif len(devices) % num_slices == 0:
    size = len(devices) // num_slices
    slices = [devices[i : i + size] for i in range(0, len(devices), size)]
  else:
    slices = []
  if len(slices) != num_slices:
    raise UserError(
      f'mesh.num_slices is {num_slices}, but the {plural(len(devices), "device")} form '
      f'{plural(len(indices), "slice")}; set it to {len(indices)}.'
    )
  return slices


def _num_batch_shards(mesh: Mesh) -> int:
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(mesh: Mesh, batch_size: int, name: str) -> None:
  """Raises `UserError` unless the mesh divides `batch_size`, called `name` in the message."""
  shards = _num_batch_shards(mesh)
  if batch_size < 1:
    raise UserError(f'{name} is {batch_size}; it must be positive.')
  if batch_size > MAX_BATCH_SIZE:
    raise UserError(f'{name} is {batch_size:,}; it must be at most {MAX_BATCH_SIZE:,}.')
  if batch_size % shards:
    smaller = batch_size // shards * shards
    sizes = f'{smaller} or {smaller + shards}' if smaller > 0 else shards
    raise UserError(
      f'{name} is {batch_size}, which the {shards} shards of the batch (mesh data x fsdp) do not '
      f'divide; use {sizes}.'
    )


def _partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  """Shards by `TENSOR_RULES`, then the largest other axis that `fsdp` divides.

  What only the update of the parameters needs is divided over `data`, too, where that is possible:
  the first stage of ZeRO (arXiv 1910.02054, Section 5.1).
  """
  axes: list[Any] = [None] * len(shape)
  for pattern, axis in TENSOR_RULES:
    if re.search(f'{pattern}$', path) and -len(shape) <= axis < len(shape):
      if shape[axis] % mesh.shape['tensor'] == 0:
        axes[axis] = 'tensor'
  if math.prod(shape) < MIN_SIZE_TO_SHARD:
    return P(*axes)
  free = [i for i, axis in enumerate(axes) if not axis]
  fsdp, data = mesh.shape['fsdp'], mesh.shape['data']
  axis = _largest_axis(shape, free, fsdp)
  if _OPTIMIZER_STATE.match(path):
    # As the parameter, so that a shard of it is further divided.
    both = _largest_axis(shape, free if fsdp == 1 else [axis], fsdp * data)
    if both is not None:
      axes[both] = ('fsdp', 'data')
      return P(*axes)
  if axis is not None:
    axes[axis] = 'fsdp'
  return P(*axes)


def _largest_axis(shape: tuple[int, ...], axes: Sequence[int | None], divisor: int) -> int | None:
  """The largest of these axes that is a multiple of `divisor`."""
  divided = [i for i in axes if i is not None and shape[i] % divisor == 0]
  return max(divided, key=lambda i: shape[i], default=None)


def state_shardings(abstract_state: Any, mesh: Mesh) -> Any:
  """A tree of `NamedSharding`s: of a `TrainState`, or of a tree of parameters."""

  def sharding(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
    path = '/' + jax.tree_util.keystr(keys, simple=True, separator='/')
    return NamedSharding(mesh, _partition_spec(path, leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(sharding, abstract_state)


@dataclasses.dataclass(frozen=True)
class GradientShardings:
  """How gradients are divided over a mesh.

  Attributes:
    num_parts: parts of a batch, each with its own gradients: the size of the axis `data`.
    parts: a tree of `NamedSharding`s of these, (num_parts, …).
    total: of their sum, as the optimizer's moments are: each device updates its share.
  """

  num_parts: int
  parts: Any
  total: Any


def gradient_shardings(abstract_params: Any, mesh: Mesh) -> GradientShardings:
  """Those of a tree of parameters."""
  params = state_shardings(abstract_params, mesh)
  parts = jax.tree.map(lambda x: NamedSharding(mesh, P('data', *x.spec)), params)
  moments = state_shardings({'ema_params': abstract_params}, mesh)['ema_params']
  return GradientShardings(mesh.shape['data'], parts, moments)


def with_shardings(abstract_state: Any, shardings: Any) -> Any:
  """A tree of `ShapeDtypeStruct`s that carry these shardings."""

  def with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree.map(with_sharding, abstract_state, shardings)


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, P(BATCH_AXES))


def batch_sizes(mesh: Mesh, batch_size: int, accumulation_steps: int = 1) -> dict[str, int]:
  """Examples in each step: 'global', 'host', 'device', and 'micro', what a device takes at once."""
  device = batch_size // _num_batch_shards(mesh)
  host = mesh.devices.flat[0].process_index
  shards = mesh.devices.reshape(_num_batch_shards(mesh), -1)  # the devices that hold each shard
  shards_of_host = sum(any(d.process_index == host for d in devices) for devices in shards)
  sizes = {'global': batch_size, 'host': device * shards_of_host, 'device': device}
  return sizes | {'micro': device // accumulation_steps}


def sharded_bytes(abstract: Any) -> dict[str, int]:
  """Bytes of a tree of arrays that are 'sharded', 'replicated', and on each 'device'."""
  sizes = {'sharded': 0, 'replicated': 0, 'device': 0}
  for leaf in jax.tree.leaves(abstract):
    size = leaf.size * leaf.dtype.itemsize
    shard = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    sizes['replicated' if shard == size else 'sharded'] += size
    sizes['device'] += shard
  return sizes


def _rows_by_device(sharding: NamedSharding, shape: tuple[int, ...]) -> dict[Any, range]:
  """The rows of a global batch that each device of this process holds."""
  indices = sharding.addressable_devices_indices_map(shape)
  return {device: range(*index[0].indices(shape[0])) for device, index in indices.items() if index}


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """The rows of the global batch that this process's devices hold: (rows,) int64, ascending."""
  rows = _rows_by_device(batch_sharding(mesh), (batch_size,)).values()
  return np.array(sorted({row for device_rows in rows for row in device_rows}))


def _aligned_copy(array: np.ndarray) -> np.ndarray:
  """A copy at an address that XLA can use without another copy."""
  memory = np.empty(array.nbytes + 64, np.uint8)
  start = -memory.ctypes.data % 64
  copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
  copy[...] = array
  return copy


def place_batch(
  local_batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int, rows: np.ndarray
) -> dict[str, jax.Array]:
  """Makes a global batch from the rows that each process has read.

  Args:
    local_batch: arrays (len(rows), …) of this process.
    rows: `local_rows(mesh, batch_size)`.

  Returns:
    Arrays (batch_size, …) with the sharding `batch_sharding(mesh)`.
  """
  sharding = batch_sharding(mesh)

  def place(local: np.ndarray) -> jax.Array:
    shape = (batch_size, *local.shape[1:])
    shards = []
    for device, device_rows in _rows_by_device(sharding, shape).items():
      start = int(np.searchsorted(rows, device_rows[0]))
      shard = local[start : start + len(device_rows)]
      if device.platform == 'cpu':  # others copy the shard; this would keep the caller's memory
        shard = _aligned_copy(shard)
      shards.append(jax.device_put(shard, device))
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)

  return {name: place(local) for name, local in local_batch.items()}
