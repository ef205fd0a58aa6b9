"""Cycles by part of the model, bytes to and from HBM, step times; on texts of real programs."""

import csv
import dataclasses
import pathlib
import re

import pytest

from vit_jax import plan as plan_command
from vit_jax.errors import UserError
from vit_jax.hardware import CHIPS
from vit_jax.planning import plan_report, planner, profile_page, topologies
from vit_jax.planning.compile import Memory
from vit_jax.planning.cycles import estimate_cycles
from vit_jax.planning.hlo import num_bytes, parse
from vit_jax.planning.planner import Plan
from vit_jax.planning.step_time import PUBLISHED_FACTOR, step_time
from vit_jax.planning.topologies import parse_topology
from vit_jax.planning.traffic import hbm_bytes

FOLDER = pathlib.Path(__file__).with_name('hlo')

# Two kernels, of which the first states its cost; by libtpu 0.0.50.1 for one v5e chip.
PALLAS = """
HloModule jit_f, is_scheduled=true

%fused_computation (param_0.3: f32[256,256], param_1.4: f32[256,256]) -> f32[256,256] {
  %param_0.3 = f32[256,256]{1,0:T(8,128)S(1)} parameter(0)
  %param_1.4 = f32[256,256]{1,0:T(8,128)S(1)} parameter(1)
  ROOT %convolution.1 = f32[256,256]{1,0:T(8,128)S(1)} convolution(%param_0.3, %param_1.4), dim_labels=bf_io->bf
}

ENTRY %main.1 (x.1: f32[256,256]) -> f32[256,256] {
  %x.2 = f32[256,256]{1,0:T(8,128)} parameter(0), metadata={op_name="x"}
  %copy-start = (f32[256,256]{1,0:T(8,128)S(1)}, f32[256,256]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x.2)
  %f.2 = f32[256,256]{1,0:T(8,128)S(1)} custom-call(%x.2), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/pallas_call"}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"131072000","transcendentals":"65536"}}}
  %copy-done = f32[256,256]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %fusion.x = f32[256,256]{1,0:T(8,128)S(1)} fusion(%f.2, %copy-done), kind=kOutput, calls=%fused_computation, metadata={op_name="jit(f)/dot_general"}, backend_config={"window_config":{"estimated_cycles":"512"}}
  ROOT %f.3 = f32[256,256]{1,0:T(8,128)} custom-call(%fusion.x), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/pallas_call"}
}
"""  # noqa: E501

# A loop whose fusions read one slice of an array in HBM, and write one.
SLICES = """
HloModule jit_f

%bitcast_fusion (p.0: bf16[12,64,128], p.1: s32[]) -> bf16[64,128] {
  %p.0 = bf16[12,64,128]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %slice.1 = bf16[1,64,128]{2,1,0} dynamic-slice(%p.0, %p.1), dynamic_slice_sizes={1,64,128}
  ROOT %bitcast.1 = bf16[64,128]{1,0} bitcast(%slice.1)
}

%fused (q.0: bf16[12,64,128], q.1: s32[], q.2: bf16[12,64,128]) -> bf16[12,64,128] {
  %q.0 = bf16[12,64,128]{2,1,0} parameter(0)
  %q.1 = s32[] parameter(1)
  %q.2 = bf16[12,64,128]{2,1,0} parameter(2)
  %fusion.1 = bf16[64,128]{1,0} fusion(%q.0, %q.1), kind=kLoop, calls=%bitcast_fusion
  %negate.1 = bf16[64,128]{1,0} negate(%fusion.1)
  %bitcast.2 = bf16[1,64,128]{2,1,0} bitcast(%negate.1)
  ROOT %update.1 = bf16[12,64,128]{2,1,0} dynamic-update-slice(%q.2, %bitcast.2, %q.1)
}

%body (b: (s32[], bf16[12,64,128], bf16[12,64,128])) -> (s32[], bf16[12,64,128], bf16[12,64,128]) {
  %b = (s32[], bf16[12,64,128]{2,1,0}, bf16[12,64,128]{2,1,0}) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%b), index=0
  %x = bf16[12,64,128]{2,1,0} get-tuple-element(%b), index=1
  %y = bf16[12,64,128]{2,1,0} get-tuple-element(%b), index=2
  %z = bf16[12,64,128]{2,1,0} fusion(%x, %i, %y), kind=kLoop, calls=%fused
  ROOT %t = (s32[], bf16[12,64,128]{2,1,0}, bf16[12,64,128]{2,1,0}) tuple(%i, %x, %z)
}

%condition (c: (s32[], bf16[12,64,128], bf16[12,64,128])) -> pred[] {
  %limit = s32[] constant(12)
  %c = (s32[], bf16[12,64,128]{2,1,0}, bf16[12,64,128]{2,1,0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (a: bf16[12,64,128]) -> bf16[12,64,128] {
  %a = bf16[12,64,128]{2,1,0} parameter(0)
  %w = (s32[], bf16[12,64,128]{2,1,0}, bf16[12,64,128]{2,1,0}) while(%s), condition=%condition, body=%body
  ROOT %r = bf16[12,64,128]{2,1,0} get-tuple-element(%w), index=2
}
"""  # noqa: E501


