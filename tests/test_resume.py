"""A run that is killed and started again ends in the same bits as one that never stopped."""

import json
import signal

import chex
import numpy as np
import pytest
from conftest import TINY, run, start

ARGUMENTS = (
    *TINY,
    '--config=configs/quickstart.py',
    '--config.total_steps=40',
    '--config.checkpoint.every=4',
    '--config.eval_every=10',
    '--config.polyak_decay=0.9',
)


def params(workdir):
  with np.load(workdir / 'model' / 'params.npz') as archive:
    return dict(archive)


def curve(workdir):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in line.items() if 'per_second' not in k} for line in lines]


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('uninterrupted')
  result = run('main', *ARGUMENTS, f'--workdir={workdir}')
  assert result.returncode == 0, result.stderr
  return workdir


def kill_after(line_start, workdir):
  """Starts the run and kills it with SIGKILL as soon as it prints such a line."""
  process = start('main', *ARGUMENTS, f'--workdir={workdir}')
  for line in process.stdout:
    if line.startswith(line_start):
      break
  process.send_signal(signal.SIGKILL)
  process.communicate()
  return process.returncode


def test_killed_twice_equals_uninterrupted(uninterrupted, tmp_path):
  assert kill_after('step 14/40', tmp_path) == -signal.SIGKILL
  assert not (tmp_path / 'model').exists()
  assert kill_after('step 30/40', tmp_path) == -signal.SIGKILL
  result = run('main', *ARGUMENTS, f'--workdir={tmp_path}')
  assert result.returncode == 0, result.stderr
  assert 'going on after step' in result.stdout
  chex.assert_trees_all_equal(params(tmp_path), params(uninterrupted))
  assert curve(tmp_path) == curve(uninterrupted)


def test_killed_before_the_first_checkpoint(tmp_path):
  assert kill_after('workdir', tmp_path) == -signal.SIGKILL
  result = run('main', *ARGUMENTS, f'--workdir={tmp_path}')
  assert result.returncode == 0, result.stderr
  assert 'going on' not in result.stdout


def test_another_seed_gives_other_parameters(uninterrupted, tmp_path):
  result = run('main', *ARGUMENTS, f'--workdir={tmp_path}', '--config.seed=1')
  assert result.returncode == 0, result.stderr
  expected, found = params(uninterrupted), params(tmp_path)
  assert not np.array_equal(expected['embedding/kernel'], found['embedding/kernel'])


def test_last_and_best_checkpoints_are_kept(uninterrupted):
  steps = sorted(int(child.name) for child in (uninterrupted / 'checkpoints').iterdir())
  tests = {line['step']: line['test/accuracy'] for line in curve(uninterrupted)
           if 'test/accuracy' in line}  # fmt: skip
  best = max(tests, key=lambda step: (tests[step], -step))
  assert steps == sorted({32, 36, 40, best})
