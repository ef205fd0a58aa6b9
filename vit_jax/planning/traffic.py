"""The bytes that a compiled program moves between a device and its main memory (HBM)."""

import math

from vit_jax.planning.hlo import (
  Hlo,
  Instruction,
  array_shapes,
  called_computations,
  executed,
  num_bytes,
)

# They move nothing, or what they move is that of their start.
_FREE = set(
  'parameter constant tuple get-tuple-element bitcast partition-id replica-id after-all '
  'opt-barrier optimization-barrier copy-done slice-done async-done all-reduce-done '
  'all-gather-done collective-permute-done call-done send-done recv-done'.split()
)
_NO_WORK = ('"AllocateBuffer"', '"ConcatBitcast"')  # custom calls that only name memory
# Their shape has the operands, the results, and contexts: scalars.
_WITH_OPERANDS = ('all-gather-start', 'collective-permute-start', 'async-start')
_SLICES = ('slice', 'dynamic-slice', 'gather')


def hbm_bytes(program: Hlo) -> int:
  """What a device reads from its HBM and writes to it in one call, in bytes.

  A lower bound, but for conditionals, of which all branches count: each instruction reads its
  operands once and writes its result once, without padding; those that the compiler placed in
  faster memory do not count, nor what a fusion keeps to itself. Of an array that a fusion only
  slices, the slice counts.
  """
  total = 0.0
  shapes = {
    name: {instruction.name: instruction.shape for instruction in body}
    for name, body in program.computations.items()
  }
  for line in executed(program):
    instruction = line.instruction
    is_free = instruction.opcode in _FREE or any(name in instruction.rest for name in _NO_WORK)
    if not is_free:
      total += line.times * _moved(program, instruction, shapes[line.computation])
  return round(total)


def _moved(program: Hlo, instruction: Instruction, shapes: dict[str, str]) -> float:
  """Bytes that one instruction reads and writes; `shapes` are those of its computation."""
  if instruction.opcode in ('copy-start', 'slice-start'):
    return _copied(instruction.shape)
  operands = [shapes.get(name, '') for name in instruction.operands]
  if instruction.opcode in _SLICES:
    operands = [instruction.shape if _in_hbm(operands[0]) else '']
  if instruction.opcode == 'dynamic-update-slice':
    return 2 * num_bytes(operands[1]) if _in_hbm(instruction.shape) else 0
  if instruction.opcode in _WITH_OPERANDS:
    results = array_shapes(instruction.shape)[sum(map(bool, operands)) :]
    results = [shape for shape in results if not shape.startswith('u32[]')]
    return sum(map(_hbm_bytes, [*results, *operands]))
  if instruction.opcode != 'fusion':
    return sum(map(_hbm_bytes, [instruction.shape, *operands]))
  (name,) = called_computations(instruction)
  read = sum(
    _read_by_fusion(program, name, index, shape)
    for index, shape in enumerate(operands)
    if _in_hbm(shape)
  )
  return read + _written(program.computations[name], instruction.shape)


def _read_by_fusion(program: Hlo, name: str, index: int, shape: str) -> float:
  """Bytes that a fused computation reads of its parameter number `index`, of this shape."""
  body = program.computations[name]
  parameters = [i.name for i in body if i.opcode == 'parameter' and i.rest.startswith(f'{index})')]
  return min(sum(_read(program, body, name) for name in parameters), num_bytes(shape))


def _read(program: Hlo, body: list[Instruction], name: str) -> float:
  """Bytes that the users of a value read of it; infinity if one of them reads all of it."""
  total = 0.0
  for use in body:
    if name not in use.operands:
      continue
    position = use.operands.index(name)
    if use.opcode in _SLICES and position == 0:
      total += num_bytes(use.shape)
    elif use.opcode == 'bitcast' and use is not body[-1]:
      total += _read(program, body, use.name)
    elif use.opcode == 'fusion':
      (called,) = called_computations(use)
      total += _read_by_fusion(program, called, position, shape=_of(body, name).shape)
    elif use.opcode != 'dynamic-update-slice' or position != 0:  # that happens in place
      return math.inf
  return total


def _of(body: list[Instruction], name: str) -> Instruction:
  return next(instruction for instruction in body if instruction.name == name)


def _written(body: list[Instruction], shape: str) -> float:
  """Bytes that a fusion writes of its result, of this shape; in place where it updates a slice."""
  by_name = {i.name: i for i in body}
  root = body[-1]
  roots = [by_name[name] for name in root.operands] if root.opcode == 'tuple' else [root]
  total = 0.0
  for output, array in zip(roots, array_shapes(shape), strict=False):
    if output.opcode == 'dynamic-update-slice':
      array = by_name[output.operands[1]].shape if _in_hbm(array) else ''
    total += _hbm_bytes(array)
  return total


def _copied(shape: str) -> float:
  """Bytes of a copy between memories, by the shape of its start: source, destination, context."""
  source, destination, *_ = array_shapes(shape)
  size = min(num_bytes(source), num_bytes(destination))
  return size * (_in_hbm(source) + _in_hbm(destination))


def _in_hbm(shape: str) -> bool:
  return _hbm_bytes(shape) > 0


def _hbm_bytes(shape: str) -> float:
  return num_bytes(shape, in_hbm=True)
