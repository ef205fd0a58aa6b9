"""A run that starts from the state of another one: the same bits, or another course from there."""

import json
import shutil

import chex
import numpy as np
import pytest

from tests.helpers import TINY, run
from vit_jax.config import load_config
from vit_jax.errors import UserError
from vit_jax.training.loop import train_and_evaluate

FLAGS = (
  *TINY,
  '--config.total_steps=12',
  '--config.eval_every=4',
  '--config.checkpoint.every=4',
  '--config.checkpoint.keep=9',
  '--config.log_every=1',
  '--config.schedule.decay=rsqrt',
  '--config.schedule.timescale=5.0',
  '--config.schedule.warmup_steps=2',
  '--config.ema_decay=0.9',
  '--config.data.workers=0',
)


def train(workdir, *flags):
  train_and_evaluate(load_config('configs/quickstart.py', [*FLAGS, *flags]), workdir)


def params(workdir):
  with np.load(workdir / 'model' / 'params.npz') as archive:
    return dict(archive)


def curve(workdir, name='train/loss'):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return {line['step']: line[name] for line in lines if name in line}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('source') / 'run'
  train(workdir)
  return workdir


@pytest.fixture
def copied(source, tmp_path):
  return shutil.copytree(source, tmp_path / 'copied')


def test_without_a_change_the_bits_are_those_of_the_source(source, tmp_path, capsys):
  new = tmp_path / 'new'
  train(new, f'--config.resume_from={source}@4')
  chex.assert_trees_all_equal(params(new), params(source))
  assert curve(new) == {step: loss for step, loss in curve(source).items() if step > 4}
  assert f'the state is that of step 4 of {source}; no field is changed' in capsys.readouterr().out
  assert json.loads((new / 'resumed_from.json').read_text()) == {
    'workdir': str(source),
    'step': 4,
    'changed': {},
  }


def test_a_new_workdir_needs_its_source_no_more(copied, tmp_path):
  new, flag = tmp_path / 'new', f'--config.resume_from={copied}@8'
  train(new, flag)
  shutil.rmtree(copied)
  shutil.rmtree(new / 'checkpoints/12')
  before = params(new)
  train(new, flag)
  chex.assert_trees_all_equal(params(new), before)
  with pytest.raises(UserError, match='resume_from'):
    train(new, f'--config.resume_from={tmp_path}')


def test_a_cooldown_follows_the_closed_form(source, tmp_path):
  new = tmp_path / 'new'
  train(
    new,
    f'--config.resume_from={source}@8',
    '--config.total_steps=14',
    '--config.schedule.cooldown_steps=6',
  )
  peak = load_config('configs/quickstart.py').schedule.learning_rate
  rates = curve(new, 'train/learning_rate')
  assert list(rates) == list(range(9, 15))
  for step, rate in rates.items():  # that of step t is the schedule at t - 1
    expected = peak * np.sqrt(5 / (5 + step - 1 - 2)) * (14 - (step - 1)) / 6
    np.testing.assert_allclose(rate, expected, rtol=1e-5)
  changed = json.loads((new / 'resumed_from.json').read_text())['changed']
  assert changed == {
    'schedule.cooldown_steps': {'from': 0, 'to': 6},
    'total_steps': {'from': 12, 'to': 14},
  }
  assert curve(new, 'test/loss')[8] == curve(source, 'test/loss')[8]
  assert curve(new)[9] == curve(source)[9]


def test_on_two_devices_the_curve_is_the_same(source, tmp_path, monkeypatch):
  """By the real command; the source had eight."""
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '2')
  new, flag = tmp_path / 'new', f'--config.resume_from={source}@8'
  result = run(
    'main',
    '--config=configs/quickstart.py',
    f'--workdir={new}',
    *FLAGS,
    flag,
    '--config.mesh.fsdp=2',
    '--config.accumulation_steps=2',
  )
  assert result.returncode == 0, result.stderr
  assert 'mesh data 1 x fsdp 2' in result.stdout
  assert 'mesh.fsdp 1 -> 2' in result.stdout
  expected = curve(source)
  for step, loss in curve(new).items():
    np.testing.assert_allclose(loss, expected[step], rtol=1e-3)


def test_parts_of_the_optimizer_without_moments_may_come_and_go(source, tmp_path):
  new, again = tmp_path / 'new', tmp_path / 'again'
  train(
    new,
    f'--config.resume_from={source}@8',
    '--config.ema_decay=0.0',
    '--config.optimizer.clip_norm=0.0',
    '--config.optimizer.weight_decay=0.1',
    '--config.optimizer.momentum_dtype=bfloat16',
    '--config.optimizer.skip_factor=5.0',
  )
  assert curve(new)[9] == curve(source)[9]  # the same parameters
  assert set(curve(new, 'train/skipped_updates')) == {9, 10, 11, 12}
  train(again, f'--config.resume_from={new}@8')
  assert curve(again)[9] == curve(source)[9]
  assert not curve(again, 'train/skipped_updates')


@pytest.mark.parametrize(
  ('step', 'flags', 'message'),
  [
    ('@5', (), 'has no checkpoint of step 5; it has those of 4, 8, 12'),
    (
      '',
      ('--config.total_steps=10',),
      'config.total_steps is 10; the state in .* is that of step 12',
    ),
    ('', ('--config.model.width=32',), 'config.model.width is 32, but the run in .* has 16'),
    ('', ('--config.optimizer.name=sgd',), "config.optimizer.name is 'sgd', but .* has 'adamw'"),
    ('', ('--config.data.image_size=16',), 'config.data.image_size is 16, but'),
    ('@8', ('--config.data.skip_batches=((5,6),)',), 'it can skip batches from 8 on'),
    ('/no', (), 'has no config.json, so it holds no run'),
  ],
)
def test_what_cannot_be_is_one_sentence(step, flags, message, source, tmp_path):
  new = tmp_path / 'new'
  with pytest.raises(UserError, match=message):
    train(new, f'--config.resume_from={source}{step}', *flags)
  assert not new.exists()


def test_other_classes_are_refused(copied, tmp_path):
  facts = json.loads((copied / 'data.json').read_text())
  facts['train']['class names'] = 'x'
  (copied / 'data.json').write_text(json.dumps(facts))
  with pytest.raises(UserError, match='is of other classes: the train split has other class names'):
    train(tmp_path / 'new', f'--config.resume_from={copied}')


def test_a_damaged_checkpoint(copied, tmp_path, capsys):
  kernel = max((copied / 'checkpoints/12').rglob('*'), key=lambda x: x.stat().st_size)
  data = bytearray(kernel.read_bytes())
  data[len(data) // 2] ^= 1
  kernel.write_bytes(data)
  with pytest.raises(UserError, match=r'damaged \(12: .*; it has those of 4, 8, 12'):
    train(tmp_path / 'new', f'--config.resume_from={copied}@12')
  train(tmp_path / 'new', f'--config.resume_from={copied}', '--config.total_steps=9')
  assert f'step 8 of {copied}' in capsys.readouterr().out
  assert (copied / 'checkpoints/12').exists()  # the source is left as it is


def test_another_batch_size_is_allowed_and_said(source, tmp_path, capsys):
  flags = f'--config.resume_from={source}@8', '--config.batch_size=32', '--config.total_steps=9'
  train(tmp_path / 'new', *flags)
  assert (
    'batch_size: the batches from step 8 on are those of this config' in capsys.readouterr().out
  )