def read(name: str):
  return parse((FOLDER / name).read_text())


def by_part(cycles) -> dict[tuple[str, str], int]:
  return {(row.part, row.direction): row.cycles for row in cycles.parts}


def test_a_fusion_counts_once_for_the_part_and_pass_of_its_main_operation():
  cycles = estimate_cycles(read('b16_v5e.hlo'))
  assert by_part(cycles) == {
    ('QKV projections', 'forward'): 326_272,  # a copy after the bias of the keys
    ('QKV projections', 'backward'): 521_737,
    ('output projection', 'forward'): 327_292,
    ('attention', 'forward'): 1_304_354,
    ('MLP', 'forward'): 1_064_212,
    ('MLP', 'backward'): 946_924,
    ('norms', 'forward'): 2306,
    ('patch embedding', 'backward'): 240_262,
    ('head and loss', 'backward'): 12_691,
    ('optimizer', 'update'): 2738,
  }
  assert cycles.total == sum(by_part(cycles).values())
  assert cycles.uncounted == {'ConcatBitcast': 1} and cycles.uncounted_flops == 0
  assert cycles.heaviest[0].name == 'fusion.3123' and cycles.heaviest[0].cycles == 1_304_354
  assert cycles.heaviest[0].shape == '(bf16[128,12,197], bf16[128,12,197,197])'


def test_a_loop_counts_once_an_iteration_and_recomputation_apart():
  cycles = estimate_cycles(read('scan_v5e.hlo'))
  assert {(row.part, row.direction): (row.cycles, row.instructions) for row in cycles.parts} == {
    ('QKV projections', 'forward'): (3 * 2702, 3),
    ('QKV projections', 'backward'): (3 * 2303, 3),
    ('MLP', 'backward'): (3 * 448, 3),
    ('MLP', 'recomputed'): (3 * 2674, 3),
    ('scan over blocks', 'forward'): (3 * 2133, 3),
    ('scan over blocks', 'backward'): (3 * 1825, 3),
  }


def test_custom_calls_are_counted_with_the_flops_they_state():
  cycles = estimate_cycles(parse(PALLAS))
  assert cycles.total == 512
  assert cycles.uncounted == {'tpu_custom_call': 2} and cycles.uncounted_flops == 131_072_000
  assert 'beyond the 1.311e+08 FLOPs they state' in plan_report.not_estimated(cycles)


def test_collectives_are_a_part():
  text = PALLAS.replace('} convolution(', '} all-reduce(')
  assert by_part(estimate_cycles(parse(text))) == {('collectives', 'update'): 512}


def test_a_program_without_estimates_has_no_cycles():
  assert estimate_cycles(parse(SLICES)) is None


