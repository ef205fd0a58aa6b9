"""How many cycles the fused attention kernel takes, by the TPU compiler's schedule of it.

The compiler estimates no Pallas kernel, but writes out the bundles of instructions that it packs
one into, if it is told so when it is loaded: in a process of its own, schedule_process.py. A bundle
is a cycle. Waits for HBM are not in it; the kernel reads and writes while it computes.
"""

import dataclasses
import functools
import json
import math
import os
import re
import subprocess
import sys
import tempfile

from vit_jax.models.attention.fused_attention import BLOCK_IMAGES, is_unrolled
from vit_jax.planning.hlo import Hlo, Instruction, executed
from vit_jax.planning.topologies import SLICES, Topology
from vit_jax.text import printable, shortened

_PROCESS = 'vit_jax.planning.schedule_process'
_SECONDS = 600  # for that process
_TOKENS = re.compile(r'\b(bf16|f32)\[(\d+),(\d+),(\d+)\]')
_LOG_SUMS = re.compile(r'\bf32\[\d+,(\d+),(\d+),\d+\]')


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

  Calls that cannot be scheduled, as with a libtpu of other options, are left out; a note on stderr
  says why.
  """
  smallest = '1x1' if SLICES[topology.kind].dimensions == 2 else '2x2x1'  # of the same chips
  cycles = {}
  for line in executed(program):
    call = line.instruction
    if kernel := read_kernel(call):
      bundles = _count_bundles(f'{topology.kind}:{smallest}', kernel)
      if bundles is not None:
        forward, backward = bundles
        cycles[call.name] = kernel.repeats * (backward if is_backward(call) else forward)
  return cycles


def read_kernel(call: Instruction) -> Kernel | None:
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


def is_backward(call: Instruction) -> bool:
  """Whether a call of the kernel is its backward pass: the forward pass alone returns log sums.

  The names of both have 'transpose' in them where rematerialization repeats the forward pass.
  """
  return _LOG_SUMS.search(call.shape) is None


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
    flags = [os.environ.get('LIBTPU_INIT_ARGS', '')]
    flags += [f'--{name}={value}' for name, value in options.items()]
    try:
      result = subprocess.run(
        [sys.executable, '-m', _PROCESS, arguments],
        env=os.environ | {'LIBTPU_INIT_ARGS': ' '.join(flags).strip()},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
      )
    except subprocess.TimeoutExpired:
      return _note(f'it took more than {_SECONDS} s')
  if result.returncode:
    return _note((result.stderr.strip().splitlines() or [f'exit code {result.returncode}'])[-1])
  forward, backward = json.loads(result.stdout.splitlines()[-1])
  return forward, backward


def _note(reason: str) -> None:
  text = f'note: the fused attention kernel could not be scheduled: {shortened(reason)}'
  print(printable(text), file=sys.stderr, flush=True)
