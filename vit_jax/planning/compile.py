"""Compiles a train step ahead of time, for devices that need not exist, and measures it."""

import dataclasses
import re
import time

import jax

from vit_jax.distributed.sharding import sharded_bytes
from vit_jax.errors import UserError, first_line
from vit_jax.planning.collectives import Collective, count_collectives
from vit_jax.planning.cycles import CycleEstimate, estimate_cycles
from vit_jax.planning.hlo import parse
from vit_jax.planning.kernel_schedule import kernel_cycles
from vit_jax.planning.topologies import Topology
from vit_jax.planning.traffic import hbm_bytes
from vit_jax.training.program import Program

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
_SIZE = r'([\d.]+)([KMGT]?)B?'


@dataclasses.dataclass(frozen=True)
class Memory:
  """Memory of one device, in bytes."""

  arguments: int  # the state and the batch
  temporaries: int | None  # None if the compiler gave up before it knew
  outputs: int = 0  # the new state and the metrics
  aliased: int = 0  # the outputs that reuse the memory of arguments
  peak: int | None = None  # the compiler's own estimate; may be far below the sum

  @property
  def needed(self) -> int | None:
    """Arguments, temporaries, and the outputs that reuse no argument's memory."""
    if self.temporaries is None:
      return None
    return self.arguments + self.temporaries + self.outputs - self.aliased


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """A train step that was compiled for its mesh, or refused for lack of memory."""

  stablehlo: str  # the lowered program, before the devices' compiler
  hlo: str  # the compiled program of one device; '' if refused
  memory: Memory  # of one device
  collectives: tuple[Collective, ...]  # of one device and step, one row a kind; empty if refused
  refusal: str | None  # the compiler's message if the program does not fit
  seconds: float  # spent on lowering and compiling
  cycles: CycleEstimate | None = None  # of one device and step; None if the compiler gives none
  hbm_bytes: int | None = None  # moved by one device in a step; None if refused


def compile_program(program: Program, topology: Topology | None = None) -> CompiledStep:
  """Compiles the train step of `program` for its mesh, whose devices are those of `topology`.

  With a TPU topology also the kernels' schedules are counted, which takes a second process.

  Raises:
    UserError: if the compiler fails for a reason other than memory, or does not report it.
  """
  start = time.perf_counter()
  lowered = program.lower()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise UserError(f'The compiler failed: {first_line(error)}.') from None
    seconds = time.perf_counter() - start
    memory = _refused_memory(str(error), argument_bytes(program))
    return CompiledStep(lowered.as_text(), '', memory, (), first_line(error), seconds)
  seconds = time.perf_counter() - start
  stats, hlo = compiled.memory_analysis(), compiled.as_text()
  if stats is None or hlo is None:
    raise UserError('The compiler of these devices reports neither memory nor HLO.')
  memory = Memory(
    arguments=stats.argument_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    outputs=stats.output_size_in_bytes,
    aliased=stats.alias_size_in_bytes,
    peak=getattr(stats, 'peak_memory_in_bytes', None),
  )
  parsed = parse(hlo)
  collectives = count_collectives(parsed, program.mesh.size)
  texts = lowered.as_text(), hlo
  kernels = kernel_cycles(parsed, topology) if topology and topology.chip else {}
  analyses = estimate_cycles(parsed, kernels), hbm_bytes(parsed)
  return CompiledStep(*texts, memory, collectives, None, seconds, *analyses)


def argument_bytes(program: Program) -> int:
  """Bytes of the state and the batch on one device, without the compiler's padding."""
  return sharded_bytes((program.abstract_state, program.abstract_batch))['device']


def _refused_memory(message: str, arguments: int) -> Memory:
  """Reads the sizes in a refusal, which gives either the sum or only the temporaries."""
  if match := re.search(rf'[Uu]sed {_SIZE} of {_SIZE} hbm', message):
    return Memory(arguments, max(_parse_size(*match.group(1, 2)) - arguments, 0))
  if match := re.search(rf'temporaries \({_SIZE}\) exceeds', message):
    return Memory(arguments, _parse_size(*match.groups()))
  return Memory(arguments, None)


def _parse_size(number: str, unit: str) -> int:
  return int(float(number) * _UNITS[unit])
