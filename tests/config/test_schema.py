"""The typed config: types, ranges, lengths of runs."""

import dataclasses

import pytest

from vit_jax import config as config_lib
from vit_jax.config import Config, check_same_run, load_config, replace_fields, write_config
from vit_jax.config.fields import walk_fields
from vit_jax.errors import UserError
from vit_jax.weights.evaluation_protocols import BIG_VISION, ORIGINAL


def load(name: str, *overrides: str) -> Config:
  return config_lib.load_config(f'configs/{name}', overrides)


def test_every_field_stands_once_with_its_documentation():
  fields = list(walk_fields(Config()))
  assert len(fields) == len(config_lib.flatten(Config())) > 60
  for name, _, field in fields:
    assert len(field.metadata['doc']) > 3, name


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'batch_size': 0}, 'config.batch_size is 0; it must be positive.'),
    ({'batch_size': 2.5}, 'config.batch_size is 2.5; it must be an integer.'),
    ({'batch_size': True}, 'config.batch_size is True; it must be an integer.'),
    ({'seed': -1}, 'config.seed is -1; it must be 0 to 4294967295.'),
    ({'label_smoothing': 1.0}, 'it must be at least 0 and less than 1.'),
    ({'loss': 'hinge'}, "config.loss is 'hinge'; choose one of softmax, sigmoid."),
    ({'model.depth': -1}, 'config.model.depth is -1; it must be 0 or positive.'),
    ({'model.resnet_blocks': (3, 'x')}, 'it must be a tuple of integers.'),
    ({'data.image_size': (224,)}, 'it must be an integer or 2 integers.'),
    ({'data.image_size': 0}, 'config.data.image_size is 0; it must be positive.'),
    ({'data.augment.area': (0.5, 0.1)}, 'it must be two shares, 0 < least <= most <= 1.'),
    ({'data.augment.jitter': (0.0, 0.0, 0.0, 0.6)}, 'that of the hue at most 0.5.'),
    ({'data.augment.jitter': (0.1,)}, 'it must be 4 numbers.'),
    ({'data.channels': 1, 'data.augment.randaugment': 'augreg'}, 'it changes colors, but'),
    ({'batch_size': 10, 'accumulation_steps': 3}, 'accumulation_steps=3 must divide it.'),
    ({'schedule.warmup_steps': 1.5}, 'below 1, or a whole number of steps.'),
    ({'schedule.learning_rate': float('nan')}, 'it must be 0 or positive.'),
    ({'ema_warmup': True}, r'config.ema_warmup is True; ema_decay is 0 \(no average\)'),
    ({'optimizer.head_lr_multiplier': -1}, 'it must be 0 or positive.'),
    ({'mesh.fsdp': 0}, r'it must be positive, or -1 \(the devices that remain\).'),
  ],
  ids=str,
)
def test_a_wrong_value_names_its_field_and_range(fields, message):
  with pytest.raises(UserError, match=message) as caught:
    replace_fields(Config(), fields)
  assert '\n' not in str(caught.value)


def test_integers_become_floats_and_lists_become_tuples():
  config = config_lib.from_config_dict(config_lib.default_config())
  assert config == Config()
  config = replace_fields(config, {'model.resnet_blocks': [3, 4], 'optimizer.clip_norm': 2})
  assert config.model.resnet_blocks == (3, 4)
  assert (config.optimizer.clip_norm, type(config.optimizer.clip_norm)) == (2.0, float)


@pytest.mark.parametrize('dataset', ['cifar10', 'cifar100', 'pets', 'flowers', 'imagenet'])
@pytest.mark.parametrize('model', ['b16', 'h14', 'r50x1'])
def test_fine_tuning_evaluates_as_the_original_code(model, dataset):
  test = load(f'finetune.py:{model},{dataset}').data.test
  assert test.preprocessing == ORIGINAL


@pytest.mark.parametrize('data', ['imagenet21k', 'imagenet'])
def test_augreg_evaluates_as_big_vision(data):
  assert load(f'augreg.py:b16,best,{data}').data.test.preprocessing == BIG_VISION


def test_a_config_does_not_change():
  with pytest.raises(dataclasses.FrozenInstanceError):
    Config().batch_size = 2  # pyright: ignore


def test_epochs_become_steps_of_the_training_data():
  config = load('finetune.py:ti16,folder:/my/images').resolve_steps(1000)
  assert (config.total_steps, config.epochs) == (625, 0)  # 20 passes in batches of 32
  assert (config.eval_every, config.checkpoint.every) == (62, 62)
  config = load('finetune.py:ti16,folder:/x', '--config.epochs=1').resolve_steps(10)
  assert (config.total_steps, config.eval_every) == (1, 1)


