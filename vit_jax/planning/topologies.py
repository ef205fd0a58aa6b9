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

from vit_jax.compilation_cache import disable_cache
from vit_jax.errors import UserError, first_line
from vit_jax.hardware import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class SliceRules:
  """What slices of a TPU generation look like."""

  usable_gib: float  # of HBM, that the compiler gives to one device's program
  tensor_cores: int  # of a chip; the names of slices count them if there are two
  dimensions: int  # of a topology, 2 or 3
  max_chips: int  # of the largest slice


# Cores, dimensions and sizes: as in `hardware.CHIPS`. Usable HBM: measured with libtpu 0.0.42.1, as
# "available HBM" in the refusal to compile a function that needs 360 GiB; on v2, v3 and tpu7x it
# is that of one of the two devices of a chip.
SLICES = {
  'v2': SliceRules(7.48, tensor_cores=2, dimensions=2, max_chips=256),
  'v3': SliceRules(15.48, tensor_cores=2, dimensions=2, max_chips=1024),
  'v4': SliceRules(30.75, tensor_cores=2, dimensions=3, max_chips=4096),
  'v5e': SliceRules(15.75, tensor_cores=1, dimensions=2, max_chips=256),
  'v5p': SliceRules(95.74, tensor_cores=2, dimensions=3, max_chips=6144),
  'v6e': SliceRules(31.25, tensor_cores=1, dimensions=2, max_chips=256),
  'tpu7x': SliceRules(94.75, tensor_cores=2, dimensions=3, max_chips=9216),
}
_ALIASES = {'v5litepod': 'v5e'}
_SYNTAX = (
  f'use {", ".join(SLICES)} as v5e:16x16 or v4:4x4x4 (chips along each dimension) or v5e-256, or '
  'cpu:8'
)


@dataclasses.dataclass(frozen=True)
class Topology:
  """One TPU slice, or CPU devices."""

  name: str  # as the user wrote it
  kind: str  # a key of SLICES, or 'cpu'
  shape: tuple[int, ...]  # chips along each dimension; (devices,) for cpu

  @property
  def chip(self) -> Chip | None:
    """None for CPU devices."""
    return CHIPS.get(self.kind)

  @property
  def num_chips(self) -> int:
    return math.prod(self.shape)

  @property
  def usable_bytes(self) -> int | None:
    """HBM that one device's program can use, in bytes; None if no limit is known."""
    return int(SLICES[self.kind].usable_gib * 2**30) if self.chip else None


def parse_topology(name: str) -> Topology:
  """Parses a name in one of the forms at the top of this file.

  Raises:
    UserError: for a name in another form, an impossible shape, or more chips than a slice has.
  """
  if match := re.fullmatch(r'cpu:([1-9]\d{0,3})', name):
    return Topology(name, 'cpu', (int(match[1]),))
  match = re.fullmatch(r'(\w+)(?::(\d+(?:x\d+)+)|-(\d+))', name)
  kind = _ALIASES.get(match[1], match[1]) if match else ''
  if match is None or kind not in SLICES:
    raise UserError(f'{name!r} is not a topology; {_SYNTAX}.')
  rules = SLICES[kind]
  sides = map(int, match[2].split('x')) if match[2] else _slice_shape(name, int(match[3]), rules)
  shape = tuple(sides)
  fills_hosts = min(shape) > 0 and shape[0] % 2 == shape[1] % 2 == 0  # of 2 x 2 chips
  if len(shape) != rules.dimensions or not (fills_hosts or shape == (1, 1)):
    example = 'x'.join('4' * rules.dimensions)
    raise UserError(
      f'{name!r} is not a topology: a {kind} slice has {rules.dimensions} dimensions, the first '
      f'two of them even; for example {kind}:{example}.'
    )
  if math.prod(shape) > rules.max_chips:
    raise UserError(
      f'{name!r} has {math.prod(shape)} chips, but the largest slice of {kind} has '
      f'{rules.max_chips}; set config.mesh.num_slices to use several slices.'
    )
  return Topology(name, kind, shape)


def _slice_shape(name: str, count: int, rules: SliceRules) -> tuple[int, ...]:
  """The shape of a slice of `count` cores or chips: as cubic as possible, ascending."""
  chips, remainder = divmod(count, rules.tensor_cores)
  power = chips.bit_length() - 1
  too_small = chips < 4 and (chips, rules.tensor_cores) != (1, 1)
  if remainder or chips != 2**power or too_small:
    unit = 'TensorCores, two a chip' if rules.tensor_cores == 2 else 'chips'
    raise UserError(
      f'{name!r} is not a slice: the number counts {unit}, and slices named by it have a power of '
      'two of chips, four (one host) or more; name others by their shape, such as v5e:4x8.'
    )
  if rules.dimensions == 3 and chips == 4:
    return 2, 2, 1  # one host
  return tuple(2 ** ((power + i) // rules.dimensions) for i in range(rules.dimensions))


def prepare_backend(topologies: Sequence[Topology]) -> None:
  """Sets up this process to compile for `topologies`; call it before JAX starts its backend.

  It does not use or wait for an accelerator of this machine.

  Raises:
    UserError: for TPU topologies without libtpu.
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
  # Compiling is timed; and programs for absent devices cannot be loaded from the cache.
  disable_cache()
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
  options: dict[str, Any] = {'chip_config_name': 'megacore'} if topology.kind == 'v4' else {}
  if topology.num_chips == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  name = f'{topology.kind}:{"x".join(map(str, topology.shape))}'
  try:
    return get_topology_desc(name, 'tpu', num_slices=num_slices, **options).devices
  except jax.errors.JaxRuntimeError as error:
    message = f'The compiler does not support {topology.name}: {first_line(error)}.'
    raise UserError(message) from None