def test_bytes_in_hbm():
  array = 'bf16[16,768]{1,0:T(8,128)(2,1)}'
  assert num_bytes(f'({array}, f32[]{{:S(6)}})') == 16 * 768 * 2 + 4
  assert num_bytes(f'({array}, f32[8]{{0:T(8)S(1)}})', in_hbm=True) == 16 * 768 * 2
  # The copy reads x, as the first kernel does; the second one writes its result.
  assert hbm_bytes(parse(PALLAS)) == 3 * 256 * 256 * 4


@pytest.mark.parametrize(
  ('call', 'size'),
  [  # each reads x
    ('(f32[8,100], f32[32,100]) all-gather-start(%x), dimensions={0}', (8 + 32) * 400),
    ('((f32[8,100], f32[8]), (f32[32,100], f32[32])) all-gather-start(%x, %y)', 40 * 404),
    ('(f32[8,100], f32[8,100], u32[], u32[]) collective-permute-start(%x)', 16 * 400),
    ('((f32[8,100]), f32[2,100], u32[]) async-start(%x), calls=%scatter', (8 + 2) * 400),
    ('f32[8,100] all-reduce-start(%x), to_apply=%add', 16 * 400),
  ],
)
def test_an_asynchronous_collective_reads_its_operands_once(call, size):
  lines = ['  %x = f32[8,100] parameter(0)', '  %y = f32[8] parameter(1)', f'  %start = {call}']
  text = '\n'.join(['ENTRY %main (x: f32[8,100]) -> f32[32,100] {', *lines, '}'])
  text = re.sub(r'(f32\[[\d,]*\]|u32\[\])', r'\1{}', text)  # layouts, as the compiler writes them
  assert hbm_bytes(parse(text)) == size


def test_of_a_sliced_array_the_slice_moves():
  assert hbm_bytes(parse(SLICES)) == 12 * 2 * (64 * 128 * 2)


def test_step_times_of_a_chip_with_two_devices():
  cycles = estimate_cycles(read('b16_v5e.hlo'))
  times = step_time(CHIPS['v3'], 4, int(4 * 123e12), int(450e9), int(14e9), cycles)
  assert times.arithmetic == pytest.approx(1)
  assert times.hbm == pytest.approx(1)  # a core has half of the chip's bandwidth
  assert times.interconnect == pytest.approx(0.1)
  assert times.cycles == pytest.approx(cycles.total / 0.94e9)
  assert times.predicted == max(times.arithmetic, times.hbm)  # which exceed the cycles
  assert times.expected == PUBLISHED_FACTOR * times.predicted


def test_step_times_without_published_figures():
  cycles = estimate_cycles(parse(PALLAS))
  assert step_time(None, 1, 1, 1, 1, None).predicted is None
  assert step_time(CHIPS['v6e'], 1, 1, 1, 1, cycles).predicted is None
  v5e = step_time(CHIPS['v5e'], 1, 1, 1, 1, cycles)
  assert v5e.predicted == pytest.approx(512 / 1.5e9 + 131_072_000 / 197e12)


def make_plan(topology: str = 'v5e:1x1', file: str = 'scan_v5e.hlo') -> Plan:
  parsed = parse_topology(topology)
  cycles = estimate_cycles(read(file))
  return Plan(
    topology=parsed,
    changes={},
    mesh={'data': 1},
    num_slices=1,
    num_chips=1,
    num_devices=1,
    num_hosts=1,
    parameters=1,
    trained_parameters=1,
    global_batch=8,
    host_batch=8,
    device_batch=8,
    micro_batch=8,
    memory=Memory(1, 1),
    limit=2**34,
    fits=True,
    collectives=(),
    train_flops=10**8,
    recomputed_flops=10**7,
    step_time=step_time(parsed.chip, 1, 11 * 10**7, 10**6, 0, cycles),
    cycles=cycles,
    hbm_bytes=10**6,
    total_steps=3_600_000_000,
    compile_seconds=1.0,
  )


