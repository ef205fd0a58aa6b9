"""Trackers get what metrics.jsonl gets, and never end a run."""

import sys

import pytest
from etils import epath

from tests.training import trackers_of_tests
from vit_jax import main
from vit_jax.errors import UserError
from vit_jax.training.metrics import MetricsWriter
from vit_jax.training.trackers import Tracker

FUNCTIONS = 'tests.training.trackers_of_tests'


def test_a_function_gets_what_metrics_jsonl_gets(tmp_path):
  trackers_of_tests.calls.clear()
  tracker, metrics = Tracker(f'{FUNCTIONS}:record'), {'train/loss': 1.0, 'time': 3.0}
  with tracker.running({}, tmp_path), MetricsWriter(tmp_path, 0, True, (tracker,)) as writer:
    writer.write(2, metrics)
    writer.write(4, metrics)
  assert trackers_of_tests.calls == [(2, metrics), (4, metrics)]


def test_a_failing_function_is_one_warning(tmp_path, capsys):
  tracker = Tracker(f'{FUNCTIONS}:fail')
  with tracker.running({}, tmp_path):
    for step in range(3):
      tracker(step, {'train/loss': 1.0})
  assert capsys.readouterr().err == (
    f'tracker: {FUNCTIONS}:fail has failed (RuntimeError: no connection); training continues\n'
  )


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('wandbb', 'it takes wandb, or package.module:function'),
    ('a.b:', 'it takes wandb, or'),
    ('no_such_package:f', 'cannot be imported'),
    (f'{FUNCTIONS}:none', "no attribute 'none'"),
    (f'{FUNCTIONS}:NO_FUNCTION', 'is not a function'),
  ],
)
def test_a_wrong_name_is_refused(name, words):
  with pytest.raises(UserError, match=words):
    Tracker(name)


def test_a_wrong_name_leaves_nothing_behind(tmp_path, command):
  flags = ('--config=configs/quickstart.py', f'--workdir={tmp_path}/run')
  code, out, err = command(main, *flags, '--config.tracker=wandbb')
  assert (code, out) == (2, '') and 'config.tracker' in err and err.count('\n') == 1
  assert not (tmp_path / 'run').exists()


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(UserError, match=r"pip install 'vit_jax\[wandb\]'"):
    Tracker('wandb')


def test_wandb_is_resumed_with_the_same_run(tmp_path, monkeypatch, capsys):
  wandb = pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  for step in (1, 2):
    tracker = Tracker('wandb')
    with tracker.running({'model.width': 16}, epath.Path(tmp_path)):
      tracker(step, {'train/loss': 1.0, 'test/accuracy': 0.5})
      assert wandb.run.config['model.width'] == 16
    assert wandb.run is None
  assert 'tracker:' not in capsys.readouterr().err
  run_id = (tmp_path / 'wandb_run_id.txt').read_text().strip()
  files = sorted((tmp_path / 'wandb').glob('offline-run-*/*.wandb'))
  assert len(files) == 2 and all(file.name == f'run-{run_id}.wandb' for file in files)
  for file in files:
    content = file.read_bytes()
    for name in (b'step', b'train/loss', b'test/accuracy', b'model.width'):
      assert name in content


def test_a_service_that_fails_is_one_warning(tmp_path, monkeypatch, capsys):
  wandb = pytest.importorskip('wandb')

  def fail(**unused):
    raise wandb.errors.CommError('no network')

  monkeypatch.setattr(wandb, 'init', fail)
  tracker = Tracker('wandb')
  with tracker.running({}, epath.Path(tmp_path)):
    tracker(1, {'train/loss': 1.0})
  err = capsys.readouterr().err
  assert 'tracker: wandb has failed (CommError: no network)' in err and err.count('\n') == 1
