"""Where the cycles of a compiled train step go, by the TPU compiler's own estimate.

The compiler writes an estimate beside each instruction that computes. It writes none beside custom
calls (Pallas kernels; for those of this package see kernel_schedule.py), asynchronous copies and
asynchronous collectives, which it expects to run meanwhile.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping

from vit_jax.planning.collectives import KINDS
from vit_jax.planning.hlo import Hlo, Instruction, called_computations, executed

PASSES = ('forward', 'backward', 'recomputed', 'update')
_NUM_HEAVIEST = 30

# In this order: the first pattern that occurs in an op_name decides. The `/` ends a flax name.
_PATTERNS = (
  ('QKV projections', r'Attention_\d+/(query|key|value)/'),
  ('output projection', r'Attention_\d+/out/'),
  ('attention', r'Attention_\d+/'),
  ('MLP', r'MlpBlock_\d+/|(token|channel)_mixing/'),
  ('norms', r'(Layer|RMS)Norm_\d+/|(encoder_norm|pre_head_layer_norm|gn\w*|norm\w*)/'),
  ('patch embedding', r'embed_patches|/(stem|embedding|posembed_\w+|conv_root)/|\.encode/[^/]*$'),
  ('head and loss', r'/(head|pre_logits)/|pool_tokens|jvp\((?!\w*[A-Z])'),
  ('convolutions', r'/(conv\w*|block\d+/unit\d+)/'),
  ('scan over blocks', r'\._scan/'),  # stacking and slicing what the blocks keep
)
PARTS = (*(part for part, _ in _PATTERNS), 'optimizer', 'collectives', 'other')


@dataclasses.dataclass(frozen=True)
class PartCycles:
  """What one part of the model takes in one pass."""

  part: str  # of PARTS
  direction: str  # of PASSES
  cycles: int
  instructions: int  # that run


@dataclasses.dataclass(frozen=True)
class InstructionCycles:
  """What one instruction takes, over all its iterations."""

  name: str
  part: str
  direction: str
  cycles: int
  times: int  # that it runs
  shape: str  # of its result
  op_name: str


@dataclasses.dataclass(frozen=True)
class CycleEstimate:
  """The cycles of one device in one step.

  Attributes:
    total: their sum, over `parts`.
    parts: one row for each part and pass that takes cycles, in the order of PARTS and PASSES.
    heaviest: the instructions that take the most cycles, in descending order.
    uncounted: {target: how many} of the custom calls without an estimate.
    uncounted_flops: FLOPs that these calls state for themselves; what states none is not in it.
  """

  total: int
  parts: tuple[PartCycles, ...]
  heaviest: tuple[InstructionCycles, ...]
  uncounted: dict[str, int]
  uncounted_flops: int

  def of_part(self, part: str) -> int:
    """The cycles of a part, over all passes."""
    return sum(row.cycles for row in self.parts if row.part == part)


def estimate_cycles(
  program: Hlo, kernel_cycles: Mapping[str, int] | None = None
) -> CycleEstimate | None:
  """Sums the estimates of a program; None if it has none, as programs for a CPU or GPU.

  `kernel_cycles` has those of custom calls, by name, from `kernel_schedule.py`.

  Those in a loop count once an iteration. A fusion counts as the part that its main operation
  belongs to: the update of a kernel, for example, where the compiler fuses it into the product
  that yields the kernel's gradient.
  """
  sums = collections.Counter[tuple[str, str]]()
  counts = collections.Counter[tuple[str, str]]()
  uncounted = collections.Counter[str]()
  rows, uncounted_flops = [], 0
  for line in executed(program):
    instruction = line.instruction
    estimate = (kernel_cycles or {}).get(instruction.name, instruction.cycles)
    if estimate is None:
      if instruction.opcode == 'custom-call':
        uncounted[_target(instruction)] += line.times
        uncounted_flops += line.times * _stated_flops(instruction)
      continue
    key = part, direction = _part(program, instruction), _direction(instruction.op_name)
    cycles = line.times * estimate
    sums[key] += cycles
    counts[key] += line.times
    shape = re.sub(r'\{[^}]*\}', '', instruction.shape)
    fields = part, direction, cycles, line.times, shape, instruction.op_name
    rows.append(InstructionCycles(instruction.name, *fields))
  if not rows:
    return None
  order = sorted(sums, key=lambda key: (PARTS.index(key[0]), PASSES.index(key[1])))
  return CycleEstimate(
    total=sum(sums.values()),
    parts=tuple(PartCycles(*key, sums[key], counts[key]) for key in order),
    heaviest=tuple(sorted(rows, key=lambda row: -row.cycles)[:_NUM_HEAVIEST]),
    uncounted=dict(uncounted.most_common()),
    uncounted_flops=uncounted_flops,
  )


def _part(program: Hlo, instruction: Instruction) -> str:
  """The part of the model that an instruction belongs to."""
  opcodes = [instruction.opcode.removesuffix('-start')]
  if instruction.opcode == 'fusion':
    for called in called_computations(instruction):
      opcodes += [inner.opcode for inner in program.computations[called]]
  if any(opcode in KINDS for opcode in opcodes):
    return 'collectives'
  op_name = instruction.op_name
  for part, pattern in _PATTERNS:
    if re.search(pattern, op_name):
      return part
  differentiated = 'jvp(' in op_name
  return 'optimizer' if op_name.startswith('jit(') and not differentiated else 'other'


def _direction(op_name: str) -> str:
  """The pass that an instruction belongs to, by the transformations in its name."""
  if 'rematted_computation' in op_name:
    return 'recomputed'
  if 'transpose(' in op_name:
    return 'backward'
  return 'forward' if 'jvp(' in op_name else 'update'


def _target(call: Instruction) -> str:
  match = re.search(r'custom_call_target="([^"]*)"', call.rest)
  return match[1] if match else call.name


def _stated_flops(call: Instruction) -> int:
  """FLOPs in the `cost_estimate` of a Pallas kernel; 0 without one."""
  match = re.search(r'"?flops"?\s*[:=]\s*"?(\d+)', call.rest)
  return int(match[1]) if match else 0
