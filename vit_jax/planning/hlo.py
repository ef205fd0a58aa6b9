"""The text of XLA's optimized HLO: instructions, loops, shapes.

It is the program of one device, as `compiled.as_text()` prints it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = (.*?[\])}]) ([a-z][a-z0-9-]*)\((.*)')
# pred[2], f8e4m3fn[2,3], bf16[16,768]{1,0:T(8,128)(2,1)S(1)}
_ARRAY = re.compile(r'\b(pred|bf|f|s|u|c)(\d*)(?:e\d\w*)?\[([\d,]*)\](\{[^}]*\})?')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str
  shape: str  # of the result, with its layout
  opcode: str
  rest: str  # operands and attributes

  @functools.cached_property
  def operands(self) -> list[str]:
    """Names of the operands."""
    return re.findall(r'%?([\w.-]+)', re.sub(r'/\*.*?\*/', '', self.rest.split(')')[0]))

  @property
  def op_name(self) -> str:
    """Where in the model it comes from, as JAX names it: 'jit(f)/jvp(Model)/Layer/add', or ''."""
    match = _OP_NAME.search(self.rest)
    return match[1] if match else ''

  @property
  def cycles(self) -> int | None:
    """The TPU compiler's estimate; None if it gives none."""
    match = _CYCLES.search(self.rest)
    return int(match[1]) if match else None


@dataclasses.dataclass(frozen=True)
class Hlo:
  """A compiled program."""

  computations: dict[str, list[Instruction]]  # by name
  entry: str  # name of the computation that runs


@dataclasses.dataclass(frozen=True)
class Executed:
  """An instruction that the program runs, and how often."""

  instruction: Instruction
  computation: str  # that it is a line of
  times: int


def parse(text: str) -> Hlo:
  """Parses the text of a program."""
  computations: dict[str, list[Instruction]] = {}
  entry, current = '', []
  for line in text.splitlines():
    if match := _INSTRUCTION.match(line):
      current.append(Instruction(*match.groups()))
    elif match := _COMPUTATION.match(line):
      current = computations[match[2]] = []
      entry = match[2] if match[1] else entry
  return Hlo(computations, entry)


def executed(hlo: Hlo, inside: bool = False) -> Iterator[Executed]:
  """Yields what runs: the entry computation, the bodies of loops, and what is called.

  A fusion is one instruction; so is an asynchronous operation, by its start. With `inside` what
  they consist of is yielded, too. Of a conditional all branches are yielded.
  """
  yield from _executed(hlo, hlo.entry, 1, inside)


def _executed(hlo: Hlo, name: str, times: int, inside: bool) -> Iterator[Executed]:
  for instruction in hlo.computations[name]:
    is_control_flow = instruction.opcode in ('while', 'call', 'call-start', 'conditional')
    if not is_control_flow:
      yield Executed(instruction, name, times)
    if is_control_flow or (inside and instruction.opcode not in ('async-update', 'async-done')):
      iterations = trip_count(hlo, instruction) if instruction.opcode == 'while' else 1
      for called in called_computations(instruction):
        yield from _executed(hlo, called, times * iterations, inside)


def called_computations(instruction: Instruction) -> list[str]:
  """Names of the computations an instruction runs, without those that only reduce two scalars."""
  attribute = {
    'while': 'body',
    'call': 'to_apply',
    'call-start': 'to_apply',  # on a SparseCore
    'conditional': r'(?:true|false)_computation',
  }.get(instruction.opcode, 'calls')
  names = re.findall(rf'\b{attribute}=%?([\w.-]+)', instruction.rest)
  if match := re.search(r'branch_computations=\{(.*?)\}', instruction.rest):
    names += re.findall(r'[\w.-]+', match[1])
  return names


def trip_count(hlo: Hlo, loop: Instruction) -> int:
  """The number of iterations of a while loop; 1 if the text does not give it."""
  if match := re.search(r'known_trip_count"?[:=]\s*\{"?n"?[:=]"?(\d+)', loop.rest):
    return int(match[1])
  # On a TPU only the condition gives it: the loops of `lax.scan` count up to a constant.
  match = re.search(r'condition=%?([\w.-]+)', loop.rest)
  condition = hlo.computations[match[1]] if match else []
  limits = [i.rest for i in condition if i.opcode == 'constant' and i.shape.startswith('s32[]')]
  return int(limits[0].split(')')[0]) if len(limits) == 1 else 1


def num_bytes(shape: str, *, in_hbm: bool = False) -> float:
  """Bytes of an array or of all arrays of a tuple, without padding.

  Args:
    shape: such as 'bf16[16,768]{1,0:T(8,128)}' or '(f32[2], s32[])'.
    in_hbm: count only arrays in the device's main memory. Others have a memory space in their
      layout, such as S(1), a TPU's vector memory.
  """
  total = 0.0
  for letters, digits, sizes, layout in _ARRAY.findall(shape):
    if not (in_hbm and 'S(' in layout):
      bits = 8 if letters == 'pred' else int(digits or 0)
      total += bits / 8 * math.prod(int(size) for size in sizes.split(',') if size)
  return total


def array_shapes(shape: str) -> list[str]:
  """The arrays of a shape with their layouts: 'f32[2]{0}', 's32[]' of '(f32[2]{0}, s32[])'."""
  return [match[0] for match in _ARRAY.finditer(shape)]
