"""How many cycles the fused attention kernel takes, by the TPU compiler's schedule of it.

The compiler estimates no Pallas kernel, but writes out the bundles of instructions that it packs
one into, if it is told so when it is loaded: here, in a process of its own. A bundle is a cycle.
Waits for HBM are not in it; the kernel reads and writes while it computes.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import jax

from vit_jax.hardware import vector_memory
from vit_jax.models.attention.fused_attention import BLOCK_IMAGES, fused_attention, is_unrolled
from vit_jax.planning.hlo import Hlo, Instruction, executed, parse
from vit_jax.planning.topologies import Topology, get_devices, parse_topology, prepare_backend

_SECONDS = 600  # for the other process
_TOKENS = re.compile(r'\b(bf16|f32)\[(\d+),(\d+),(\d+)\]')
_LOG_SUMS = re.compile(r'\bf32\[\d+,(\d+),(\d+),\d+\]')
_HEADER_LINES = 4  # of a table of bundles


@dataclasses.dataclass(frozen=True)
class Kernel:
  """The fused attention of a program, by the arrays of one device."""

  dtype: str
  tokens: int
  images: int
  heads: int
  head_dim: int
  groups: int  # blocks of heads

  @property
  def compiled_images(self) -> int:
    """The images that are compiled for: a block, or one where the kernel is a loop over them."""
    images = min(self.images, BLOCK_IMAGES)
    return images if is_unrolled(images, self.heads // self.groups, self.tokens) else 1

  @property
  def repeats(self) -> int:
    """How often the compiled bundles run."""
    return math.ceil(self.images / self.compiled_images) * self.groups


def kernel_cycles(program: Hlo, topology: Topology) -> dict[str, int]:
  """{custom call: cycles} of each call of the fused attention kernel in a program.

  Calls that cannot be scheduled, as with a libtpu of other options, are left out.
  """
  kernels = {
    line.instruction.name: kernel
    for line in executed(program)
    if (kernel := _read_kernel(line.instruction)) is not None
  }
  cycles = {}
  for line in executed(program):
    if kernel := kernels.get(line.instruction.name):
      bundles = _count_bundles(topology.name, kernel)
      if bundles is not None:
        forward, backward = bundles
        is_backward = 'transpose(' in line.instruction.op_name
        cycles[line.instruction.name] = kernel.repeats * (backward if is_backward else forward)
  return cycles


def _read_kernel(call: Instruction) -> Kernel | None:
  """The kernel of a custom call; None for another instruction."""
  if call.opcode != 'custom-call' or 'tpu_custom_call' not in call.rest:
    return None
  tokens, sums = _TOKENS.search(call.shape), _LOG_SUMS.search(call.shape + call.rest)
  if not tokens or not sums:
    return None
  dtype, (num_tokens, images, width) = tokens[1], map(int, tokens.group(2, 3, 4))
  groups, heads_of_group = map(int, sums.groups())
  heads = groups * heads_of_group
  return Kernel(dtype, num_tokens, images, heads, width // heads, groups)


@functools.cache
def _count_bundles(topology: str, kernel: Kernel) -> tuple[int, int] | None:
  """(forward, backward) bundles of one block; None if the compiler does not write them."""
  with tempfile.TemporaryDirectory(prefix='vit_jax_kernel_') as folder:
    options = {
      'xla_jf_dump_to': folder,
      'xla_jf_dump_llo_text': 'true',
      'xla_jf_dump_llo_pass_label_regex': '.*final_hlo.*',
    }
    arguments = json.dumps([topology, dataclasses.asdict(kernel), folder])
    flags = ' '.join(f'--{name}={value}' for name, value in options.items())
    result = subprocess.run(
      [sys.executable, '-m', __name__, arguments],
      env=os.environ | {'LIBTPU_INIT_ARGS': flags},
      capture_output=True,
      text=True,
      timeout=_SECONDS,
    )
  try:
    forward, backward = json.loads(result.stdout.splitlines()[-1])
  except (IndexError, ValueError):
    return None
  return forward, backward


def _compile(topology: Topology, kernel: Kernel) -> Hlo:
  """One block of the kernel and its backward pass, compiled for a chip."""
  device = get_devices(topology)[0]
  attend = functools.partial(fused_attention, vector_memory=vector_memory(device.device_kind))

  def forward_and_backward(query: Any, key: Any, value: Any, grad: Any) -> Any:
    output, pull = jax.vjp(attend, query, key, value)
    return output, pull(grad)

  shape = (kernel.compiled_images, kernel.tokens, kernel.heads, kernel.head_dim)
  dtype = {'bf16': 'bfloat16', 'f32': 'float32'}[kernel.dtype]
  sharding = jax.sharding.SingleDeviceSharding(device)
  array = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
  compiled = jax.jit(forward_and_backward).lower(*[array] * 4).compile()
  return parse(compiled.as_text() or '')


def main() -> None:
  name, fields, folder = json.loads(sys.argv[1])
  topology = parse_topology(name)
  prepare_backend([topology])
  program = _compile(topology, Kernel(**fields))
  bundles = [0, 0]
  for line in executed(program):
    call = line.instruction
    if _read_kernel(call) is not None:
      (path,) = pathlib.Path(folder).glob(f'*-{call.name}-*final_hlo-static-per-bundle-*.txt')
      rows = len(path.read_text().splitlines()) - _HEADER_LINES
      bundles['transpose(' in call.op_name] += rows
  print(json.dumps(bundles))


if __name__ == '__main__':
  main()