def test_setting_steps_or_epochs_resets_the_other():
  config = load('finetune.py:ti16,folder:/x', '--config.total_steps=7')
  assert (config.total_steps, config.epochs) == (7, 0)
  config = load('quickstart.py', '--config.epochs=2.5')
  assert (config.total_steps, config.epochs) == (0, 2.5)
  for overrides in (('--config.epochs=2', '--config.total_steps=5'), ('--config.total_steps=0',)):
    with pytest.raises(UserError, match='one of them must be positive'):
      load('quickstart.py', *overrides)


def test_a_tenth_of_the_run_is_the_cadence_only_where_it_is_0():
  config = load('quickstart.py').resolve_steps(100)
  assert (config.total_steps, config.eval_every, config.checkpoint.every) == (1200, 400, 400)


@pytest.mark.parametrize(
  ('warmup', 'total', 'steps'), [(0.05, 1000, 50), (1 / 12, 20, 2), (100, 1000, 100), (0, 5, 0)]
)
def test_a_warmup_below_1_is_a_share_of_the_run(warmup, total, steps):
  config = replace_fields(Config(), {'schedule.warmup_steps': warmup, 'total_steps': total})
  assert config.resolve_steps(0).schedule.warmup_steps == steps


def test_a_warmup_longer_than_the_run_is_refused():
  config = replace_fields(Config(), {'schedule.warmup_steps': 20, 'total_steps': 20})
  with pytest.raises(UserError, match='config.schedule.warmup_steps is 20; the run has 20 steps'):
    config.resolve_steps(0)


@pytest.mark.parametrize(
  ('name', 'steps', 'warmup'),
  [
    ('quickstart.py', 1200, 100),
    ('quickstart_finetune.py', 500, 50),
    ('small_images.py', 5500, 275),
    ('finetune.py:b16,cifar10', 10_000, 500),
    ('finetune.py:b16,imagenet', 20_000, 500),
    ('finetune.py:b16,pets', 500, 100),
    ('vit_l16.py', 311_948, 10_000),
    ('augreg.py:b16', 1_039_828, 10_000),
    ('gsam.py:mixer_b16', 92_897, 10_000),
  ],
)
def test_steps_of_the_experiments(name, steps, warmup):
  config = load(name).resolve_steps(1000)
  assert (config.total_steps, config.schedule.warmup_steps) == (steps, warmup)


def test_a_run_is_not_resumed_with_another_dtype_of_the_first_moment(tmp_path):
  config = load_config('configs/quickstart.py')
  write_config(config, tmp_path / 'config.json')
  with pytest.raises(UserError, match="optimizer.momentum_dtype .'auto' there, 'bfloat16' now"):
    check_same_run(
      replace_fields(config, {'optimizer.momentum_dtype': 'bfloat16'}), tmp_path / 'config.json'
    )


def test_evaluations_have_any_names(tmp_path):
  config = load_config(
    'configs/quickstart.py',
    [
      '--config.evals.near.kind=knn',
      '--config.evals.near.neighbors=(3,4)',
      '--config.evals.b.every=7',
    ],
  )
  assert list(config.eval_configs) == ['b', 'near']
  near = config.eval_configs['near']
  assert (near.kind, near.neighbors, near.every, near.source) == ('knn', (3, 4), 400, 'digits')
  write_config(config, tmp_path / 'config.json')
  assert load_config(str(tmp_path / 'config.json')) == config
  check_same_run(load_config('configs/quickstart.py'), tmp_path / 'config.json')  # may change
  file = tmp_path / 'experiment.py'
  file.write_text(
    'from vit_jax.config import default_config, eval_config\n\n\ndef get_config():\n'
    "  config = default_config()\n  config.evals.real = eval_config('real', every=5)\n"
    '  return config\n'
  )
  assert load_config(str(file)).eval_configs['real'].every == 5


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    (
      'evals.near.kind=nearest',
      "config.evals.near.kind is 'nearest'; choose one of classification",
    ),
    ('evals.near.neighbours=3', "no config field 'evals.near.neighbours'; .*evals.near.neighbors"),
    ('evals.test.kind=knn', 'config.evals.test is not a name for an evaluation'),
    ('evals.Near.kind=knn', 'config.evals.Near is not a name for an evaluation'),
    ('evals.near.shots=(0,)', 'config.evals.near.shots is .0,.; it must be positive numbers'),
    ('evals.near=3', "no config field 'evals.near'"),
    ('evals.near.train_source=digits', 'name the source of the test examples, too'),
  ],
)
def test_wrong_evaluations_are_named(flag, message):
  with pytest.raises(UserError, match=message):
    load_config('configs/quickstart.py', [f'--config.{flag}'])
