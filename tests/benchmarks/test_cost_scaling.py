"""The benchmark of what a step costs by its sizes, at toy size, and its picture."""

import csv
import importlib.util
import types

import pytest

from benchmarks import cost_figure, cost_points, cost_prediction, cost_scaling, measurement
from vit_jax.errors import UserError
from vit_jax.hardware import CHIPS
from vit_jax.planning.cycles import CycleEstimate, PartCycles
from vit_jax.planning.step_time import StepTime

SMALL = ('--config.model.width=16', '--config.model.mlp_dim=32', '--config.model.num_heads=2')
TOY = (
  *('--model=Ti/4@8', '--batch_size=4', '--depth=1', '--num_classes=5', '--rounds=1'),
  *('--seconds=0.01', '--matmul_size=32', *SMALL),
)


def rows(folder):
  (path,) = folder.glob('cost_scaling_*.csv')
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def plan(parts, predicted, chips=1):
  """As much of a plan as is described."""
  cycles = CycleEstimate(sum(part.cycles for part in parts), tuple(parts), (), {}, 0)
  return types.SimpleNamespace(
    topology=types.SimpleNamespace(chip=CHIPS['v5e']),
    cycles=cycles,
    step_time=StepTime(1e-3, 2e-3, None, predicted),
    train_flops=3e9,
    global_batch=10,
    num_chips=chips,
    memory=types.SimpleNamespace(arguments=2**30, temporaries=2**29),
    compile_seconds=1.0,
    fits=True,
  )


def test_points_are_measured_beside_the_base_and_only_once(command, tmp_path):
  flags = [*TOY, '--vary=width:32', f'--out={tmp_path}']
  code, _, err = command(cost_scaling, *flags)
  assert code == 0, err
  table = rows(tmp_path)
  assert [(row['value'], row['pass']) for row in table] == [
    *(('16', 'forward'), ('16', 'step'), ('32', 'forward'), ('32', 'step'))
  ]
  base, wide = table[1], table[3]
  assert (base['tokens'], base['batch_size'], base['flags']) == ('5', '4', ' '.join(SMALL))
  assert base['times_proportional'] == '1.0' and base['share_of_matmul']
  ratio = float(wide['milliseconds']) / float(base['milliseconds']) / 4
  assert float(wide['times_proportional']) == pytest.approx(ratio, rel=0.02, abs=2e-3)
  code, out, err = command(cost_scaling, *flags)
  assert code == 0 and rows(tmp_path) == table and 'milliseconds' not in out
  assert (tmp_path / 'cost_scaling.png').exists() == bool(importlib.util.find_spec('matplotlib'))


def test_the_points_differ_from_the_base_in_one_variable():
  base = cost_points.make_base('Ti/4@8', 4, 1, SMALL)
  values = {'batch': [2], 'image_size': [16], 'depth': [3], 'width': [32], 'devices': [2]}
  points = cost_points.make_points(base, values)
  first = points[0]
  assert first.is_base and first.columns['width'] == 16 and first.config.model.num_heads == 2
  changed = {
    'batch': {'batch_size': 2},
    'image_size': {'image_size': 16, 'tokens': 17},
    'depth': {'depth': 3},
    'width': {'width': 32},
    'devices': {'devices': 2, 'batch_size': 8},
  }
  for point in points[1::2]:
    expected = first.columns | {'variable': point.variable, 'value': values[point.variable][0]}
    assert point.columns == expected | changed[point.variable]
  wide = points[7].config.model
  assert (wide.width, wide.num_heads, wide.mlp_dim) == (32, 4, 64)


def test_a_plan_is_a_row_of_each_pass():
  parts = [PartCycles('MLP', 'forward', 1_500_000, 1), PartCycles('MLP', 'backward', 3_000_000, 1)]
  columns = cost_prediction.describe(plan(parts, predicted=4e-3, chips=2))
  step, forward = columns['step'], columns['forward']
  assert (step['milliseconds'], step['images_per_second']) == (4, 2500)
  assert (step['mlp_ms'], step['arithmetic_ms'], step['hbm_ms']) == (3, 1, 2)
  assert (forward['milliseconds'], forward['mlp_ms']) == (1, 1)  # of 1.5 GHz
  assert step['share_of_peak'] == pytest.approx(3e9 / 4e-3 / 394e12, abs=1e-4)
  assert {**step, **forward}.keys() <= set(cost_scaling.COLUMNS)
  unclocked = plan(parts, predicted=None)
  assert 'no clock' in cost_prediction.describe(unclocked)['step']['note']


