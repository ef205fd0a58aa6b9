"""The scaling experiment: real runs, ended and continued; its files; mistakes."""

import csv
import functools
import importlib.util
import json
import pathlib
import shlex
import signal
import sys
import time

import numpy as np
import pytest
from etils import epath

from tests.helpers import TINY, start, write_finished_run
from vit_jax.config import load_config
from vit_jax.config.runs import write_config
from vit_jax.experiments import scaling
from vit_jax.hardware import num_cores
from vit_jax.models import build
from vit_jax.prepare.file_lock import try_lock
from vit_jax.sweeps import parallel_runs
from vit_jax.sweeps.point_runs import read_outcome
from vit_jax.weights.layouts.released import flatten

# Two small ViTs on digits; the argument is that of configs/scaling.py.
CONFIG = """
from vit_jax.config import default_config, eval_config

def get_config(argument):
  model, fraction, *strong = argument.split(',')
  config = default_config()
  config.data.train.split = f'train[:{fraction}]'
  config.model.depth = {'shallow': 1, 'deep': 2}[model]
  config.mixup_alpha = 0.5 if strong else 0.0
  config.data.workers = 0
  config.evals.fewshot = eval_config('fewshot', shots=(10,), train_split='train', split='test')
  return config
"""
FLAGS = [*(flag for flag in TINY if 'depth' not in flag), '--config.model.patch_size=4']
SMALL = ('--models=shallow,deep', '--fractions=50%', '--seeds=1')


