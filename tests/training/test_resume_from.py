"""A run that starts from the state of another one: the same bits, or another course from there."""

import json
import pathlib
import shutil

import chex
import numpy as np
import pytest

from tests.helpers import TINY, run
from vit_jax.config import load_config
from vit_jax.errors import UserError
from vit_jax.training.loop import train_and_evaluate
from vit_jax.training.resume_from import find_source

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


def find(source, *flags):
  config = load_config('configs/quickstart.py', [*FLAGS, f'--config.resume_from={source}', *flags])
  facts = json.loads((pathlib.Path(str(source).split('@')[0]) / 'data.json').read_text())
  return find_source(config.resolve_steps(1), facts)


def test_without_a_change_the_bits_are_those_of_the_source(source, copied, tmp_path, capsys):
  new, flag = tmp_path / 'new', f'--config.resume_from={copied}@4'
  train(new, flag)
  chex.assert_trees_all_equal(params(new), params(source))
  assert curve(new) == {step: loss for step, loss in curve(source).items() if step > 4}
  assert f'the state is that of step 4 of {copied}; no field is changed' in capsys.readouterr().out
  record = json.loads((new / 'resumed_from.json').read_text())
  assert record == {'workdir': str(copied), 'step': 4, 'changed': {}}
  # From then on it needs its source no more.
  shutil.rmtree(copied)
  shutil.rmtree(new / 'checkpoints/12')
  train(new, flag)
  chex.assert_trees_all_equal(params(new), params(source))
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


@pytest.mark.parametrize(
  ('step', 'flags', 'message'),
  [
    ('@5', (), 'has no checkpoint of step 5; it has those of 4, 8, 12'),
    ('', ('--config.total_steps=10',), 'config.total_steps is 10; the state in .* of step 12'),
    ('', ('--config.model.width=32',), 'config.model.width is 32, but the run in .* has 16'),
    ('', ('--config.optimizer.name=sgd',), "config.optimizer.name is 'sgd', but .* has 'adamw'"),
    ('', ('--config.optimizer.head_lr_multiplier=0',), 'head_lr_multiplier is 0.0, but .* has 1.0'),
    ('', ('--config.optimizer.min_dim_to_factor=8',), 'min_dim_to_factor is 8, but .* has 32'),
    ('', ('--config.data.image_size=16',), 'config.data.image_size is 16, but'),
    ('@8', ('--config.data.skip_batches=((5,6),)',), 'it can skip batches from 8 on'),
  ],
)
def test_what_cannot_be_is_one_sentence(step, flags, message, source):
  with pytest.raises(UserError, match=message):
    find(f'{source}{step}', *flags)


def test_a_folder_without_a_run_is_refused_and_no_workdir_is_made(tmp_path):
  with pytest.raises(UserError, match='has no config.json, so it holds no run'):
    train(tmp_path / 'new', f'--config.resume_from={tmp_path}/no')
  assert not (tmp_path / 'new').exists()


def test_other_classes_are_refused(source, copied):
  facts = json.loads((copied / 'data.json').read_text())
  facts['train']['class names'] = 'x'
  (copied / 'data.json').write_text(json.dumps(facts))
  config = load_config('configs/quickstart.py', [*FLAGS, f'--config.resume_from={copied}'])
  facts = json.loads((source / 'data.json').read_text())
  with pytest.raises(UserError, match='is of other classes: the train split has other class names'):
    find_source(config.resolve_steps(1), facts)


def test_a_damaged_checkpoint_is_passed_over_and_left_as_it_is(copied):
  kernel = max((copied / 'checkpoints/12').rglob('*'), key=lambda x: x.stat().st_size)
  data = bytearray(kernel.read_bytes())
  data[len(data) // 2] ^= 1
  kernel.write_bytes(data)
  with pytest.raises(UserError, match=r'damaged \(12: .*; it has those of 4, 8, 12'):
    find(f'{copied}@12')
  assert find(copied).step == 8
  assert kernel.read_bytes() == data


def test_another_order_of_the_data_is_allowed_and_said(source):
  reordered = find(f'{source}@8', '--config.batch_size=32', '--config.seed=1')
  assert 'seed, batch_size: the batches from step 8 on are those of this config' in str(reordered)


def test_regularization_and_execution_may_change(source):
  assert find(f'{source}@8', '--config.model.remat=full', '--config.model.attention=xla').step == 8
  assert find(f'{source}@8', '--config.model.dropout_rate=0.2', '--config.ema_decay=0').step == 8
  groups = ('--config.optimizer.head_lr_multiplier=2', '--config.optimizer.head_decay_multiplier=0')
  assert find(f'{source}@8', '--config.ema_warmup=True', *groups).step == 8
