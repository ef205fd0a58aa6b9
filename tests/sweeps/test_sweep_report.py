"""Choosing, and the files of results."""

import csv
import json

import pytest

from vit_jax.sweeps.point_runs import Outcome
from vit_jax.sweeps.sweep_plan import choose, plan_sweep
from vit_jax.sweeps.sweep_report import summarize, write_report


@pytest.fixture
def sweep(tmp_path):
  grid = ['config.schedule.learning_rate=0.01,0.001,1e9', 'config.batch_size=64,128']
  return plan_sweep('configs/quickstart.py', (), grid, False, None, str(tmp_path))


def finished(accuracy, loss=1.0):
  return Outcome('finished', {'accuracy': accuracy, 'loss': loss, 'examples': 29})


DIVERGED, FAILED = Outcome('diverged', message='nan'), Outcome('failed', message='no memory')


@pytest.mark.parametrize(
  ('outcomes', 'chosen'),
  [
    ([finished(0.5), finished(0.7), finished(0.6)], 1),
    ([finished(0.7, 0.9), finished(0.7, 0.8), finished(0.7, 0.8)], 1),
    ([DIVERGED, FAILED, finished(0.1)], 2),
    ([DIVERGED, FAILED, DIVERGED], None),
    ([finished(0.7), Outcome('unfinished'), finished(0.6)], None),
  ],
)
def test_the_best_on_held_out_data_is_chosen(sweep, outcomes, chosen):
  points = sweep.points[:3]
  assert choose(points, outcomes) is (None if chosen is None else points[chosen])


def test_results_as_files(sweep, tmp_path):
  pytest.importorskip('matplotlib')
  outcomes = [finished(0.5), finished(0.9), finished(0.6), FAILED, DIVERGED, DIVERGED]
  final = Outcome('finished', {'accuracy': 0.8, 'loss': 0.7, 'examples': 360})
  assert write_report(sweep, summarize(sweep, outcomes, final)) == ''
  with (tmp_path / 'sweep.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [row['held_out_accuracy'] for row in rows] == ['0.5', '0.9', '0.6', '', '', '']
  assert [row['chosen'] for row in rows] == ['False', 'True', *['False'] * 4]
  assert rows[3]['learning_rate'] == '0.001' and rows[3]['status'] == 'failed'
  page = (tmp_path / 'sweep.md').read_text()
  assert '|          0.01 |        128 |        **90.00%** |' in page
  assert '|         1e+09 |         64 |          diverged |' in page
  assert 'Chosen on 29 held-out examples: learning_rate = 0.01, batch_size = 128.' in page
  assert '0.01 is the' not in page  # neither the smallest nor the largest
  assert '128 is the largest batch_size of the grid; try more beyond it.' in page
  assert page.endswith('training on all training data: 80.00% of 360 examples.\n')
  result = json.loads((tmp_path / 'sweep.json').read_text())
  assert result['chosen'] == {'learning_rate': 0.01, 'batch_size': 128}
  assert result['final']['test_accuracy'] == 0.8
  assert result['points'][3]['message'] == 'no memory'
  assert (tmp_path / 'sweep.png').read_bytes().startswith(b'\x89PNG')


def test_without_matplotlib_the_picture_is_left_out(sweep, tmp_path, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'matplotlib.figure', None)
  outcomes = [finished(0.5)] * 6
  assert 'sweep.png is not drawn' in write_report(sweep, summarize(sweep, outcomes, None))
  assert (tmp_path / 'sweep.csv').exists() and not (tmp_path / 'sweep.png').exists()


def test_runs_are_compared_on_held_out_training_data_and_the_last_one_on_the_test(sweep):
  point = sweep.points[0]
  flags = sweep.point_run(point).flags
  assert flags[-2:] == (
    '--config.data.train.split=train[:98%]',
    '--config.data.test.split=train[98%:]',
  )
  assert not [flag for flag in sweep.final_run(point).flags if 'split' in flag]


def test_the_held_out_data_is_training_data_though_the_test_has_another_source(tmp_path):
  sweep = plan_sweep(
    'configs/quickstart.py',
    ['--config.data.test.source=folder:/other'],
    ['config.seed=1,2'],
    False,
    '10%',
    str(tmp_path),
  )
  assert sweep.point_run(sweep.points[0]).flags[-3:] == (
    '--config.data.train.split=train[:90%]',
    '--config.data.test.split=train[90%:]',
    '--config.data.test.source=',
  )
