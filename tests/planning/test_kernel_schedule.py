"""The kernel's arrays are read from a program; its bundles are counted by the real compiler."""

import importlib.util
import subprocess

import pytest

from vit_jax.planning import kernel_schedule
from vit_jax.planning.cycles import estimate_cycles
from vit_jax.planning.hlo import parse
from vit_jax.planning.kernel_schedule import Kernel, kernel_cycles
from vit_jax.planning.topologies import parse_topology

BLOCK = 'jvp(VisionTransformer)/Transformer/checkpoint'
ATTENTION = 'MultiHeadDotProductAttention_0'
# Of a block that rematerialization runs again: three calls of the kernel.
PROGRAM = """HloModule jit_train_step

ENTRY %main (q: bf16[197,20,768]) -> bf16[197,20,768] {
  %q = bf16[197,20,768]{2,1,0} parameter(0)
  %forward.1 = (bf16[197,20,768]{2,1,0:T(8,128)(2,1)}, f32[20,6,2,197]{3,2,1,0}) custom-call(%q, %q, %q), custom_call_target="tpu_custom_call", metadata={op_name="jit(train_step)/BLOCK/encoderblock_0/ATTENTION/pallas_call"}
  %recomputed.1 = (bf16[197,20,768]{2,1,0}, f32[20,6,2,197]{3,2,1,0}) custom-call(%q, %q, %q), custom_call_target="tpu_custom_call", metadata={op_name="jit(train_step)/transpose(BLOCK)/rematted_computation/encoderblock_0/ATTENTION/pallas_call"}
  %output = bf16[197,20,768]{2,1,0} get-tuple-element(%forward.1), index=0
  %sums = f32[20,6,2,197]{3,2,1,0} get-tuple-element(%forward.1), index=1
  %backward.1 = (bf16[197,20,768]{2,1,0}, bf16[197,20,768]{2,1,0}, bf16[197,20,768]{2,1,0}) custom-call(%q, %q, %q, %output, %q, %sums), custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[197,20,768]{2,1,0}, f32[20,6,2,197]{3,2,1,0}}, metadata={op_name="jit(train_step)/transpose(BLOCK)/encoderblock_0/ATTENTION/pallas_call"}
  ROOT %gradient = bf16[197,20,768]{2,1,0} get-tuple-element(%backward.1), index=0
}
""".replace('BLOCK', BLOCK).replace('ATTENTION', ATTENTION)  # noqa: E501


def test_cycles_are_bundles_times_blocks(monkeypatch):
  kernels = []

  def count_bundles(topology, kernel):
    kernels.append((topology, kernel))
    return 1000, 3000

  monkeypatch.setattr(kernel_schedule, '_count_bundles', count_bundles)
  program = parse(PROGRAM)
  cycles = kernel_cycles(program, parse_topology('v5e-1'))
  # 20 images are three blocks of eight, 12 heads six blocks of two.
  forward = 18 * 1000
  assert cycles == {'forward.1': forward, 'recomputed.1': forward, 'backward.1': 18 * 3000}
  assert set(kernels) == {('v5e:1x1', Kernel('bf16', 197, 20, 12, 64, 6))}

  estimate = estimate_cycles(program, cycles)
  assert {(row.part, row.direction): row.cycles for row in estimate.parts} == {
    ('attention', 'forward'): 18_000,
    ('attention', 'recomputed'): 18_000,
    ('attention', 'backward'): 54_000,
  }
  assert not estimate.uncounted


def test_a_kernel_that_is_a_loop_is_compiled_for_one_image():
  kernel = Kernel('bf16', 577, 20, 16, 64, 8)
  assert kernel.compiled_images == 1
  assert kernel.repeats == 20 * 8


def test_the_smallest_slice_of_the_same_chips_is_compiled_for(monkeypatch):
  names = []
  monkeypatch.setattr(kernel_schedule, '_count_bundles', lambda name, _: names.append(name))
  for name in ('v5e-256', 'v4-128', 'v3-8'):
    kernel_cycles(parse(PROGRAM), parse_topology(name))
  assert list(dict.fromkeys(names)) == ['v5e:1x1', 'v4:2x2x1', 'v3:1x1']
  assert all(parse_topology(name) for name in names)


def test_a_process_that_fails_or_hangs_leaves_a_note(monkeypatch, capsys):
  environments = []

  def run(command, env, timeout, **unused):
    environments.append(env)
    if len(environments) == 2:
      raise subprocess.TimeoutExpired(command, timeout)
    return subprocess.CompletedProcess(command, 1, '', 'Traceback\nValueError: no such option\n')

  monkeypatch.setattr(subprocess, 'run', run)
  monkeypatch.setenv('LIBTPU_INIT_ARGS', '--of_the_user=1')
  count_bundles = kernel_schedule._count_bundles.__wrapped__  # without its cache
  for reason in ('ValueError: no such option\n', 'it took more than 600 s\n'):
    assert count_bundles('v5e:1x1', Kernel('bf16', 17, 1, 2, 64, 1)) is None
    assert capsys.readouterr().err.endswith(f'could not be scheduled: {reason}')
  assert environments[0]['LIBTPU_INIT_ARGS'].startswith('--of_the_user=1 --xla_jf_dump_to=')


def test_a_compiler_that_writes_no_bundles_leaves_the_calls_uncounted(monkeypatch):
  monkeypatch.setattr(kernel_schedule, '_count_bundles', lambda *unused: None)
  cycles = kernel_cycles(parse(PROGRAM), parse_topology('v5e-1'))
  assert cycles == {}
  assert estimate_cycles(parse(PROGRAM), cycles) is None


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='needs libtpu')
def test_bundles_of_the_real_compiler():
  small, large = (
    kernel_schedule._count_bundles('v5e:1x1', Kernel('bf16', tokens, 1, 2, 64, 1))
    for tokens in (17, 130)
  )
  assert small and large
  assert 0 < small[0] < small[1] < large[1]
  assert small[0] < large[0] < large[1]