def test_a_config_of_several_variables_is_compiled_once_and_failures_again(
  command, tmp_path, monkeypatch
):
  compiled = []

  def predict(point, kind, num_classes):
    compiled.append((point.variable, point.value))
    if point.value == 3 and compiled.count(compiled[-1]) == 1:
      return dict.fromkeys(('forward', 'step'), {'note': 'it does not fit'})
    speed = {'libtpu': '1', 'milliseconds': 2.0 * point.columns['batch_size']}
    return dict.fromkeys(('forward', 'step'), measurement.machine() | speed)

  monkeypatch.setattr(cost_prediction, 'predict', predict)
  monkeypatch.setattr(cost_scaling, 'start_backend', lambda on, devices: None)
  flags = [*TOY, '--on=v5e', '--vary=batch:8', '--vary=depth:3', f'--out={tmp_path}']
  assert command(cost_scaling, *flags)[0] == 0
  assert compiled == [('batch', 4), ('batch', 8), ('depth', 3)]
  assert command(cost_scaling, *flags)[0] == 0
  assert compiled[3:] == [('depth', 3)]
  ratios = [row['times_proportional'] for row in rows(tmp_path) if row['pass'] == 'step']
  assert ratios == ['1.0', '1.0', '1.0', '', '0.333']
  (path,) = tmp_path.glob('cost_scaling_*_v5e.csv')


def test_the_picture_has_the_newest_table_of_each_device(tmp_path, monkeypatch):
  figure_class = pytest.importorskip('matplotlib.figure').Figure
  figures = []

  def make(**options):
    figures.append(figure_class(**options))
    return figures[-1]

  monkeypatch.setattr('matplotlib.figure.Figure', make)
  columns = 'variable,value,pass,tokens,batch_size,devices,libtpu,milliseconds,times_proportional\n'
  old = tmp_path / 'cost_scaling_2026-01-01_cpu.csv'
  new = tmp_path / 'cost_scaling_2026-01-02_cpu.csv'
  tpu = tmp_path / 'cost_scaling_2026-01-01_v5e.csv'
  old.write_text(columns + 'batch,1,step,5,1,1,,9,1\n')
  new.write_text(columns + 'devices,1,step,5,4,1,,8,1\ndevices,2,step,5,8,2,,20,1.25\n')
  tpu.write_text(columns + 'devices,2,step,5,8,2,0.1,8,1\n' + 'depth,2,step,5,8,1,0.1,,\n')
  assert cost_figure.draw(tmp_path) == f'drawn: {tmp_path / "cost_scaling.png"}'
  (figure,) = figures
  above, below = figure.axes
  lines = [list(zip(*line.get_data(), strict=True)) for line in above.lines]
  assert lines[0] == [(1, 2), (2, 2.5)] and lines[1] == [(1, 2), (2, 2)]
  assert lines[2] == [(2, 2)]  # milliseconds of both chips
  assert (tmp_path / 'cost_scaling.png').stat().st_size > 1000


def test_without_tables_nothing_is_drawn(tmp_path):
  with pytest.raises(UserError, match='has no rows'):
    cost_figure.draw(tmp_path)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--on=gpu'], '--on=gpu is not one of cpu, v2'),
    (['--vary=heads'], "'heads' is not one of batch"),
    (['--vary=depth:0'], "--vary=depth: '0' is not a positive integer"),
    (['--vary=devices:1000'], 'is more than the CPU cores'),
    ([*TOY, '--vary=width:20'], 'must be a multiple of 8'),
    (['--on=v5e', '--vary=devices:3'], 'is not a slice'),
    (['--model=R50+B/16'], 'must be a Vision Transformer on square images'),
    (['--model=nonsense+B'], 'is not a model such as B/16'),
    (['--nonsense=1'], 'There is no flag --nonsense'),
    (['--draw'], 'has no rows'),
  ],
)
def test_a_wrong_flag_is_one_sentence(flags, message, command, tmp_path):
  code, out, err = command(cost_scaling, *flags, f'--out={tmp_path}')
  assert (code, out) == (2, '')
  assert message in err and len(err.splitlines()) == 1
