"""The collectives that a compiled program runs, and the bytes they bring to a device."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

from vit_jax.planning.hlo import Hlo, executed, num_bytes

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of one kind.

  Attributes:
    kind: one of KINDS.
    count: how many a device starts in one call of the program.
    bytes: what a device receives through them in one call, if they run as rings: of an array of S
      bytes over g devices, (g - 1) / g S in an all-gather, reduce-scatter or all-to-all, twice
      that in an all-reduce, and S in a permute.
  """

  kind: str
  count: int
  bytes: int


def count_collectives(program: Hlo, num_devices: int) -> tuple[Collective, ...]:
  """The collectives of a program, one row a kind, in descending order of bytes.

  Those in a loop count once an iteration.
  """
  counts, received = collections.Counter[str](), collections.defaultdict[str, float](float)
  for kind, times, size in _received(program, num_devices):
    counts[kind] += times
    received[kind] += times * size
  rows = [Collective(kind, counts[kind], round(received[kind])) for kind in counts]
  return tuple(sorted(rows, key=lambda row: -row.bytes))


def _received(program: Hlo, num_devices: int) -> Iterator[tuple[str, int, float]]:
  """Yields (kind, how often, bytes received each time) for the collectives of a program.

  A TPU program names an asynchronous collective again in each fusion that computes meanwhile; these
  are left out.
  """
  running = set()
  for line in executed(program, inside=True):
    instruction, name = line.instruction, line.computation
    kind = instruction.opcode.removesuffix('-start')
    if kind not in KINDS:
      continue
    body = program.computations[name]
    channel = re.search(r'channel_id=(\d+)', instruction.rest)
    key = f'{kind} {channel[1]}' if channel else ''
    if any('"AsyncCollectiveStart"' in i.rest for i in body if i.opcode == 'custom-call'):
      running.add(key)
    elif key in running and 'fus' in name:
      continue
    if name.startswith('all-reduce-scatter'):  # a TPU fuses the two
      kind = 'reduce-scatter'
    shapes = {each.name: each.shape for each in body}
    size = sum(num_bytes(shapes.get(operand, '')) for operand in instruction.operands)
    group_size = _group_size(instruction.rest, num_devices)
    yield kind, line.times, _received_bytes(kind, size, group_size)


def _group_size(rest: str, num_devices: int) -> int:
  """The number of devices in one replica group of a collective."""
  if match := re.search(r'replica_groups=\{\{([\d,]*)\}', rest):
    return len(match[1].split(','))
  if match := re.search(r'replica_groups=\[\d+,(\d+)\]', rest):
    return int(match[1])
  if match := re.search(r'replica_groups=mesh\[(.*?)\].*?\{([^{}]*)\}', rest):
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])  # 'x':(1)2 is 2 devices along x
    return math.prod(int(subset) if subset else sizes[name] for name, subset in axes)
  return num_devices


def _received_bytes(kind: str, size: float, group_size: int) -> float:
  """Bytes that a device receives for operands of `size` bytes; see `Collective`."""
  if kind == 'collective-permute':
    return size
  factor = {'all-gather': group_size, 'all-reduce': 2}.get(kind, 1)
  return factor * size * (group_size - 1) / group_size
