"""VTAB-1k on made-up data sets: real runs, killed and started again, and what is refused."""

import json
import os
import signal
import sys
import time

import pytest

from tests.helpers import GOLDEN, run, start
from tests.vtab_datasets import write_vtab
from vit_jax import vtab
from vit_jax.config import height_width, load_config, write_config
from vit_jax.data.vtab_tasks import TASKS
from vit_jax.errors import NonFiniteLossError, UserError
from vit_jax.transfer import vtab_runs

MODEL = str(GOLDEN / 'vit_token_prelogits.npz')


def write_all(tmp_path, *tasks):
  for task in tasks:
    write_vtab(tmp_path / 'tfds', task)


def configs(tmp_path, *tasks, flags=()):
  return {
    task: vtab_runs.task_config(
      MODEL, task, [*vtab_runs.task_flags(f'{tmp_path}/tfds', task, False, 32), *flags]
    )
    for task in tasks
  }


def run_vtab(tmp_path, *tasks, flags=()):
  protocol = vtab_runs.task_config(MODEL, tasks[0], ())
  return vtab_runs.run_vtab(
    'tiny', configs(tmp_path, *tasks, flags=flags), protocol, tmp_path / 'run'
  )


def count_runs(monkeypatch, metrics) -> list[str]:
  """Replaces the training; returns the list of folders that would have been trained in."""
  folders = []

  def train(config, workdir):
    folders.append(workdir.name)
    if isinstance(metrics, Exception):
      raise metrics
    workdir.mkdir(parents=True)
    write_config(config.resolve_steps(1000), workdir / 'config.json')
    return metrics

  monkeypatch.setattr(vtab_runs, 'train_and_evaluate', train)
  return folders


def test_a_killed_command_resumes_and_repeats_nothing(tmp_path):
  write_all(tmp_path, 'dtd', 'kitti_closest_vehicle_distance')
  workdir = tmp_path / 'run'
  command = (
    'vtab',
    f'--model={MODEL}',
    '--tasks=dtd,kitti_closest_vehicle_distance,svhn',
    f'--data_dir={tmp_path}/tfds',
    f'--workdir={workdir}',
    '--image_size=32',
    '--steps=2',
    '--batch_size=16',
    '--config.data.workers=0',
    '--json',
  )
  process = start(*command)
  deadline = time.monotonic() + 240
  while not (workdir / 'kitti_closest_vehicle_distance' / 'config.json').exists():
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()
    time.sleep(0.02)
  os.kill(process.pid, signal.SIGKILL)
  process.communicate()
  assert '| dtd | 20 |' in (workdir / 'vtab.md').read_text()  # written after each task
  before = (workdir / 'dtd' / 'metrics.jsonl').stat().st_mtime_ns

  result = run(*command)
  assert result.returncode == 0, result.stderr
  assert (workdir / 'dtd' / 'metrics.jsonl').stat().st_mtime_ns == before
  report = json.loads(result.stdout)
  assert (report['mean'], report['means']['all']['tasks']) == (None, 2)
  assert report['image_size'] == [32, 32]
  assert report['tasks']['dtd']['examples'] == 20
  assert report['tasks']['kitti_closest_vehicle_distance']['accuracy'] is not None
  assert 'tfds.builder("svhn_cropped:3.*.*"' in report['tasks']['svhn']['reason']
  assert json.loads((workdir / 'vtab.json').read_text()) == report
  assert (workdir / 'kitti_closest_vehicle_distance' / 'model').exists()


def test_the_config_of_a_task_is_the_protocol(tmp_path):
  for name, task in TASKS.items():
    config = vtab_runs.task_config(MODEL, name, ())
    assert (config.total_steps, config.batch_size, config.data.image_size) == (2500, 512, 384)
    assert (config.schedule.learning_rate, config.resolve_steps(1000).schedule.warmup_steps) == (
      0.01,
      200,
    )
    assert config.data.num_classes == task.num_classes
    augment = config.data.augment
    assert (augment.crop, augment.flip, augment.resize_small) == (
      'squash' if task.crop else 'resize',
      task.flip,
      448,
    )
  patch14 = load_config(f'configs/vtab.py:dtd,{GOLDEN / "vit_patch14.npz"}')
  assert height_width(patch14.data.image_size) == (378, 378)