def test_the_page_of_a_plan_has_the_prediction_beside_its_bounds():
  plan = make_plan()
  seconds = plan.cycles.total / 1.5e9
  assert plan.step_time.predicted == seconds
  assert plan.mfu == pytest.approx(10**8 / 197e12 / seconds)
  assert plan.expected_chip_hours == pytest.approx(PUBLISHED_FACTOR * seconds * 1e6)
  page = plan_report.page(plan)
  assert f'{8 / seconds:,.0f} images/s, {plan.mfu * 100:.1f} % of peak' in page
  assert f'at {PUBLISHED_FACTOR} times the prediction' in page
  assert re.search(r'MLP +25\.8 % \(backward 3\.7, recomputed 22\.1\)', page)
  fields = plan_report.as_json(plan)
  assert fields['step_time']['predicted'] == seconds and fields['cycles']['total'] > 0
  assert plan_report.row(plan)['mfu'] == round(plan.mfu, 3)


def test_a_chip_without_a_clock_has_cycles_but_no_seconds():
  plan = make_plan('v6e:1x1')
  page = plan_report.page(plan)
  assert 'unknown: no clock of this chip is published' in page and 'MLP' in page
  assert plan.expected_hours is plan.mfu is None and plan.hours is not None
  profile_page.as_html(plan, plan.cycles)


def test_the_profile_as_csv(tmp_path):
  plan = make_plan()
  profile_page.write(plan, plan.cycles, str(tmp_path / 'profile.csv'))
  rows = list(csv.DictReader((tmp_path / 'profile.csv').read_text().splitlines()))
  assert {(row['part'], row['pass']): int(row['cycles']) for row in rows} == by_part(plan.cycles)
  assert sum(float(row['share']) for row in rows) == pytest.approx(1, abs=1e-4)
  total = sum(float(row['milliseconds']) for row in rows)
  assert total == pytest.approx(plan.step_time.predicted * 1e3, rel=0.01)


def test_the_profile_as_html_needs_no_other_file(tmp_path):
  plan = make_plan()
  profile_page.write(plan, plan.cycles, str(tmp_path / 'profile.html'))
  page = (tmp_path / 'profile.html').read_text()
  assert not re.search(r'<script|src=|href="(?!data:)|url\(', page)
  assert 'rematted_computation/EncoderBlock/MlpBlock_0/Dense_0' in page  # a heavy instruction
  widths = [float(width) for width in re.findall(r'style="width: ([\d.]+)%', page)]
  assert len(widths) == len(plan.cycles.parts) and max(widths) <= 100


@pytest.mark.parametrize(
  ('path', 'topology', 'message'),
  [
    ('profile.txt', 'v5e:1x1', 'ends in .html or .csv'),
    ('profile.csv', 'cpu:8', 'needs a TPU topology'),
  ],
)
def test_a_profile_that_cannot_be(path, topology, message):
  with pytest.raises(UserError, match=message):
    profile_page.check_path(path, parse_topology(topology))


def test_a_profile_that_cannot_be_written(tmp_path):
  plan = make_plan()
  with pytest.raises(UserError, match='cannot be written'):
    profile_page.write(plan, plan.cycles, str(tmp_path / 'missing' / 'profile.csv'))


def test_a_step_that_does_not_fit_has_no_profile(command, monkeypatch, tmp_path):
  plan = dataclasses.replace(make_plan(), fits=False, cycles=None, hbm_bytes=None)
  monkeypatch.setattr(planner, 'make_plan', lambda *unused: plan)
  monkeypatch.setattr(topologies, 'prepare_backend', lambda topologies: None)
  path = tmp_path / 'profile.html'
  flags = ('--config=configs/quickstart.py', '--topology=v5e:1x1', '--no_fallback')
  code, _, err = command(plan_command, *flags, f'--profile={path}')
  assert code == 4 and not path.exists()
  assert f'no profile: the step does not fit, so {path} was not written' in err
