"""Which collectives a compiled program runs, and how many bytes they bring to a device.

Read from the text of XLA's optimized HLO, as one device runs it.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BITS = {'pred': 8, 'bf': 16, 'f': 0, 's': 0, 'u': 0}  # 0: in the name, as f32
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = (.*?[\])}]) ([a-z][a-z0-9-]*)\((.*)')
_ARRAY = re.compile(r'\b(pred|bf|f|s|u|c)(\d*)(?:e\d\w*)?\[([\d,]*)\]')


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of one kind.

  Attributes:
    kind: 'all-gather', …
    count: how often a device starts one in a call of the program.
    bytes: what a device receives by them in a call, in a ring: of an array of S bytes among g
      devices, (g - 1) / g S in an all-gather, reduce-scatter or all-to-all, twice that in an
      all-reduce, and S in a permutation.
  """

  kind: str
  count: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  opcode: str
  rest: str  # operands and attributes


def collectives(text: str, num_devices: int) -> tuple[Collective, ...]:
  """What the program `text` runs, loops counted as often as they go round; largest first.

  Args:
    text: `compiled.as_text()`.
    num_devices: of the program.
  """
  found: dict[str, list[float]] = {}
  computations, entry = _parse(text)
  for kind, times, size in _walk(computations, entry, 1, num_devices, set()):
    total = found.setdefault(kind, [0, 0.0])
    total[0] += times
    total[1] += times * size
  rows = [Collective(kind, int(count), round(size)) for kind, (count, size) in found.items()]
  return tuple(sorted(rows, key=lambda row: -row.bytes))


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  """{name of a computation: its instructions}, and the name of the first to run."""
  computations: dict[str, list[_Instruction]] = {}
  entry, current = '', []
  for line in text.splitlines():
    if match := _INSTRUCTION.match(line):
      current.append(_Instruction(*match.groups()))
    elif match := _COMPUTATION.match(line):
      current = computations[match[2]] = []
      entry = match[2] if match[1] else entry
  return computations, entry


def _walk(
  computations: dict[str, list[_Instruction]],
  name: str,
  times: int,
  num_devices: int,
  running: set[str],
) -> Iterator[tuple[str, int, float]]:
  """(kind, how often, bytes received each time) of the collectives under a computation.

  Args:
    running: channels of collectives that are under way; a TPU program names them again in each
      fusion that computes meanwhile.
  """
  body = computations[name]
  shapes = {instruction.name: instruction.shape for instruction in body}
  is_start = any('"AsyncCollectiveStart"' in i.rest for i in body if i.opcode == 'custom-call')
  for instruction in body:
    opcode, rest = instruction.opcode, instruction.rest
    kind = opcode.removesuffix('-start')
    if kind in _KINDS:
      channel = re.search(r'channel_id=(\d+)', rest)
      key = f'{kind} {channel[1]}' if channel else ''
      if is_start:
        running.add(key)
      elif key in running and 'fus' in name:
        continue
      if name.startswith('all-reduce-scatter'):  # a fusion of the two, on a TPU
        kind = 'reduce-scatter'
      operands = re.findall(r'%?([\w.-]+)', re.sub(r'/\*.*?\*/', '', rest.split(')')[0]))
      size = sum(_bytes(shapes.get(operand, '')) for operand in operands)
      yield kind, times, _received(kind, size, _group_size(rest, num_devices))
    elif opcode not in ('async-done', 'async-update'):
      again = times * (_trip_count(rest, computations) if opcode == 'while' else 1)
      for called in _called(opcode, rest):
        yield from _walk(computations, called, again, num_devices, running)


def _called(opcode: str, rest: str) -> list[str]:
  """Computations that an instruction runs; not those that only combine two numbers."""
  attributes = {
    'while': 'body',
    'call': 'to_apply',
    'call-start': 'to_apply',  # on a SparseCore
    'conditional': r'(?:true|false)_computation',
  }
  names = re.findall(rf'\b{attributes.get(opcode, "calls")}=%?([\w.-]+)', rest)
  if match := re.search(r'branch_computations=\{(.*?)\}', rest):
    names += re.findall(r'[\w.-]+', match[1])
  return names


def _trip_count(rest: str, computations: dict[str, list[_Instruction]]) -> int:
  """How often a loop goes round; once if that cannot be told."""
  if match := re.search(r'known_trip_count"?[:=]\s*\{"?n"?[:=]"?(\d+)', rest):
    return int(match[1])
  # On a TPU only the condition tells: the loops of `lax.scan` count up to a constant.
  condition = computations[re.search(r'condition=%?([\w.-]+)', rest)[1]]
  limits = [i.rest for i in condition if i.opcode == 'constant' and i.shape.startswith('s32[]')]
  return int(limits[0].split(')')[0]) if len(limits) == 1 else 1


def _bytes(shape: str) -> float:
  """Of an array, or of all arrays of a tuple: 'bf16[16,768]{1,0:T(8,128)}'."""
  total = 0.0
  for letters, digits, sides in _ARRAY.findall(shape):
    bits = int(digits) if digits else _BITS[letters]
    total += bits / 8 * math.prod(int(side) for side in sides.split(',') if side)
  return total


def _group_size(rest: str, num_devices: int) -> int:
  """How many devices take part in one of the groups of a collective."""
  if match := re.search(r'replica_groups=\{\{([\d,]*)\}', rest):
    return len(match[1].split(','))
  if match := re.search(r'replica_groups=\[\d+,(\d+)\]', rest):
    return int(match[1])
  if match := re.search(r'replica_groups=mesh\[(.*?)\].*?\{([^{}]*)\}', rest):
    sides = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])  # a part of an axis: 'x':(1)2
    return math.prod(int(part) if part else sides[name] for name, part in axes)
  return num_devices


def _received(kind: str, size: float, group: int) -> float:
  """Bytes that a device receives, of operands of `size` bytes (see `Collective`)."""
  if kind == 'all-gather':
    return size * (group - 1)
  if kind == 'all-reduce':
    return 2 * size * (group - 1) / group
  if kind == 'collective-permute':
    return size
  return size * (group - 1) / group
