"""The collectives that a compiled program runs, and the bytes they bring to a device.

Parsed from the text of XLA's optimized HLO, which is the program of one device.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = (.*?[\])}]) ([a-z][a-z0-9-]*)\((.*)')
_ARRAY = re.compile(r'\b(pred|bf|f|s|u|c)(\d*)(?:e\d\w*)?\[([\d,]*)\]')  # pred[2], f8e4m3fn[2,3]


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


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  opcode: str
  rest: str  # operands and attributes


_Computations = dict[str, list[_Instruction]]  # by name


def count_collectives(hlo: str, num_devices: int) -> tuple[Collective, ...]:
  """The collectives of `compiled.as_text()`, one row a kind, in descending order of bytes.

  Those in a loop count once an iteration.
  """
  counts, num_bytes = collections.Counter[str](), collections.defaultdict[str, float](float)
  computations, entry = _parse(hlo)
  for kind, times, size in _walk(computations, entry, 1, num_devices, set()):
    counts[kind] += times
    num_bytes[kind] += times * size
  rows = [Collective(kind, counts[kind], round(num_bytes[kind])) for kind in counts]
  return tuple(sorted(rows, key=lambda row: -row.bytes))


def _parse(hlo: str) -> tuple[_Computations, str]:
  """All computations, and the name of the entry computation."""
  computations: _Computations = {}
  entry, current = '', []
  for line in hlo.splitlines():
    if match := _INSTRUCTION.match(line):
      current.append(_Instruction(*match.groups()))
    elif match := _COMPUTATION.match(line):
      current = computations[match[2]] = []
      entry = match[2] if match[1] else entry
  return computations, entry


def _walk(
  computations: _Computations, name: str, times: int, num_devices: int, running: set[str]
) -> Iterator[tuple[str, int, float]]:
  """Yields (kind, how often, bytes received each time) for the collectives of a computation.

  `times` is how often it runs; `running` collects the asynchronous collectives under way, which a
  TPU program names again in each fusion that computes meanwhile.
  """
  body = computations[name]
  shapes = {instruction.name: instruction.shape for instruction in body}
  is_start = any('"AsyncCollectiveStart"' in i.rest for i in body if i.opcode == 'custom-call')
  for instruction in body:
    opcode, rest = instruction.opcode, instruction.rest
    kind = opcode.removesuffix('-start')
    if kind in KINDS:
      channel = re.search(r'channel_id=(\d+)', rest)
      key = f'{kind} {channel[1]}' if channel else ''
      if is_start:
        running.add(key)
      elif key in running and 'fus' in name:
        continue
      if name.startswith('all-reduce-scatter'):  # a TPU fuses the two
        kind = 'reduce-scatter'
      operands = re.findall(r'%?([\w.-]+)', re.sub(r'/\*.*?\*/', '', rest.split(')')[0]))
      size = sum(_num_bytes(shapes.get(operand, '')) for operand in operands)
      yield kind, times, _received_bytes(kind, size, _group_size(rest, num_devices))
    elif opcode not in ('async-done', 'async-update'):
      iterations = _trip_count(rest, computations) if opcode == 'while' else 1
      for called in _called_computations(opcode, rest):
        yield from _walk(computations, called, times * iterations, num_devices, running)


def _called_computations(opcode: str, rest: str) -> list[str]:
  """Names of the computations an instruction runs, without those that only reduce two scalars."""
  attribute = {
    'while': 'body',
    'call': 'to_apply',
    'call-start': 'to_apply',  # on a SparseCore
    'conditional': r'(?:true|false)_computation',
  }.get(opcode, 'calls')
  names = re.findall(rf'\b{attribute}=%?([\w.-]+)', rest)
  if match := re.search(r'branch_computations=\{(.*?)\}', rest):
    names += re.findall(r'[\w.-]+', match[1])
  return names


def _trip_count(rest: str, computations: _Computations) -> int:
  """The number of iterations of a loop; 1 if the text does not give it."""
  if match := re.search(r'known_trip_count"?[:=]\s*\{"?n"?[:=]"?(\d+)', rest):
    return int(match[1])
  # On a TPU only the condition gives it: the loops of `lax.scan` count up to a constant.
  match = re.search(r'condition=%?([\w.-]+)', rest)
  condition = computations[match[1]] if match else []
  limits = [i.rest for i in condition if i.opcode == 'constant' and i.shape.startswith('s32[]')]
  return int(limits[0].split(')')[0]) if len(limits) == 1 else 1


def _num_bytes(shape: str) -> float:
  """Bytes of an array or of all arrays of a tuple, such as 'bf16[16,768]{1,0:T(8,128)}'."""
  total = 0.0
  for letters, digits, sizes in _ARRAY.findall(shape):
    bits = 8 if letters == 'pred' else int(digits or 0)
    total += bits / 8 * math.prod(int(size) for size in sizes.split(',') if size)
  return total


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
