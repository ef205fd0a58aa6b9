"""A run that is killed and started again ends in the same bits as one that never stopped."""

import json
import re
import signal

import chex
import numpy as np
import pytest

from tests.helpers import TINY, run, start

ARGUMENTS = (
  *TINY,
  '--config=configs/quickstart.py',
  '--config.total_steps=40',
  '--config.checkpoint.every=4',
  '--config.eval_every=10',
  '--config.ema_decay=0.9',
  '--config.ema_warmup=True',
  '--config.optimizer.momentum_dtype=bfloat16',
)


def params(workdir):
  with np.load(workdir / 'model' / 'params.npz') as archive:
    return dict(archive)


def curve(workdir):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  speed = ('per_second', 'data_wait', 'time', 'goodput', 'restarts')
  return [{k: v for k, v in line.items() if not any(s in k for s in speed)} for line in lines]


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('uninterrupted')
  result = run('main', *ARGUMENTS, f'--workdir={workdir}')
  assert result.returncode == 0, result.stderr
  return workdir


def stop_after(line_start, workdir, number=signal.SIGKILL, workers=0, flags=()):
  """Starts the run and stops it as soon as it prints such a line; (exit code, lines, stderr)."""
  arguments = (*ARGUMENTS, f'--workdir={workdir}', f'--config.data.workers={workers}', *flags)
  process, lines = start('main', *arguments), []
  for line in process.stdout:
    lines.append(line)
    if line.startswith(line_start):
      break
  process.send_signal(number)
  _, err = process.communicate()
  return process.returncode, ''.join(lines), err


def test_stopped_three_times_equals_uninterrupted(uninterrupted, tmp_path):
  """With other numbers of worker processes each time."""
  assert stop_after('step 14/40', tmp_path)[0] == -signal.SIGKILL
  assert not (tmp_path / 'model').exists()
  # The newest checkpoint is damaged meanwhile: the one before it is restored, and the log says so.
  *_, before, newest = sorted(
    int(child.name) for child in (tmp_path / 'checkpoints').iterdir() if child.name.isdecimal()
  )
  kernel = max((tmp_path / f'checkpoints/{newest}').rglob('*'), key=lambda x: x.stat().st_size)
  data = bytearray(kernel.read_bytes())
  data[len(data) // 2] ^= 1
  kernel.write_bytes(data)
  code, out, _ = stop_after('step 30/40', tmp_path, workers=2)
  assert code == -signal.SIGKILL
  assert f'checkpoint {newest} is damaged: ' in out and f'newest intact one is {before}' in out
  assert f'resuming after step {before}' in out
  # SIGTERM (preemption): it saves, and asks to be rerun.
  code, _, err = stop_after('step 32/40', tmp_path, signal.SIGTERM, workers=1)
  assert code == 75
  assert re.search(r'stopped: received SIGTERM; step 3\d is saved', err)
  result = run('main', *ARGUMENTS, f'--workdir={tmp_path}', '--config.data.workers=4')
  assert result.returncode == 0, result.stderr
  assert 'resuming after step' in result.stdout
  chex.assert_trees_all_equal(params(tmp_path), params(uninterrupted))
  assert curve(tmp_path) == curve(uninterrupted)


def test_masked_patch_prediction_resumes_too(tmp_path):
  flags = ('--config.objective=masked_patches', '--config.total_steps=20')
  code, _, err = stop_after('step 14/20', tmp_path / 'stopped', flags=flags)
  assert code == -signal.SIGKILL, err
  for name in ('stopped', 'whole'):
    result = run('main', *ARGUMENTS, *flags, f'--workdir={tmp_path / name}')
    assert result.returncode == 0, result.stderr
    assert ('resuming after step' in result.stdout) == (name == 'stopped')
  chex.assert_trees_all_equal(params(tmp_path / 'stopped'), params(tmp_path / 'whole'))
  assert curve(tmp_path / 'stopped') == curve(tmp_path / 'whole')


def test_sigterm_ends_an_evaluation(tmp_path):
  many = '+'.join(['all'] * 5)  # 1,124 batches
  flags = ['--config.total_steps=2', '--config.log_every=1', '--config.eval_every=1']
  flags += ['--config.schedule.warmup_steps=0']
  flags += [f'--config.data.test.split={many}', '--config.eval_batch_size=8']
  for step in (1, 2):
    code, _, err = stop_after(f'step {step}/2', tmp_path, signal.SIGTERM, flags=flags)
    assert code == 75 and f'step {step} is saved' in err
  result = run('main', *ARGUMENTS, f'--workdir={tmp_path}', *flags)
  assert result.returncode == 0, result.stderr
  assert [line['step'] for line in curve(tmp_path) if 'test/accuracy' in line] == [1, 2]
  assert (tmp_path / 'model' / 'params.npz').exists()


def test_killed_before_the_first_checkpoint(tmp_path):
  assert stop_after('workdir', tmp_path)[0] == -signal.SIGKILL
  result = run('main', *ARGUMENTS, f'--workdir={tmp_path}')
  assert result.returncode == 0, result.stderr
  assert 'going on' not in result.stdout


def test_another_seed_gives_other_parameters(uninterrupted, tmp_path):
  result = run('main', *ARGUMENTS, f'--workdir={tmp_path}', '--config.seed=1')
  assert result.returncode == 0, result.stderr
  expected, actual = params(uninterrupted), params(tmp_path)
  assert not np.array_equal(expected['embedding/kernel'], actual['embedding/kernel'])


def test_last_and_best_checkpoints_are_kept(uninterrupted):
  steps = sorted(int(child.name) for child in (uninterrupted / 'checkpoints').iterdir())
  tests = {
    line['step']: line['test/accuracy'] for line in curve(uninterrupted) if 'test/accuracy' in line
  }
  best = max(tests, key=lambda step: (tests[step], -step))
  assert steps == sorted({32, 36, 40, best})
