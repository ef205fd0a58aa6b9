"""The plan command compiles the train step of `main`, reports what it needs and what would fit."""

import csv
import dataclasses
import json
import os
import pathlib
import re

import jax
import pytest

from tests.helpers import NO_TRANSFORMER, TINY, run, start
from vit_jax.config import load_config
from vit_jax.errors import UserError
from vit_jax.models import flops
from vit_jax.planning import fallback, plan_report, planner
from vit_jax.planning.compile import CompiledStep, Memory, argument_bytes
from vit_jax.planning.planner import Labels
from vit_jax.planning.step_time import StepTime
from vit_jax.planning.topologies import parse_topology

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason='written for eight devices')

CONFIG = '--config=configs/quickstart.py'
# Wide enough for parameters to be sharded; with dropout (TINY), so that the step's key counts.
SHARDED = ('--config.mesh.fsdp=2', '--config.model.width=64', '--config.model.mlp_dim=256')
CPU_8 = parse_topology('cpu:8')
LABELS = Labels(10)
ONE_STEP = ('--config.total_steps=1', '--config.schedule.warmup_steps=0')


def tiny_config(*overrides: str):
  return load_config('configs/quickstart.py', [*TINY, *overrides])


def train_steps(folder: pathlib.Path) -> list[str]:
  """The lowered train steps that a process dumped, without source locations."""
  texts = [path.read_text() for path in sorted(folder.glob('*jit_train_step*'))]
  lines = [[line for line in text.splitlines() if line[:4] != '#loc'] for text in texts]
  return [re.sub(r' loc\(("[^"]*"(\(#loc\d*\))?|.*?)\)', '', '\n'.join(text)) for text in lines]


def test_plan_compiles_what_main_runs(tmp_path):
  def start_command(name: str, *args: str, **env: str):
    env = os.environ | {'JAX_DUMP_IR_TO': str(tmp_path / name)} | env
    return start(name, CONFIG, *TINY, *SHARDED, *ONE_STEP, *args, env=env)

  cpus = {'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu'}
  for process in (
    start_command('main', f'--workdir={tmp_path}/run', **cpus),
    start_command('plan', '--topology=cpu:8'),
  ):
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
  (main,), (plan,) = train_steps(tmp_path / 'main'), train_steps(tmp_path / 'plan')
  assert 'module @jit_train_step' in main and len(main) > 10_000
  assert plan == main


@pytest.mark.parametrize(
  'override', ['model.remat=full', 'model.scan_blocks=True', 'mesh.fsdp=4', 'optimizer.b1=0.8']
)
def test_another_config_is_another_program(override):
  """So the test above would notice a difference."""
  texts = {
    planner.build_for(tiny_config(*SHARDED, *overrides), CPU_8, LABELS).lower().as_text()
    for overrides in ((), (f'--config.{override}',))
  }
  assert len(texts) == 2


def test_json_has_batches_mesh_memory_and_collectives():
  flags = ('--config.accumulation_steps=2', '--config.model.depth=1', '--json')
  result = run('plan', CONFIG, *TINY, *flags, '--topology=cpu:4')
  assert result.returncode == 0, result.stderr
  plan = json.loads(result.stdout)
  assert 'compiling for cpu:4' in result.stderr
  batches = [plan[f'{unit}_batch'] for unit in ('global', 'host', 'device', 'micro')]
  assert batches == [16, 16, 4, 2]
  assert plan['mesh'] == {'data': 4, 'fsdp': 1, 'tensor': 1}
  assert plan['fits'] is plan['limit'] is plan['min_step_seconds'] is None
  assert plan['memory']['needed'] > plan['memory']['arguments'] > 0
  # Data parallel: the gradients, once a micro-batch or once a step, and the loss.
  (reduced,) = (row for row in plan['collectives'] if row['kind'] == 'all-reduce')
  gradients = 4 * plan['parameters'] * 2 * 3 / 4
  assert gradients <= reduced['bytes'] <= 2 * gradients + 1000


def test_sam_passes_through_the_batch_twice(monkeypatch):
  step = CompiledStep('', '', Memory(1, 1), (), None, 1.0)
  monkeypatch.setattr(planner, 'compile_program', lambda *_: step)
  config = tiny_config('--config.sam_rho=0.1', '--config.model.remat=full')
  plan = planner.make_plan(config, CPU_8, LABELS)
  model = planner.build_for(config, CPU_8, LABELS).model
  assert plan.train_flops == 2 * 16 * flops.train_flops(model, (8, 8)) > 0
  assert plan.recomputed_flops == 2 * 16 * flops.recomputed_flops(model, (8, 8)) > 0


