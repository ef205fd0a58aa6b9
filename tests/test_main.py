"""The main command, as a user runs it: what a run leaves, resumes from, and refuses."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import vit_jax
from tests.helpers import GOLDEN, NO_TRANSFORMER, ROOT, SANDBOX, TINY, run, write_images
from vit_jax import command_line, evaluate, main
from vit_jax.config import Config, load_config
from vit_jax.config.fields import walk_fields
from vit_jax.files import cache_folder
from vit_jax.weights.layouts import released

QUICKSTART = ('--config=configs/quickstart.py', *TINY)


def run_here(monkeypatch, capsys, *arguments):
  """Runs the command in this process; returns (exit code, stdout, stderr)."""
  monkeypatch.setattr(sys, 'argv', ['vit_jax.main', *map(str, arguments)])
  with pytest.raises(SystemExit) as stopped:
    command_line.run(main.main)
  captured = capsys.readouterr()
  return stopped.value.code, captured.out, captured.err


def metrics(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_evaluate_repeats_the_last_evaluation_of_training(monkeypatch, capsys, tmp_path):
  flags = ('dtype=bfloat16', 'gelu=exact')
  test = ('resize=squash', 'interpolation=bicubic', 'antialias=False')
  code, _, err = run_here(
    monkeypatch,
    capsys,
    *QUICKSTART,
    f'--workdir={tmp_path}/run',
    *(f'--config.model.{flag}' for flag in flags),
    *(f'--config.data.test.{flag}' for flag in test),
  )
  assert code == 0, err
  arguments = (f'--model={tmp_path}/run', '--data=digits', '--json', '--batch_size=120')
  monkeypatch.setattr(sys, 'argv', ['vit_jax.evaluate', *arguments])
  with pytest.raises(SystemExit):
    command_line.run(evaluate.main)
  result = json.loads(capsys.readouterr().out)
  last = metrics(tmp_path / 'run')[-1]
  assert result['accuracy'] == last['test/accuracy']
  assert result['loss'] == last['test/loss']
  assert (result['dtype'], result['preprocessing']['resize']) == ('bfloat16', 'squash')


def test_the_flag_for_a_missing_data_set_runs_the_same_command(monkeypatch, capsys, tmp_path):
  code, _, err = run_here(
    monkeypatch,
    capsys,
    '--config=configs/vit_b16.py',
    f'--workdir={tmp_path}/run',
    '--config.data.train.source=synthetic:imagenet21k',
    '--config.data.test.split=test[:16]',
    *TINY,
    '--config.data.image_size=16',
    '--config.data.workers=0',
    '--config.model.pre_logits=0',
    '--config.eval_batch_size=16',
  )
  assert code == 0, err
  labels = vit_jax.load(tmp_path / 'run').labels
  assert labels is not None and len(labels) == 21_843 and 'tench, Tinca tinca' in labels


def test_a_run_leaves_what_the_design_promises(tiny_run):
  names = {child.name for child in tiny_run.iterdir()}
  assert {'config.json', 'metrics.jsonl', 'checkpoints', 'model'} <= names
  assert any(name.startswith('events.out.tfevents') for name in names)
  assert {child.name for child in (tiny_run / 'model').iterdir()} == {
    'params.npz',
    'config.json',
    'labels.txt',
  }
  lines = metrics(tiny_run)
  assert [line['step'] for line in lines if 'train/loss' in line] == [2, 4, 6]
  assert [line['step'] for line in lines if 'test/accuracy' in line] == [3, 6]
  assert {line['test/examples'] for line in lines if 'test/accuracy' in line} == {360}
  assert all(
    'train/learning_rate' in line and 'train/images_per_second' in line
    for line in lines
    if 'train/loss' in line
  )


def test_a_run_starts_again_from_its_config_json(tiny_run, tmp_path):
  result = run('main', f'--config={tiny_run}/config.json', f'--workdir={tmp_path}')
  assert result.returncode == 0, result.stderr
  with np.load(tiny_run / 'model/params.npz') as a, np.load(tmp_path / 'model/params.npz') as b:
    assert all(np.array_equal(a[name], b[name]) for name in a.files)


def test_a_finished_run_can_be_run_again(tiny_run, monkeypatch, capsys):
  before = (tiny_run / 'model/params.npz').read_bytes()
  code, out, err = run_here(monkeypatch, capsys, f'--config={tiny_run}/config.json')
  assert (code, err) == (0, '')
  assert 'complete after step 6' in out and 'done: test accuracy' in out
  assert (tiny_run / 'model/params.npz').read_bytes() == before


def test_fine_tuning_at_a_higher_resolution(tiny_run, tmp_path, monkeypatch, capsys):
  arguments = (
    *QUICKSTART,
    f'--workdir={tmp_path}',
    f'--config.init_from={tiny_run}',
    '--config.data.image_size=(16,12)',
  )
  code, out, err = run_here(monkeypatch, capsys, *arguments)
  assert (code, err) == (0, '')
  assert re.search(r'resized +1 .*\(1, 4, 16\) -> \(1, 12, 16\), corners', out)
  vit = vit_jax.load(tmp_path)
  assert vit.image_size == (16, 12)
  assert vit.params['Transformer']['posembed_input']['pos_embedding'].shape == (1, 12, 16)
  assert vit.labels == [str(digit) for digit in range(10)]


HYBRID = ('--config.model.resnet_width=32', '--config.model.resnet_blocks=(2,1)')
GOLDEN_SIZES = (
  '--config.model.width=48',
  '--config.model.depth=2',
  '--config.model.mlp_dim=96',
  '--config.model.num_heads=3',
  '--config.model.pool=token',
  '--config.data.image_size=16',
  '--config.total_steps=3',
  '--config.batch_size=8',
)


@pytest.mark.parametrize(
  ('name', 'suffix', 'flags'),
  [
    ('hybrid_stages', 'npz', [*HYBRID, '--config.model.patch_size=8']),
    (
      'bit_resnet',
      'npz',
      [
        *NO_TRANSFORMER,
        '--config.model.variant=R50x1',
        '--config.model.pool=gap',
        '--config.model.resnet_width=32',
        '--config.model.resnet_blocks=(1,2)',
      ],
    ),
    ('vit_patch14', 'safetensors', ['--config.model.patch_size=14', '--config.data.image_size=14']),
    (
      'vit_token_prelogits',
      'npz',
      ['--config.model.patch_size=16', '--config.model.pre_logits=40'],
    ),
  ],
)
def test_fine_tuning_from_any_checkpoint(name, suffix, flags, tmp_path, monkeypatch, capsys):
  vit_jax.load(GOLDEN / f'{name}.npz').save(tmp_path / f'x.{suffix}')
  arguments = (
    *QUICKSTART,
    f'--workdir={tmp_path / "run"}',
    f'--config.init_from={tmp_path}/x.{suffix}',
    *GOLDEN_SIZES,
    *flags,
  )
  code, out, err = run_here(monkeypatch, capsys, *arguments)
  assert (code, err) == (0, '')
  assert re.search('ignored +2 ', out) and re.search('re-initialized +2 ', out)
  vit = vit_jax.load(tmp_path / 'run')
  old = vit_jax.load(GOLDEN / f'{name}.npz', num_classes=0)
  assert vit.model.num_classes == 10
  # Three small steps away from where it started.
  start, end = released.flatten(old.params), released.flatten(vit.params)
  kept = [n for n in start if start[n].shape == end[n].shape and not n.startswith('head/')]
  moved = max(np.abs(np.asarray(start[n]) - np.asarray(end[n])).max() for n in kept)
  assert len(kept) >= len(start) - 1 and 0 < moved < 0.02


def test_weights_go_to_their_shards_and_train_the_same(tmp_path, monkeypatch, capsys):
  losses = []
  for name, mesh in (('one', ['data=8']), ('two', ['data=2', 'fsdp=4'])):
    arguments = (
      *QUICKSTART,
      f'--workdir={tmp_path / name}',
      *GOLDEN_SIZES,
      f'--config.init_from={GOLDEN}/vit_token_prelogits.npz',
      '--config.model.patch_size=16',
      *(f'--config.mesh.{axis}' for axis in mesh),
      '--config.log_every=1',
      '--config.model.num_heads=3',
    )
    code, _, err = run_here(monkeypatch, capsys, *arguments)
    assert (code, err) == (0, '')
    lines = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    losses.append([json.loads(line).get('train/loss') for line in lines])
  np.testing.assert_allclose([x for x in losses[0] if x], [x for x in losses[1] if x], rtol=1e-5)


def test_a_users_folder_of_images(tmp_path, monkeypatch, capsys):
  sizes = [(20, 30), (31, 17), (16, 16), (40, 12)]
  for split in ('train', 'val'):
    for name in ('a cat', 'dög'):
      write_images(
        tmp_path / 'images',
        {
          f'{split}/{name}/{i}{suffix}': sizes[i % 4]
          for i, suffix in enumerate(['.PNG', '.jpg', '.jpeg', '.bmp', '.webp', '.JPG'])
        },
      )
  source = f'folder:{tmp_path}/images'
  code, out, err = run_here(
    monkeypatch,
    capsys,
    *QUICKSTART,
    f'--workdir={tmp_path}/run',
    '--config.batch_size=8',
    f'--config.data.train.source={source}',
    f'--config.data.test.source={source}',
    '--config.data.augment.crop=inception',
    '--config.data.augment.flip=True',
  )
  assert (code, err) == (0, '')
  assert vit_jax.load(tmp_path / 'run').labels == ['a cat', 'dög']
  assert metrics(tmp_path / 'run')[-1]['test/examples'] == 12


def test_a_non_finite_loss_stops_the_run(tmp_path, monkeypatch, capsys):
  arguments = (
    *QUICKSTART,
    f'--workdir={tmp_path}',
    '--config.schedule.learning_rate=1e18',
    '--config.schedule.warmup_steps=0',
    '--config.schedule.decay=constant',
    '--config.total_steps=40',
    '--config.checkpoint.every=1',
  )
  code, _, err = run_here(monkeypatch, capsys, *arguments)
  assert code == 3
  assert err.count('\n') == 1 and 'at step' in err
  stopped = int(err.split('at step ')[1].split(';')[0])
  kept = [int(child.name) for child in (tmp_path / 'checkpoints').iterdir()]
  assert kept and max(kept) < stopped
  with ocp.StandardCheckpointer() as checkpointer:
    state = checkpointer.restore(tmp_path / 'checkpoints' / str(max(kept)) / 'default')
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state['params']))
  assert not (tmp_path / 'model').exists()


def bad_folder(tmp_path, files):
  write_images(tmp_path, {name: (8, 8) for name in files})
  (tmp_path / 'a').mkdir(exist_ok=True)
  return (
    f'--config.data.train.source=folder:{tmp_path}',
    f'--config.data.test.source=folder:{tmp_path}',
  )


# A mistake, the arguments that make it, and what the sentence must contain.
BAD = {
  'no config file': (lambda path: ['--config=configs/nope.py'], 'configs/nope.py'),
  'a config that is neither .py nor .json': (lambda path: ['--config=README.md'], 'README.md'),
  'a misspelt field': (
    lambda path: [*QUICKSTART, '--config.optimiser.weight_decay=1'],
    'optimizer.weight_decay',
  ),
  'a value of another type': (lambda path: [*QUICKSTART, '--config.seed=abc'], 'config.seed'),
  'an unknown flag': (lambda path: [*QUICKSTART, '--sede=1'], '--sede'),
  'a stray word': (lambda path: [*QUICKSTART, 'now'], 'now'),
  'an unknown choice': (lambda path: [*QUICKSTART, '--config.model.pool=max'], 'token, gap, map'),
  'an unknown source': (
    lambda path: [*QUICKSTART, '--config.data.train.source=cifar'],
    'folder:/path',
  ),
  'a missing data set': (
    lambda path: ['--config=configs/vit_l16.py'],
    'add --config.data.train.source=synthetic:imagenet21k.',
  ),
  'a TFDS data set that is not prepared': (
    lambda path: ['--config=configs/finetune.py:b16,cifar10'],
    "tfds.builder('cifar10'",
  ),
  'a missing folder': (
    lambda path: [*QUICKSTART, f'--config.data.train.source=folder:{path}/x'],
    '/x',
  ),
  'a folder without images': (lambda path: [*QUICKSTART, *bad_folder(path, [])], 'no image'),
  'a folder with one class': (
    lambda path: [*QUICKSTART, *bad_folder(path, ['a/1.png', 'a/2.png'])],
    '1 class',
  ),
  'other classes in the test split': (
    lambda path: [
      *QUICKSTART,
      bad_folder(
        path, ['a/1.png', 'b/2.png', 'b/3.png', 'b/4.png', 'a/5.png', 'a/6.png', 'a/7.png']
      )[0],
      '--config.data.test.source=digits',
    ],
    'classes',
  ),
  'a batch the devices do not divide': (
    lambda path: [*QUICKSTART, '--config.batch_size=12'],
    'use 8 or 16',
  ),
  'an image the patch does not divide': (
    lambda path: [*QUICKSTART, '--config.data.image_size=18'],
    '16x16',
  ),
  'a mesh of another number of devices': (
    lambda path: [*QUICKSTART, '--config.mesh.fsdp=3'],
    '8 devices',
  ),
  'a workdir that cannot be written': (
    lambda path: [*QUICKSTART, '--workdir=/dev/null/run'],
    '/dev/null/run',
  ),
  'an empty workdir': (lambda path: [*QUICKSTART, '--workdir='], '--workdir'),
  'a class whose name is not text': (
    lambda path: [*QUICKSTART, *bad_folder(path, ['a/1.png', os.fsdecode(b'b\xe9/1.png')])],
    'has unprintable characters',
  ),
  'a coordinator without a port': (
    lambda path: [*QUICKSTART, '--coordinator=abc', '--num_processes=2', '--process_id=1'],
    'HOST:PORT',
  ),
  **{
    f'{field} out of range': (
      lambda path, flag=f'--config.{field}': [*QUICKSTART, flag],
      field.split('=')[0],
    )
    for field in (
      'seed=-1',
      'model.patch_size=0',
      'model.width=-16',
      'model.depth=-1',
      'data.threads=-1',
      'data.test.crop_fraction=0',
      'ema_decay=1',
      'label_smoothing=2',
      'model.dropout_rate=1.5',
      'optimizer.clip_norm=-1',
      'schedule.cooldown_steps=-5',
      'optimizer.b1=1.5',
      'eval_batch_size=-16',
      'total_steps=0',
    )
  },
  'an image size that is not a pair': (
    lambda path: [*QUICKSTART, '--config.data.image_size=(16,)'],
    '(16,)',
  ),
  'weights that are not there': (
    lambda path: [*QUICKSTART, f'--config.init_from={path}/x.npz'],
    '/x.npz',
  ),
  'an unknown remat': (
    lambda path: [*QUICKSTART, '--config.model.remat=all'],
    'choose one of none, dots, full',
  ),
  'remat of a ResNet': (
    lambda path: [
      *QUICKSTART,
      *NO_TRANSFORMER,
      '--config.model.variant=R50x1',
      '--config.model.remat=full',
    ],
    'config.model.remat=full is not for a ResNet; set remat=none.',
  ),
  'weights of another architecture': (
    lambda path: [*QUICKSTART, f'--config.init_from={GOLDEN}/vit_gap.npz'],
    'width is 48 in the file, 16 in the config',
  ),
}


@pytest.mark.parametrize('mistake', BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(mistake, tmp_path, monkeypatch, capsys):
  arguments, expected = BAD[mistake]
  data = tmp_path / 'data'
  data.mkdir()
  workdir = tmp_path / 'workdir'
  code, out, err = run_here(monkeypatch, capsys, f'--workdir={workdir}', *arguments(data))
  assert code == 2, err
  assert out == ''
  assert err.startswith('error: ') and err.endswith('.\n') and err.count('\n') == 1
  assert expected in err
  assert not workdir.exists()


def test_an_unreadable_image_is_named(tmp_path, monkeypatch, capsys):
  sources = bad_folder(tmp_path, [f'{name}/{i}.png' for name in 'ab' for i in range(12)])
  for file in tmp_path.glob('b/*.png'):
    file.write_bytes(file.read_bytes()[:60])
  code, _, err = run_here(monkeypatch, capsys, *QUICKSTART, *sources)
  assert code == 2
  assert err.count('\n') == 1 and f'{tmp_path}/b/' in err


def test_a_messy_folder_of_a_user(tmp_path, monkeypatch, capsys):
  """The card comes first; bad images end the run, or are skipped, counted and left out of tests."""
  folder = tmp_path / 'images'
  names = [
    f'{split}/{name}/{i}.png' for split in ('train', 'test') for name in 'ab' for i in range(12)
  ]
  write_images(folder, dict.fromkeys(names, (9, 8)))
  (folder / 'test/a/copy.png').write_bytes((folder / 'train/a/0.png').read_bytes())
  (folder / 'train/b/zero.jpg').touch()
  (folder / 'test/b/0.png').write_bytes((folder / 'test/b/0.png').read_bytes()[:60])
  (folder / 'train/a/raw.xcf').touch()
  arguments = (
    *QUICKSTART,
    f'--config.data.train.source=folder:{folder}',
    f'--config.data.test.source=folder:{folder}',
    f'--workdir={tmp_path}/run',
    '--config.eval_batch_size=8',
    '--config.data.workers=0',
  )
  code, out, err = run_here(monkeypatch, capsys, *arguments)
  assert (code, out) == (2, '')
  assert '1 of 25 train images cannot be read' in err and 'b/zero.jpg' in err
  assert not (tmp_path / 'run').exists()
  skip = ('--config.data.on_bad_example=skip', '--config.data.max_bad_fraction=0.2')
  code, out, err = run_here(monkeypatch, capsys, *arguments, *skip)
  assert (code, err) == (0, '')
  first, *rest = out.splitlines()
  assert '2 classes' in first
  assert 'WARNING: 1 image of test is also in train' in out
  assert 'WARNING: 1 image of test cannot be read' in out
  assert '1 file is not a supported image (.xcf 1)' in out
  assert 'skipped: ' in out and 'on 24 examples (1 more cannot be read)' in out
  assert any(line.get('train/bad_examples', 0) > 0 for line in metrics(tmp_path / 'run'))
  (command,) = re.findall('next: python -m vit_jax.evaluate (.*)', out)
  result = run('evaluate', *shlex.split(command), '--batch_size=8')
  assert result.returncode == 0, result.stderr
  assert '24 examples' in result.stdout


def test_another_config_in_the_workdir_is_refused(tiny_run, monkeypatch, capsys):
  code, _, err = run_here(
    monkeypatch,
    capsys,
    *QUICKSTART,
    f'--workdir={tiny_run}',
    '--config.seed=7',
    '--config.log_every=1',
  )
  assert code == 2
  assert 'seed (0 there, 7 now)' in err and 'log_every' not in err


def test_a_config_json_is_parsed_never_executed(tmp_path, monkeypatch, capsys):
  path = tmp_path / 'config.json'
  path.write_text('__import__("os").mkdir("executed")')
  code, _, err = run_here(monkeypatch, capsys, f'--config={path}')
  assert code == 2 and 'not a JSON object' in err
  for text, expected in (
    ('{"modle": {"width": 3}}', 'model.width'),
    ('{"total_steps": null}', 'total_steps'),
    ('{"total_steps": [3]}', 'total_steps'),
    ('{"data": {"augment": {"area": ["a", "b"]}}}', 'data.augment.area'),
  ):
    path.write_text(text)
    code, _, err = run_here(monkeypatch, capsys, f'--config={path}')
    assert code == 2 and expected in err and err.count('\n') == 1


@pytest.mark.parametrize(
  'body', ['return None', 'return {}', 'return ConfigDict({"a": 1})', 'return 1 / 0', 'retrun']
)
def test_a_config_file_without_a_config_is_refused(body, tmp_path, monkeypatch, capsys):
  path = tmp_path / 'x.py'
  path.write_text(f'from ml_collections import ConfigDict\ndef get_config():\n  {body}\n')
  code, _, err = run_here(monkeypatch, capsys, f'--config={path}')
  assert code == 2 and str(path) in err and err.count('\n') == 1


def test_a_run_of_an_older_version_is_resumed(tiny_run, tmp_path, monkeypatch, capsys):
  shutil.copytree(tiny_run, tmp_path / 'run')
  path = tmp_path / 'run/config.json'
  config = json.loads(path.read_text())
  del config['optimizer']['epsilon']  # as if it had been added since
  config['polyak_decay'] = config.pop('ema_decay')  # what older versions called it
  config['data']['most_bad'] = config['data'].pop('max_bad_fraction')
  path.write_text(json.dumps(config))
  code, out, err = run_here(monkeypatch, capsys, f'--config={path}')
  assert (code, err) == (0, '') and 'complete after step 6' in out
  assert 'ema_decay' in json.loads(path.read_text())  # translated once


def test_a_damaged_checkpoint_is_named(tiny_run, tmp_path, monkeypatch, capsys):
  shutil.copytree(tiny_run, tmp_path / 'run')
  for step in (6, 4):
    for file in (tmp_path / f'run/checkpoints/{step}').rglob('*'):
      if file.is_file() and file.name != 'commit_success.txt':
        file.write_bytes(file.read_bytes()[:9])
  arguments = (f'--config={tmp_path}/run/config.json', '--config.checkpoint.every=5')
  code, out, err = run_here(monkeypatch, capsys, *arguments)
  assert (code, err) == (0, '')
  assert 'checkpoint 6 is damaged' in out and 'resuming after step 3' in out
  for step in (6, 5, 3):
    (tmp_path / f'run/checkpoints/{step}/manifest.json').write_text('{')
  code, _, err = run_here(monkeypatch, capsys, *arguments)
  assert code == 2 and 'No checkpoint' in err and 'is intact' in err and err.count('\n') == 1


def test_a_full_disk_ends_in_one_sentence(tmp_path):
  arguments = [*QUICKSTART, f'--workdir={tmp_path}', '--config.model.width=64']
  result = subprocess.run(  # no file may grow past 30 KiB
    ['bash', '-c', 'ulimit -f 30; exec "$@"', '', sys.executable, '-m', 'vit_jax.main', *arguments],
    cwd=SANDBOX,
    env={**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': 'false'},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 2, result.stderr
  # The threads of Orbax may print more around our sentence.
  ours = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
  assert len(ours) == 1 and 'cannot be written' in ours[0]


def test_a_real_process_ends_in_one_sentence_too():
  result = run('main', '--config=configs/nope.py')
  assert result.returncode == 2
  assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1


def test_the_outlook_of_google_for_this_python_is_not_shown():
  code = """import warnings, vit_jax.main
