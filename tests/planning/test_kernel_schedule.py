"""The kernel's arrays are read from a program; its bundles are counted by the real compiler."""

import importlib.util

import pytest

from vit_jax.planning import kernel_schedule
from vit_jax.planning.cycles import estimate_cycles
from vit_jax.planning.hlo import parse
from vit_jax.planning.kernel_schedule import Kernel, kernel_cycles
from vit_jax.planning.topologies import parse_topology

OP_NAME = (
  'jvp(VisionTransformer)/Transformer/encoderblock_0/MultiHeadDotProductAttention_0/pallas_call'
)
PROGRAM = """HloModule jit_train_step

ENTRY %main (q: bf16[197,20,768]) -> bf16[197,20,768] {
  %q = bf16[197,20,768]{2,1,0} parameter(0)
  %forward.1 = (bf16[197,20,768]{2,1,0:T(8,128)(2,1)}, f32[20,6,2,197]{3,2,1,0}) custom-call(%q, %q, %q), custom_call_target="tpu_custom_call", metadata={op_name="jit(train_step)/OP_NAME"}
  %output = bf16[197,20,768]{2,1,0} get-tuple-element(%forward.1), index=0
  %sums = f32[20,6,2,197]{3,2,1,0} get-tuple-element(%forward.1), index=1
  %backward.1 = (bf16[197,20,768]{2,1,0}, bf16[197,20,768]{2,1,0}, bf16[197,20,768]{2,1,0}) custom-call(%q, %q, %q, %output, %q, %sums), custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[197,20,768]{2,1,0}, f32[20,6,2,197]{3,2,1,0}}, metadata={op_name="jit(train_step)/transpose(OP_NAME)"}
  ROOT %gradient = bf16[197,20,768]{2,1,0} get-tuple-element(%backward.1), index=0
}
""".replace('OP_NAME', OP_NAME)  # noqa: E501


def test_cycles_are_bundles_times_blocks(monkeypatch):
  kernels = []

  def count_bundles(topology, kernel):
    kernels.append((topology, kernel))
    return 1000, 3000

  monkeypatch.setattr(kernel_schedule, '_count_bundles', count_bundles)
  program = parse(PROGRAM)
  cycles = kernel_cycles(program, parse_topology('v5e-1'))
  # 20 images are three blocks of eight, 12 heads six blocks of two.
  assert cycles == {'forward.1': 18 * 1000, 'backward.1': 18 * 3000}
  assert set(kernels) == {('v5e-1', Kernel('bf16', 197, 20, 12, 64, 6))}

  estimate = estimate_cycles(program, cycles)
  assert {(row.part, row.direction): row.cycles for row in estimate.parts} == {
    ('attention', 'forward'): 18_000,
    ('attention', 'backward'): 54_000,
  }
  assert not estimate.uncounted


def test_a_kernel_that_is_a_loop_is_compiled_for_one_image():
  kernel = Kernel('bf16', 577, 20, 16, 64, 8)
  assert kernel.compiled_images == 1
  assert kernel.repeats == 20 * 8


def test_a_compiler_that_writes_no_bundles_leaves_the_calls_uncounted(monkeypatch):
  monkeypatch.setattr(kernel_schedule, '_count_bundles', lambda *unused: None)
  cycles = kernel_cycles(parse(PROGRAM), parse_topology('v5e-1'))
  assert cycles == {}
  assert estimate_cycles(parse(PROGRAM), cycles) is None


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='needs libtpu')
def test_bundles_of_the_real_compiler():
  small, large = (
    kernel_schedule._count_bundles('v5e-1', Kernel('bf16', tokens, 1, 2, 64, 1))
    for tokens in (17, 130)
  )
  assert small and large
  assert 0 < small[0] < small[1] < large[1]
  assert small[0] < large[0] < large[1]