@pytest.mark.parametrize(('remat', 'is_less'), [('dots', True), ('full', False)])
def test_a_fused_kernel_leaves_no_attention_to_recompute(remat, is_less, monkeypatch):
  counts = []
  for text in ('stablehlo.dot_general', 'stablehlo.custom_call @tpu_custom_call'):
    step = CompiledStep(text, '', Memory(1, 1), (), None, 1.0)
    monkeypatch.setattr(planner, 'compile_program', lambda *_, step=step: step)
    config = tiny_config(f'--config.model.remat={remat}')
    counts.append(planner.make_plan(config, CPU_8, LABELS).recomputed_flops)
  assert (counts[1] == 0) == is_less and (counts[0] == counts[1]) != is_less


def test_a_sweep_prints_a_table_and_writes_it(tmp_path):
  out = tmp_path / 'table.csv'
  flags = ('--config.model.depth=1', '--sweep=cpu:2,cpu:3,cpu:4', f'--out={out}')
  result = run('plan', CONFIG, *TINY, *flags)
  assert result.returncode == 0, result.stderr
  rows = list(csv.DictReader(out.read_text().splitlines()))
  assert [(row['topology'], row['mesh'], row['per_device']) for row in rows] == [
    ('cpu:2', '2x1x1', '8'),
    ('cpu:4', '4x1x1', '4'),
  ]
  assert 'cpu:3 is left out: batch_size is 16' in result.stderr
  assert result.stdout.count('\n') == 3 and 'cpu:4' in result.stdout


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('--topology=v9:2x2',), "'v9:2x2' is not a topology; use v2, v3"),
    (('--topology=cpu:3',), 'which the 3 shards of the batch'),
    (('--topology=cpu:4', '--out=x.csv'), '--out needs --sweep'),
    (('--sweep=cpu:4,cpu:8', '--profile=x.csv'), '--profile needs --topology'),
    (('--topology=cpu:4', '--profile=x.html'), '--profile needs a TPU topology'),
    (('--sweep=cpu:3,cpu:5',), 'none of these topologies'),
    (
      ('--topology=cpu:4', '--config.data.train.source=folder:/nowhere'),
      'There is no folder /nowhere',
    ),
    ((), 'one of the arguments --topology --sweep is required'),
  ],
)
def test_a_users_mistake_is_one_sentence(args, message):
  result = run('plan', CONFIG, *TINY, *args)
  assert result.returncode == 2
  assert result.stderr.splitlines()[-1].startswith('error: ')
  assert message in result.stderr and 'Traceback' not in result.stderr
  assert result.stdout == ''


def test_a_missing_libtpu_is_one_sentence(tmp_path):
  blocked = 'import sys; sys.modules["libtpu"] = None'  # as if it were not installed
  (tmp_path / 'sitecustomize.py').write_text(blocked + '\n')
  path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get('PYTHONPATH')])])
  env = os.environ | {'PYTHONPATH': path}
  result = run('plan', CONFIG, *TINY, '--topology=v5e-4', env=env)
  assert result.returncode == 2
  (line,) = result.stderr.splitlines()
  assert line.startswith('error: ') and 'libtpu, which is not installed; pip install' in line


class TestFallbackConfigs:
  def changes(self, limit: int, *overrides: str):
    return list(fallback.fallback_configs(tiny_config(*overrides), CPU_8, LABELS, limit))

  def test_the_cheapest_come_first(self):
    assert self.changes(2**40, '--config.batch_size=32') == [
      {'model.remat': 'dots'},
      {'model.remat': 'full'},
      *({'model.remat': 'full', 'mesh.fsdp': size} for size in (2, 4, 8)),
      *({'model.remat': 'full', 'mesh.fsdp': 8, 'accumulation_steps': n} for n in (2, 4)),
    ]

  def test_fsdp_grows_at_the_expense_of_data(self):
    overrides = '--config.mesh.data=4', '--config.mesh.fsdp=2', '--config.model.remat=dots'
    assert self.changes(2**40, *overrides) == [
      {'model.remat': 'full'},
      {'model.remat': 'full', 'mesh.fsdp': 4, 'mesh.data': 2},
      {'model.remat': 'full', 'mesh.fsdp': 8, 'mesh.data': 1},
      {'model.remat': 'full', 'mesh.fsdp': 8, 'mesh.data': 1, 'accumulation_steps': 2},
    ]

  def test_parameters_that_do_not_fit_are_sharded_first(self):
    def arguments(fsdp: int) -> int:
      config = tiny_config(*SHARDED, f'--config.mesh.fsdp={fsdp}')
      return argument_bytes(planner.build_for(config, CPU_8, LABELS))

    assert self.changes(arguments(4) + 1, *SHARDED)[:3] == [
      {'mesh.fsdp': 4},
      {'mesh.fsdp': 4, 'model.remat': 'dots'},
      {'mesh.fsdp': 4, 'model.remat': 'full'},
    ]
    assert self.changes(arguments(8), *SHARDED) == []  # eight devices are too few

  def test_a_resnet_has_no_remat(self):
    candidates = self.changes(2**40, *NO_TRANSFORMER, '--config.model.variant=R50x1')
    assert candidates[0] == {'mesh.fsdp': 2}
    assert not any('model.remat' in changes for changes in candidates)

  def test_the_first_that_fits_is_the_last(self):
    # On a CPU only smaller micro-batches change what a step this small needs.
    overrides = ['--config.batch_size=256', '--config.model.remat=full', '--config.mesh.fsdp=8']
    config = tiny_config(*overrides)
    plan = planner.make_plan(config, CPU_8, LABELS, limit=2**40)
    assert plan.fits
    limit = plan.memory.needed - 1
    plan = planner.make_plan(config, CPU_8, LABELS, limit)
    assert plan.fits is False and plan.bytes_over_limit == 1
    assert 'does not fit by 0.00 MiB' in plan_report.page(plan)
    *others, last = fallback.fallback_plans(config, CPU_8, LABELS, limit)
    assert not any(plan.fits for plan in others)
    assert last.fits and last.memory.needed <= limit
    assert last.flags == '--config.accumulation_steps=2'
    assert last.micro_batch == plan.micro_batch // 2
    assert last.flags in plan_report.fallback_line(last)


