"""TPU topologies by name: what they consist of, and their devices, which need not be there.

v5e:16x16            sides, in chips, as the compiler takes them
v5e-256, v4-128      slices as Google names them: v2, v3, v4 and v5p count TensorCores
cpu:8                eight CPU devices of this process
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from vit_jax.errors import UserError, first_line
from vit_jax.hardware import CHIPS, Chip

_ALIASES = {'v5litepod': 'v5e'}
_KNOWN = f'{", ".join(CHIPS)} as v5e:16x16 or v4:4x4x4 (chips a side) or v5e-256, and cpu:8'


@dataclasses.dataclass(frozen=True)
class Topology:
  """One slice, or CPU devices.

  Attributes:
    name: what the user called it.
    kind: a key of CHIPS, or 'cpu'.
    sides: in chips; of cpu: (devices,).
  """

  name: str
  kind: str
  sides: tuple[int, ...]

  @property
  def chip(self) -> Chip | None:
    return CHIPS.get(self.kind)

  @property
  def num_chips(self) -> int:
    return math.prod(self.sides)

  @property
  def usable_bytes(self) -> int | None:
    """HBM for one device's program; None where no limit is known."""
    return None if self.chip is None else int(self.chip.usable_gib * 2**30)


def parse_topology(text: str) -> Topology:
  """Reads a name as in the head of this file.

  Raises:
    UserError: for a name that is none, sizes that no slice has, or more than a pod.
  """
  if match := re.fullmatch(r'cpu:([1-9]\d{0,3})', text):
    return Topology(text, 'cpu', (int(match[1]),))
  match = re.fullmatch(r'(\w+)(?::(\d+(?:x\d+)+)|-(\d+))', text)
  kind = _ALIASES.get(match[1], match[1]) if match else ''
  if kind not in CHIPS:
    raise UserError(f'{text!r} is no topology; known are {_KNOWN}.')
  chip = CHIPS[kind]
  if match[2]:
    sides = tuple(map(int, match[2].split('x')))
  else:
    sides = _slice_sides(text, int(match[3]), chip)
  example = 'x'.join('4' * chip.sides)
  if len(sides) != chip.sides or not (_fills_hosts(sides) or sides == (1, 1)):
    raise UserError(
      f'{text!r} is no topology: {kind} has {chip.sides} sides, the first two of them even, as '
      f'{kind}:{example}.'
    )
  if math.prod(sides) > chip.pod:
    raise UserError(
      f'{text!r} has {math.prod(sides)} chips, but the largest slice of {kind} has {chip.pod}; '
      'config.mesh.num_slices takes several.'
    )
  return Topology(text, kind, sides)


def _fills_hosts(sides: tuple[int, ...]) -> bool:
  """Whether hosts of 2 x 2 chips tile it."""
  return min(sides) > 0 and sides[0] % 2 == sides[1] % 2 == 0


def _slice_sides(text: str, count: int, chip: Chip) -> tuple[int, ...]:
  """The sides of a slice of `count` cores or chips: as equal as can be, ascending."""
  chips, rest = divmod(count, chip.cores)
  power = chips.bit_length() - 1
  if rest or chips != 2**power or (chips < 4 and (chips, chip.cores) != (1, 1)):
    what = 'TensorCores, two a chip' if chip.cores == 2 else 'chips'
    raise UserError(
      f'{text!r} is no slice: the number counts {what}, and slices that go by it have a power '
      'of two of them, at least one host (four chips); others go by their sides.'
    )
  if chip.sides == 3 and chips == 4:
    return 2, 2, 1  # one host
  return tuple(2 ** ((power + i) // chip.sides) for i in range(chip.sides))


def prepare(wanted: Sequence[Topology]) -> None:
  """Sets up this process for compiling for `wanted`; before JAX starts its backend.

  No accelerator of this machine is used or waited for.

  Raises:
    UserError: when TPU topologies are wanted and libtpu is not installed.
  """
  if any(t.chip for t in wanted) and importlib.util.find_spec('libtpu') is None:
    raise UserError(
      'Compiling for TPUs takes their compiler, libtpu, which is not installed; '
      "pip install 'vit_jax[tpu]' brings it."
    )
  os.environ |= {
    'TPU_SKIP_MDS_QUERY': '1',  # there is no metadata server to ask
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # other processes may compile, too
    # Else libtpu complains on stderr that it does not know where it is, and writes logs.
    'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_LOG_DIR': 'disabled',
    'TPU_STDERR_LOG_LEVEL': '3',
    'TPU_MIN_LOG_LEVEL': '3',
  }
  jax.config.update('jax_platforms', 'cpu')
  if any(t.chip for t in wanted):  # what is compiled for them cannot be read back
    jax.config.update('jax_enable_compilation_cache', False)
  cpus = [t.num_chips for t in wanted if t.kind == 'cpu']
  try:
    jax.config.update('jax_num_cpu_devices', max(cpus, default=1))
  except RuntimeError:  # the backend has started; `devices` counts what it has
    pass


def devices(topology: Topology, num_slices: int = 1) -> list[jax.Device]:
  """The devices of `num_slices` slices.

  Raises:
    UserError: for a topology that the compiler does not know.
  """
  if topology.kind == 'cpu':
    found = jax.devices('cpu')[: topology.num_chips]
    if len(found) < topology.num_chips:
      raise UserError(f'{topology.name}: this process has {len(found)} CPU devices.')
    return found
  options = dict(topology.chip.options)
  if topology.num_chips == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  try:
    return topologies.get_topology_desc(
      platform='tpu',
      topology_name=f'{topology.kind}:{"x".join(map(str, topology.sides))}',
      num_slices=num_slices,
      **options,
    ).devices
  except jax.errors.JaxRuntimeError as error:
    raise UserError(f'The compiler does not take {topology.name}: {first_line(error)}.') from None
