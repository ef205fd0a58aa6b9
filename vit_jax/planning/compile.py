"""Compiling a program ahead of time, for devices that need not be there, and what comes of it."""

import dataclasses
import re
import time
from typing import Any

import jax

from vit_jax.distributed.sharding import sharded_bytes
from vit_jax.errors import UserError, first_line
from vit_jax.planning.collectives import Collective, collectives

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
_SIZE = r'([\d.]+)([KMGT]?)B?'


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one device.

  Attributes:
    arguments: the state and the batch.
    temporaries: what else is needed at once; None when the compiler gave up before it knew.
    outputs: the new state and the metrics.
    aliased: of the outputs, what takes the place of arguments.
    peak: the compiler's own estimate of the most that is live; may be far under the sum.
  """

  arguments: int
  temporaries: int | None
  outputs: int = 0
  aliased: int = 0
  peak: int | None = None

  @property
  def needed(self) -> int | None:
    """Arguments, temporaries, and outputs that have a place of their own."""
    if self.temporaries is None:
      return None
    return self.arguments + self.temporaries + self.outputs - self.aliased


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """A program compiled for its mesh, or refused for want of memory.

  Attributes:
    text: the lowered program (StableHLO), before the compiler of the devices.
    optimized: the compiled program (HLO), as one device runs it; empty when refused.
    memory: of one device.
    collectives: a row a kind; empty when refused.
    refusal: the compiler's sentence when the program does not fit; else None.
    seconds: that lowering and compiling took.
  """

  text: str
  optimized: str
  memory: Memory
  collectives: tuple[Collective, ...]
  refusal: str | None
  seconds: float


def compile_program(program: Any) -> CompiledStep:
  """Compiles the train step of a `vit_jax.training.program.Program` for its mesh.

  Raises:
    UserError: when the compiler fails for another reason than memory.
  """
  began = time.perf_counter()
  lowered = program.lower()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise UserError(f'The compiler failed: {first_line(error)}.') from None
    seconds = time.perf_counter() - began
    memory = _refused_memory(str(error), argument_bytes(program))
    return CompiledStep(lowered.as_text(), '', memory, (), first_line(error), seconds)
  seconds = time.perf_counter() - began
  stats = compiled.memory_analysis()
  memory = Memory(
    arguments=stats.argument_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    outputs=stats.output_size_in_bytes,
    aliased=stats.alias_size_in_bytes,
    peak=getattr(stats, 'peak_memory_in_bytes', None),
  )
  optimized = compiled.as_text()
  found = collectives(optimized, program.mesh.size)
  return CompiledStep(lowered.as_text(), optimized, memory, found, None, seconds)


def argument_bytes(program: Any) -> int:
  """What a device holds of the state and the batch, without the compiler's padding."""
  return sharded_bytes((program.abstract_state, program.abstract_batch))['device']


def _refused_memory(message: str, arguments: int) -> Memory:
  """The figures in a refusal; it tells the sum, or only the temporaries."""
  if match := re.search(rf'[Uu]sed {_SIZE} of {_SIZE} hbm', message):
    return Memory(arguments, max(_size(match[1], match[2]) - arguments, 0))
  if match := re.search(rf'temporaries \({_SIZE}\) exceeds', message):
    return Memory(arguments, _size(match[1], match[2]))
  return Memory(arguments, None)


def _size(number: str, unit: str) -> int:
  return int(float(number) * _UNITS[unit])