def test_settings_name_what_is_not_the_protocol():
  flags = ['--config.total_steps=2', '--config.seed=1', '--config.data.workers=0']
  config = vtab_runs.task_config(MODEL, 'dtd', flags)
  protocol = vtab_runs.task_config(MODEL, 'dtd', ())
  first, second = vtab_runs.describe(config, protocol)
  assert first.startswith('384x384 pixels, squash bilinear without antialiasing; 2 steps of 512')
  assert second == 'not the protocol of configs/vtab.py: total_steps=2'
  flags = vtab_runs.task_flags('', 'dtd', True, None)
  assert (
    '800 examples' in vtab_runs.describe(vtab_runs.task_config(MODEL, 'dtd', flags), protocol)[1]
  )


def test_finished_tasks_are_read_back(tmp_path, monkeypatch):
  write_all(tmp_path, 'dtd', 'dmlab')
  folders = count_runs(monkeypatch, {'accuracy': 0.5, 'examples': 20.0})
  first = run_vtab(tmp_path, 'dtd', 'dmlab')
  assert folders == ['dtd', 'dmlab']
  (tmp_path / 'tfds').rename(tmp_path / 'elsewhere')  # a result needs no data
  second = run_vtab(tmp_path, 'dtd', 'dmlab')
  assert folders == ['dtd', 'dmlab']
  assert first.outcomes == second.outcomes
  with pytest.raises(UserError, match='batch_size'):
    run_vtab(tmp_path, 'dtd', flags=['--config.batch_size=7'])
  (tmp_path / 'run' / 'dtd' / 'result.json').write_text('{}')
  with pytest.raises(UserError, match='damaged'):
    run_vtab(tmp_path, 'dtd')


def test_a_task_that_diverges_is_marked_and_the_others_go_on(tmp_path, monkeypatch):
  write_all(tmp_path, 'dtd', 'dmlab')
  folders = count_runs(monkeypatch, NonFiniteLossError('train/loss is nan at step 3.'))
  report = run_vtab(tmp_path, 'dtd', 'dmlab')
  assert folders == ['dtd', 'dmlab']
  assert report.outcomes['dtd'].accuracy is None
  assert 'step 3' in report.to_markdown()


def test_data_of_another_kind_is_listed(tmp_path, monkeypatch):
  write_all(tmp_path, 'dtd', 'dmlab')
  info = tmp_path / 'tfds' / 'dtd' / '3.0.0' / 'dataset_info.json'
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
  folders = count_runs(monkeypatch, {'accuracy': 0.5, 'examples': 20.0})
  report = run_vtab(tmp_path, 'dtd', 'dmlab')
  assert folders == ['dmlab']
  assert 'has the file format tfrecord' in report.outcomes['dtd'].reason


def test_without_any_data_nothing_is_written(tmp_path, capsys):
  with pytest.raises(UserError, match='2 tasks of VTAB, but data for none'):
    run_vtab(tmp_path, 'dtd', 'svhn')
  assert 'tfds.builder("dtd:3.*.*"' in capsys.readouterr().out
  assert not (tmp_path / 'run').exists()


def test_a_mistake_is_one_sentence():
  result = run('vtab', f'--model={MODEL}', '--tasks=dtd,svnh')
  assert result.returncode == 2
  assert result.stderr == "error: 'svnh' is not a task of VTAB; close ones: svhn.\n"


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--step=2', 'There is no flag --step'),
    ('--config.total_stepz=2', "no config field 'total_stepz'; close ones: total_steps"),
    ('--model=/nowhere.npz', 'There is no model at /nowhere.npz'),
    ('--steps=-1', 'config.total_steps is -1'),
  ],
)
def test_flags_that_cannot_work_are_refused(flag, message, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['vtab', f'--model={MODEL}', flag])
  with pytest.raises(UserError) as error:
    vtab.main()
  assert message in str(error.value)