@pytest.fixture(scope='module')
def config_file(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp('config') / 'small.py'
  path.write_text(CONFIG)
  return f'--config={path}'


@pytest.fixture
def command(command, config_file):
  """Runs the experiment in this process; returns (exit code, stdout, stderr)."""
  return functools.partial(command, scaling, config_file, *FLAGS)


@pytest.fixture
def finish(monkeypatch):
  """Replaces all runs by records of how they ended: accuracies by model, or exit codes."""

  def set_results(**results):
    def record(each, start):
      result = results[each.name.split(',')[0]]
      each.folder.mkdir(parents=True, exist_ok=True)
      if isinstance(result, int):
        text = json.dumps({'exit_code': result, 'message': 'it ended.'})
        (each.folder / 'exit.json').write_text(text)
      else:
        write_finished_run(each.folder, accuracy=result)
        source, *overrides = each.flags
        config = load_config(source.removeprefix('--config='), overrides).resolve_steps(718)
        write_config(config, epath.Path(each.folder) / 'config.json')
      return read_outcome(each)

    monkeypatch.setattr(parallel_runs, 'run_to_end', record)

  return set_results


def wait_for(process, *paths: pathlib.Path) -> None:
  """Waits until an experiment has made one of the files."""
  while not any(path.exists() for path in paths):
    assert process.poll() is None, process.communicate()
    time.sleep(0.02)


def test_an_experiment_that_is_stopped_ends_its_runs_and_continues(tmp_path, config_file, command):
  arguments = (*SMALL, f'--jobs={min(2, num_cores())}', f'--workdir={tmp_path}/all')
  process = start('experiments.scaling', config_file, *FLAGS, *arguments)
  folders = [tmp_path / 'all' / f'{model},50%,seed=0' for model in ('shallow', 'deep')]
  wait_for(process, folders[0] / 'log.txt')
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=120)
  assert process.returncode == 75, err
  assert 'rerun the same command' in err
  with (folders[0] / '.lock').open('ab') as lock:  # the run holds it, too
    assert try_lock(lock) is not False

  code, out, err = command(*arguments)
  assert code == 0, err
  with (tmp_path / 'all' / 'scaling.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [row['model'] for row in rows] == ['shallow', 'deep']
  for row, folder in zip(rows, folders, strict=True):
    metrics = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert float(row['accuracy']) == metrics[-1]['test/accuracy']
    assert float(row['accuracy_10shot']) == metrics[-1]['fewshot/accuracy_10shot']
    assert (row['examples'], row['status']) == ('718', 'finished')
    assert float(row['seconds']) > 0
  assert int(rows[1]['parameters']) > int(rows[0]['parameters'])
  assert (tmp_path / 'all' / 'scaling.md').read_text().rstrip() == out.rstrip()

  logs = [(folder / 'log.txt').read_bytes() for folder in folders]
  assert '2 runs of 2 finished before' in command(*arguments)[2]
  assert [(folder / 'log.txt').read_bytes() for folder in folders] == logs
  code, out, err = command(*arguments, '--config.batch_size=32')
  assert (code, out) == (2, '')
  assert 'holds a run with another config: batch_size (16 there, 32 now)' in err


def test_results_of_unfinished_experiments_are_gathered(tmp_path, command, finish):
  arguments = (*SMALL, '--seeds=2', f'--workdir={tmp_path}')
  finish(shallow=0.5)
  command(*arguments, '--models=shallow', '--strong')
  code, out, _ = command(*arguments, '--strong', '--collect')
  assert code == 0
  assert '| shallow | crop and flip | 3,' in out and '| 50.0 ± 0.0 |' in out
  assert '| deep | strong augmentation |' in out and '| – |' in out
  assert '3 of 6 runs are not finished.' in out


def test_a_lead_needs_two_seeds(tmp_path, command, finish):
  finish(shallow=0.5, deep=0.6)
  arguments = (*SMALL, '--seeds=2', '--strong', f'--workdir={tmp_path}')
  out = command(*arguments)[1]
  assert 'crop and flip: deep leads shallow at 718 examples.' in out
  assert 'strong augmentation: shallow minus deep in percentage points: -10.0 at 718' in out
  assert out.count(' leads shallow ') == 1


def test_every_run_has_its_command(tmp_path, command, monkeypatch):
  monkeypatch.chdir(tmp_path)
  arguments = (*SMALL, '--seeds=2', '--strong', '--workdir=here', '--print_commands')
  code, out, _ = command(*arguments)
  assert code == 0
  commands = [shlex.split(line) for line in out.splitlines()]
  names = [line[-1].removeprefix(f'--workdir={tmp_path}/here/') for line in commands]
  assert names == [
    'shallow,50%,seed=0',
    'deep,50%,seed=0',
    'shallow,50%,strong,seed=0',
    'deep,50%,strong,seed=0',
    'shallow,50%,seed=1',
    'deep,50%,seed=1',
  ]
  python, m, module, source, *overrides, _ = commands[3]
  assert (python, m, module) == (sys.executable, '-m', 'vit_jax.main')
  config = load_config(source.removeprefix('--config='), overrides)
  assert (config.seed, config.mixup_alpha, config.model.depth) == (0, 0.5, 2)


def write_weights(path, config):
  model = build.model_from_config(config.model, 10, platform='cpu')
  params = build.abstract_params(model, config.data.height_width, config.data.channels)
  path.parent.mkdir(parents=True)
  np.savez(path, **{name: np.zeros(x.shape, x.dtype) for name, x in flatten(params).items()})


def test_fine_tuning_is_compared_with_training_from_scratch(tmp_path, command, finish, config_file):
  for model in ('shallow', 'deep'):
    config = load_config(f'{config_file.removeprefix("--config=")}:{model},50%', FLAGS)
    write_weights(tmp_path / 'runs' / model / 'model.npz', config)
  finish(shallow=0.5, deep=0.5)
  arguments = (
    *SMALL,
    f'--init_from={tmp_path}/runs/{{model}}/model.npz',
    f'--workdir={tmp_path}/all',
  )
  code, out, _ = command(*arguments, '--print_commands')
  command_of = {line.rpartition('/')[2].strip("'"): shlex.split(line) for line in out.splitlines()}
  assert code == 0
  assert (
    f'--config.init_from={tmp_path}/runs/deep/model.npz' in command_of['deep,50%,finetuned,seed=0']
  )
  assert not [flag for flag in command_of['deep,50%,seed=0'] if 'init_from' in flag]
  only_deep = [each.replace('{model}', 'deep') for each in arguments]
  code, _, err = command(*only_deep, '--print_commands')
  assert (code, err.count('\n')) == (2, 1)
  assert 'shallow cannot be fine-tuned: ' in err and 'depth is 2 in the file, 1 in' in err
  code, out, _ = command(*arguments)
  assert code == 0
  assert '| deep | fine-tuned |' in out
  assert 'shallow: from scratch minus fine-tuned in percentage points: +0.0 at' in out


@pytest.mark.parametrize(
  ('results', 'code', 'sentence'),
  [
    ({'shallow': 0.5, 'deep': 0.6}, 0, '-10.0 at 718 examples (one seed).'),
    ({'shallow': 3, 'deep': 0.6}, 0, '- shallow,50%,seed=0 diverged: it ended.'),
    ({'shallow': 1, 'deep': 0.6}, 1, '1 run of 2 failed, first shallow,50%,seed=0 (it ended);'),
  ],
)
def test_how_runs_end(tmp_path, command, finish, results, code, sentence):
  finish(**results)
  status, out, err = command(*SMALL, f'--workdir={tmp_path}')
  assert status == code, err
  assert sentence in out + err
  assert '60.0' in out
  assert out.count('1 of 2 runs is not finished.') == (results['shallow'] != 0.5)
  assert out.count('- shallow,50%,seed=0 failed: it ended.') == (results['shallow'] == 1)
  assert out.rstrip() == (tmp_path / 'scaling.md').read_text().rstrip()
  assert '2/2 deep,50%,seed=0: accuracy 60.00%' in err
  assert (tmp_path / 'scaling.png').exists() == bool(importlib.util.find_spec('matplotlib'))


def test_without_matplotlib_there_is_a_note(tmp_path, command, finish, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  finish(shallow=0.5, deep=0.5)
  code, out, err = command(*SMALL, f'--workdir={tmp_path}', '--json')
  assert (code, err.count("pip install 'vit_jax[sweep]'")) == (0, 1)
  result = json.loads(out)
  assert [row['accuracy'] for row in result['runs']] == [0.5, 0.5]
  assert '+0.0 at 718 examples (one seed)' in result['comparison'][0]


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    (('--models=shallow,vgg',), "KeyError: 'vgg'"),
    (('--models=deep,deep',), '--models has deep twice.'),
    (('--models=',), '--models is empty'),
    (('--fractions=1%,1.0%',), '--fractions has 1% twice.'),
    (('--fractions=10%,10.001%',), '10% and 10.001% of the training split are both 14'),
    (('--fractions=half',), 'half'),
    (('--seeds=0',), '--seeds is 0; it must be from 1 to'),
    (('--strong=-1',), '--strong is -1; it must be from 0 to'),
    (('--jobs=0',), '--jobs is 0'),
    (('--config.seed=3',), 'config.seed is set for each run by --seeds'),
    (('--config.data.train.split=test',), 'config.data.train.split is set for each run by'),
    (('--config.totalsteps=3',), "There is no config field 'totalsteps'"),
    (('--config.data.train.source=folder:/none',), '/none'),
    (('--config.init_from=x',), 'config.init_from is set for each run by --init_from'),
    (('--init_from=/none/{model}',), 'There is no model at /none/'),
    (('--workdir=gs://x/y',), 'an experiment needs a local or a mounted folder'),
    (('--modles=vit',), 'There is no flag --modles'),
  ],
)
def test_mistakes_are_one_sentence_and_start_nothing(tmp_path, command, arguments, sentence):
  code, out, err = command(*SMALL, f'--workdir={tmp_path}/all', *arguments)
  assert (code, out, err.count('\n')) == (2, '', 1), err
  assert sentence in err
  assert not (tmp_path / 'all').exists()


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    (
      ('--models=a', '--fractions=1%,10%'),
      "does not follow the fraction: config.data.train.split is 'train'",
    ),
    (('--models=a,b',), 'has the same config for a,50%,seed=0 and b,50%,seed=0'),
    (('--models=a', '--strong'), 'for a,50%,seed=0 and a,50%,strong,seed=0'),
  ],
)
def test_a_config_file_must_follow_its_argument(tmp_path, command, arguments, sentence):
  file = '--config=configs/small_images.py'
  data = '--config.data.train.source=digits'
  code, out, err = command(*SMALL, file, data, f'--workdir={tmp_path}', *arguments)
  assert (code, out, err.count('\n')) == (2, '', 1), err
  assert sentence in err


@pytest.mark.parametrize(
  ('name', 'sentence'),
  [
    ('config.json', 'holds a run, not an experiment'),
    ('sweep.json', 'holds a sweep, not an experiment'),
    ('', 'is a file; an experiment needs a folder'),
  ],
)
@pytest.mark.parametrize('flag', ['--print_commands', '--collect', '--jobs=1'])
def test_a_folder_of_something_else_is_refused(tmp_path, command, name, sentence, flag):
  (tmp_path / (name or 'file')).write_text('{}')
  workdir = tmp_path if name else tmp_path / 'file'
  code, out, err = command(*SMALL, f'--workdir={workdir}', flag)
  assert (code, out, err.count('\n')) == (2, '', 1), err
  assert sentence in err


def test_printing_commands_checks_the_data(tmp_path, command):
  missing = '--config.data.train.source=folder:/none'
  code, out, err = command(*SMALL, f'--workdir={tmp_path}', '--print_commands', missing)
  assert (code, out) == (2, '') and '/none' in err
