"""TPU topologies by name, and their devices, which compile programs but need not exist.

v5e:16x16            chips along each dimension, as the compiler takes them
v5e-256, v4-128      slices as Google names them: v2, v3, v4 and v5p count TensorCores
cpu:8                eight CPU devices of this process
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental.topologies import get_topology_desc

from vit_jax.errors import UserError, first_line
from vit_jax.hardware import TPUS, TpuChip

_ALIASES = {'v5litepod': 'v5e'}
_SYNTAX = (
  f'use {", ".join(TPUS)} as v5e:16x16 or v4:4x4x4 (chips along each dimension) or v5e-256, or '
  'cpu:8'
)


@dataclasses.dataclass(frozen=True)
class Topology:
  """One TPU slice, or CPU devices.

  Attributes:
    name: as the user wrote it.
    kind: a key of TPUS, or 'cpu'.
    shape: chips along each dimension; (devices,) for cpu.
  """

  name: str
  kind: str
  shape: tuple[int, ...]

  @property
  def chip(self) -> TpuChip | None:
    return TPUS.get(self.kind)

  @property
  def num_chips(self) -> int:
    return math.prod(self.shape)

  @property
  def usable_bytes(self) -> int | None:
    """HBM that one device's program can use, in bytes; None if no limit is known."""
    return None if self.chip is None else int(self.chip.usable_gib * 2**30)


def parse_topology(name: str) -> Topology:
  """Parses a name in one of the forms at the top of this file.

  Raises:
    UserError: for a name in another form, an impossible shape, or more chips than a slice has.
  """
  if match := re.fullmatch(r'cpu:([1-9]\d{0,3})', name):
    return Topology(name, 'cpu', (int(match[1]),))
  match = re.fullmatch(r'(\w+)(?::(\d+(?:x\d+)+)|-(\d+))', name)
  kind = _ALIASES.get(match[1], match[1]) if match else ''
  if match is None or kind not in TPUS:
    raise UserError(f'{name!r} is not a topology; {_SYNTAX}.')
  chip = TPUS[kind]
  if match[2]:
    shape = tuple(map(int, match[2].split('x')))
  else:
    shape = _slice_shape(name, int(match[3]), chip)
  if len(shape) != chip.dimensions or not (_fills_hosts(shape) or shape == (1, 1)):
    example = 'x'.join('4' * chip.dimensions)
    raise UserError(
      f'{name!r} is not a topology: a {kind} slice has {chip.dimensions} dimensions, the first two '
      f'of them even; for example {kind}:{example}.'
    )
  if math.prod(shape) > chip.max_chips:
    raise UserError(
      f'{name!r} has {math.prod(shape)} chips, but the largest slice of {kind} has '
      f'{chip.max_chips}; set config.mesh.num_slices to use several slices.'
    )
  return Topology(name, kind, shape)


def _fills_hosts(shape: tuple[int, ...]) -> bool:
  """Whether hosts of 2 x 2 chips tile the slice."""
  return min(shape) > 0 and shape[0] % 2 == shape[1] % 2 == 0


def _slice_shape(name: str, count: int, chip: TpuChip) -> tuple[int, ...]:
  """The shape of a slice of `count` cores or chips: as cubic as possible, ascending."""
  chips, remainder = divmod(count, chip.tensor_cores)
  power = chips.bit_length() - 1
  too_small = chips < 4 and (chips, chip.tensor_cores) != (1, 1)
  if remainder or chips != 2**power or too_small:
    unit = 'TensorCores, two a chip' if chip.tensor_cores == 2 else 'chips'
    raise UserError(
      f'{name!r} is not a slice: the number counts {unit}, and slices named by it have a power of '
      'two of chips, four (one host) or more; name others by their shape, such as v5e:4x8.'
    )
  if chip.dimensions == 3 and chips == 4:
    return 2, 2, 1  # one host
  return tuple(2 ** ((power + i) // chip.dimensions) for i in range(chip.dimensions))


def prepare_backend(topologies: Sequence[Topology]) -> None:
  """Sets up this process to compile for `topologies`; call it before JAX starts its backend.

  No accelerator of this machine is used or waited for.

  Raises:
    UserError: for TPU topologies when libtpu is not installed.
  """
  any_tpu = any(topology.chip for topology in topologies)
  if any_tpu and importlib.util.find_spec('libtpu') is None:
    raise UserError(
      'Compiling for TPUs needs their compiler, libtpu, which is not installed; '
      "pip install 'vit_jax[tpu]' installs it."
    )
  os.environ |= {
    'TPU_SKIP_MDS_QUERY': '1',  # this machine has no TPU metadata server
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # other processes may compile at the same time
    # Without these libtpu complains on stderr about an unknown host, and writes log files.
    'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_LOG_DIR': 'disabled',
    'TPU_STDERR_LOG_LEVEL': '3',
    'TPU_MIN_LOG_LEVEL': '3',
  }
  jax.config.update('jax_platforms', 'cpu')
  if any_tpu:  # programs compiled for absent devices cannot be loaded from the cache
    jax.config.update('jax_enable_compilation_cache', False)
  num_cpus = max((t.num_chips for t in topologies if t.kind == 'cpu'), default=1)
  try:
    jax.config.update('jax_num_cpu_devices', num_cpus)
  except RuntimeError:  # the backend has started already; `get_devices` counts its devices
    pass


def get_devices(topology: Topology, num_slices: int = 1) -> Sequence[Any]:
  """Returns the `jax.Device`s of `num_slices` slices.

  Raises:
    UserError: for a topology that the compiler does not know, or more CPU devices than this
      process has.
  """
  if topology.chip is None:
    devices = jax.devices('cpu')[: topology.num_chips]
    if len(devices) < topology.num_chips:
      raise UserError(
        f'{topology.name} needs more than the {len(devices)} CPU devices of this process.'
      )
    return devices
  options: dict[str, Any] = {**topology.chip.compiler_options}
  if topology.num_chips == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  try:
    return get_topology_desc(
      platform='tpu',
      topology_name=f'{topology.kind}:{"x".join(map(str, topology.shape))}',
      num_slices=num_slices,
      **options,
    ).devices
  except jax.errors.JaxRuntimeError as error:
    raise UserError(
      f'The compiler does not support {topology.name}: {first_line(error)}.'
    ) from None
