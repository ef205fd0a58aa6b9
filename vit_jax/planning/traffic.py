"""The bytes that a compiled program moves between a device and its main memory (HBM)."""

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
_SLICES = ('slice', 'dynamic-slice', 'gather')


def hbm_bytes(program: Hlo) -> int:
  """What a device reads from its HBM and writes to it in one call, in bytes.

  A lower bound: each instruction reads its operands once and writes its result once, without
  padding; those that the compiler placed in faster memory do not count, nor what a fusion keeps to
  itself. Of an array that a fusion only slices, the slice counts.
  """
  total = 0.0
  shapes = {
    name: {instruction.name: instruction.shape for instruction in body}
    for name, body in program.computations.items()
  }
  for line in executed(program):
    instruction = line.instruction
    if instruction.opcode not in _FREE:
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
  if instruction.opcode != 'fusion':
    return sum(map(_hbm_bytes, [instruction.shape, *operands]))
  (name,) = called_computations(instruction)
  body = program.computations[name]
  read = sum(_read(body, index, shape) for index, shape in enumerate(operands) if _in_hbm(shape))
  return read + _written(body, instruction.shape)


def _read(body: list[Instruction], index: int, shape: str) -> float:
  """Bytes that a fusion reads of its operand number `index`, of this shape."""
  names = [i.name for i in body if i.opcode == 'parameter' and i.rest.startswith(f'{index})')]
  uses = [i for i in body if names and names[0] in i.operands]
  if uses and all(use.opcode in _SLICES and use.operands[0] == names[0] for use in uses):
    return sum(num_bytes(use.shape) for use in uses)
  if uses and all(_updates(use, names[0]) for use in uses):
    return 0
  return num_bytes(shape)


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


def _updates(use: Instruction, name: str) -> bool:
  return use.opcode == 'dynamic-update-slice' and use.operands[0] == name


def _copied(shape: str) -> float:
  """Bytes of a copy between memories, by the shape of its start: source, destination, context."""
  source, destination, *_ = array_shapes(shape)
  size = min(num_bytes(source), num_bytes(destination))
  return size * (_in_hbm(source) + _in_hbm(destination))


def _in_hbm(shape: str) -> bool:
  return _hbm_bytes(shape) > 0


def _hbm_bytes(shape: str) -> float:
  return num_bytes(shape, in_hbm=True)