def test_classes_are_counted_or_set_by_the_user():
  assert planner.read_labels(tiny_config()) == (10, False)
  config = tiny_config('--config.data.train.source=array_record:/nowhere')
  with pytest.raises(UserError, match='--config.data.num_classes=N'):
    planner.read_labels(config)
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_classes=7))
  assert planner.read_labels(config) == (7, False)


def test_minimum_step_time_and_chip_hours():
  """The paper's H/14 on JFT, by hand."""
  config = load_config('configs/vit_h14.py:jft')
  topology = parse_topology('v3-256')
  forward = 2 * 167.29e9 + 2 * 1280 * 1280 + 2 * 1280 * (18_291 - 1000)  # test_flops.py
  min_step_seconds = 3 * forward * 4096 / (128 * 123e12)
  plan = planner.Plan(
    topology=topology,
    changes={},
    mesh={'data': 256},
    num_slices=1,
    num_chips=128,
    num_devices=256,
    num_hosts=32,
    parameters=1,
    trained_parameters=1,
    global_batch=4096,
    host_batch=128,
    device_batch=16,
    micro_batch=16,
    memory=Memory(1, 1),
    limit=2**34,
    fits=True,
    collectives=(),
    train_flops=3 * int(forward) * 4096,
    recomputed_flops=0,
    step_time=StepTime(min_step_seconds, None, None, None),
    cycles=None,
    hbm_bytes=None,
    total_steps=config.total_steps,
    compile_seconds=1.0,
  )
  assert topology.num_chips == 128 and topology.chip.peak_flops == 123e12
  days = 2 * plan.hours * 128 / 24
  # Table 2 of the paper: 2.5k TPUv3-core-days, so the bound is below it, but not far below.
  assert 500 < days < 2500
  assert 'a core' in plan_report.page(plan)


def test_a_plan_of_an_absent_slice(tmp_path):
  pytest.importorskip('libtpu')
  args = (
    *SHARDED,
    '--config.model.depth=3',
    '--config.model.scan_blocks=True',
    '--topology=v5e:2x2',
    f'--profile={tmp_path}/profile.csv',
  )
  result = run('plan', CONFIG, *TINY, *args, '--json')
  assert result.returncode == 0, result.stderr
  assert result.stderr.count('\n') == 2  # progress and profile; the compiler itself is quiet
  plan = json.loads(result.stdout)
  assert plan['fits'] is True and plan['limit'] == int(15.75 * 2**30)
  gathered = {row['kind']: row['bytes'] for row in plan['collectives']}['all-gather']
  # The kernels of the MLPs are sharded in two, and gathered as bfloat16, forward and backward.
  shards = 3 * 2 * 64 * 256
  assert shards <= gathered <= 4 * shards
  assert plan['min_step_seconds'] == plan['train_flops'] / (4 * 197e12)
  assert plan['step_time']['cycles'] == pytest.approx(plan['cycles']['total'] / 1.5e9)
  assert plan['step_time']['predicted'] >= plan['step_time']['cycles']
  parts = {(row['part'], row['direction']): row for row in plan['cycles']['parts']}
  assert all(parts['MLP', name]['cycles'] > 0 for name in ('forward', 'backward'))
  assert ('attention', 'forward') in parts and plan['hbm_bytes'] > 0
  assert (tmp_path / 'profile.csv').read_text().count('\n') == 1 + len(parts)


def test_a_run_that_does_not_fit_exits_with_code_4():
  pytest.importorskip('libtpu')
  args = ('--config.batch_size=1048576', '--config.data.image_size=64', '--topology=v2:2x2')
  result = run('plan', CONFIG, *TINY, *args, '--json', '--no_fallback')
  assert result.returncode == 4 and 'does not fit v2:2x2' in result.stderr
  plan = json.loads(result.stdout)
  assert plan['fits'] is False and plan['bytes_over_limit'] > 0 and plan['collectives'] == []
  assert plan['limit'] == int(7.48 * 2**30)