warnings.warn('You are using a Python version (3.11.7) which Google will stop', FutureWarning)
"""
  command = [sys.executable, '-c', code]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (result.returncode, result.stderr) == (0, '')


def test_libraries_of_a_few_data_sets_and_evaluations_are_not_imported_by_every_run():
  others = {'datasets', 'matplotlib', 'pandas', 'pyarrow', 'scipy', 'sklearn'}
  code = f"import sys, vit_jax.main; sys.exit(', '.join({others} & set(sys.modules)) or 0)"
  result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr


def test_help_prints_every_field_with_documentation_and_range(monkeypatch, capsys):
  code, out, _ = run_here(monkeypatch, capsys, '--help')
  assert code == 0 and '--coordinator HOST:PORT' in out
  for name, _, field in walk_fields(Config()):
    assert f'  --config.{name}=' in out
    assert field.metadata['doc'][:40] in ' '.join(out.split())
  assert '[at least 0 and less than 1]' in out and 'config.data.augment: Random changes' in out


def test_help_of_one_section(monkeypatch, capsys):
  code, out, _ = run_here(monkeypatch, capsys, '--help=schedule')
  assert code == 0 and out.startswith('config.schedule: ')
  assert '--config.schedule.warmup_steps=0.0' in out and 'optimizer' not in out
  code, _, err = run_here(monkeypatch, capsys, '--help=schedul')
  assert code == 2 and 'model, data, optimizer, lora, schedule, checkpoint, ' in err


def test_experiments_of_the_package_run_from_an_empty_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert load_config('configs/quickstart_finetune.py').data.image_size == 24
  assert not list(tmp_path.iterdir())


def test_nothing_of_the_users_is_in_reach():
  assert pathlib.Path.cwd() == SANDBOX != ROOT
  assert pathlib.Path('~').expanduser() == SANDBOX / 'home'
  assert not pathlib.Path('runs').resolve().is_relative_to(ROOT)
  assert cache_folder().is_relative_to(SANDBOX)


@pytest.mark.parametrize(
  ('config', 'name'),
  [
    ('configs/finetune.py:b16,cifar10', 'finetune-b16-cifar10'),
    (
      'configs/finetune.py:ti16,table:/x/labels.csv?image=file&label=breed&sep=|',
      'finetune-ti16-table-x-labels.csv-image-file-label-breed-sep',
    ),
    ('configs/a.py:table:/configs/x.jsonl', 'a-table-configs-x.jsonl'),
  ],
)
def test_the_default_workdir(config, name):
  assert command_line.default_workdir(config) == f'runs/{name}'


def test_the_default_workdir_is_a_name_that_file_systems_have():
  names = [command_line.default_workdir(f'configs/a.py:folder:/{"猫" * 200}/{i}') for i in range(2)]
  assert len(set(names)) == 2
  assert all(len(name.removeprefix('runs/').encode()) <= 255 for name in names)


def test_a_run_on_a_table_checks_its_images_first(monkeypatch, capsys, tmp_path):
  write_images(tmp_path, {f'train/{i}.png': (8, 8) for i in range(30)})
  (tmp_path / 'train.csv').write_text(
    '\n'.join(['id,kind', *(f'{i},{"ab"[i % 2]}' for i in range(30))])
  )
  (tmp_path / 'train' / '7.png').write_bytes(b'no image')
  source = f'table:{tmp_path}/train.csv?image=id&label=kind&sep=|'
  flags = [*QUICKSTART, f'--workdir={tmp_path}/run', f'--config.data.train.source={source}']
  flags += ['--config.data.channels=3', '--config.eval_batch_size=8', '--config.batch_size=8']
  flags += ['--config.loss=sigmoid']  # sep= makes it multi-label
  code, _, err = run_here(monkeypatch, capsys, *flags)
  assert code == 2 and 'train/7.png' in err and 'on_bad_example=skip' in err
  flags += ['--config.data.on_bad_example=skip', '--config.data.max_bad_fraction=0.1']
  code, out, err = run_here(monkeypatch, capsys, *flags)
  assert code == 0, err
  assert f'{source}' in out + err and '2 classes' in out + err
  assert (
    json.loads((tmp_path / 'run' / 'config.json').read_text())['data']['train']['source'] == source
  )
