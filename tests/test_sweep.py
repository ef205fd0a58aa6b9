"""The `sweep` command: real runs, killed and continued; what it prints; mistakes."""

import json
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import TINY, run, start, write_finished_run
from vit_jax import command_line, sweep
from vit_jax.config import load_config
from vit_jax.prepare.file_lock import try_lock
from vit_jax.sweeps.point_runs import Run, read_outcome
from vit_jax.sweeps.slurm_jobs import run_jobs

RATE = 'config.schedule.learning_rate'
FLAGS = ('--config=configs/quickstart.py', *TINY)


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs the command in this process; returns (exit code, stdout, stderr)."""

  def run_here(*arguments):
    monkeypatch.setattr(sys, 'argv', ['sweep', *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
      command_line.run(sweep.main)
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err

  return run_here


def wait_for(process: subprocess.Popen, path: pathlib.Path) -> None:
  """Waits until a sweep has made a file."""
  while not path.exists():
    assert process.poll() is None, process.communicate()
    time.sleep(0.02)


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
  """A sweep killed while its second run diverges, and continued; what the first run left then."""
  workdir = tmp_path_factory.mktemp('sweep') / 'sweep'
  arguments = ('sweep', *FLAGS, '--grid', f'{RATE}=0.001,1e9', f'--workdir={workdir}')
  process = start(*arguments)
  wait_for(process, workdir / 'learning_rate=1e+09' / 'log.txt')
  process.kill()
  process.communicate()
  log = (workdir / 'learning_rate=0.001' / 'log.txt').read_text()
  return workdir, log, run(*arguments)


def test_a_killed_sweep_continues_and_repeats_no_finished_run(killed):
  workdir, log, result = killed
  assert result.returncode == 0, result.stderr
  assert 'of 2 finished before' in result.stderr
  assert (workdir / 'learning_rate=0.001' / 'log.txt').read_text() == log


def test_a_rate_that_diverges_is_marked_and_the_sweep_goes_on(killed):
  workdir, _, result = killed
  good, bad = json.loads((workdir / 'sweep.json').read_text())['points']
  assert (good['status'], bad['status']) == ('finished', 'diverged')
  assert 'at step' in bad['message']
  assert '|         1e+09 |          diverged |' in result.stdout


def test_runs_are_compared_on_held_out_data_and_the_test_data_is_scored_once(killed):
  workdir, _, _ = killed
  result = json.loads((workdir / 'sweep.json').read_text())
  assert result['chosen'] == {'learning_rate': 0.001}
  assert result['points'][0]['held_out_examples'] == 29  # 2% of 1,437
  assert (result['final']['status'], result['final']['test_examples']) == ('finished', 360)
  config = json.loads((workdir / 'learning_rate=0.001' / 'config.json').read_text())
  assert config['data']['train']['split'] == 'train[:98%]'
  assert config['data']['test']['split'] == 'train[98%:]'
  final = workdir / 'final,learning_rate=0.001'
  data = json.loads((final / 'config.json').read_text())['data']
  assert (data['train']['split'], data['test']['split']) == ('train', 'test')
  assert (final / 'metrics.jsonl').read_text().count('test/accuracy') == 1


def test_a_finished_sweep_only_reports(killed, command):
  workdir, _, result = killed
  arguments = (*FLAGS, f'--grid={RATE}=0.001,1e9', f'--workdir={workdir}')
  assert command(*arguments) == (0, result.stdout, '2 runs of 2 finished before\n')
  code, out, err = command(*arguments, '--collect', '--json')
  assert (code, err) == (0, '')
  assert json.loads(out) == json.loads((workdir / 'sweep.json').read_text())
  assert command(*arguments, '--print_commands') == (0, '', '')


def test_values_can_be_added_but_settings_not_changed(killed, command):
  workdir, _, _ = killed
  arguments = (*FLAGS, f'--workdir={workdir}', '--print_commands')
  code, out, _ = command(*arguments, '--grid', f'{RATE}=0.001,0.002,1e9')
  assert (code, out.count('\n')) == (0, 1)
  assert f'--{RATE}=0.002' in out
  code, out, err = command(*arguments, '--grid', f'{RATE}=0.001', '--config.seed=1')
  assert (code, out) == (2, '')
  assert 'holds another sweep: config.seed (0 there, 1 now)' in err
  code, _, err = command(*arguments, '--grid', f'{RATE}=0.001', '--held_out=5%')
  assert code == 2
  assert "the held-out split ('train[98%:]' there, 'train[95%:]' now)" in err


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_an_interrupted_sweep_ends_its_run_too(tmp_path, number, code):
  process = start('sweep', *FLAGS, '--grid', f'{RATE}=0.001', f'--workdir={tmp_path}/sweep')
  folder = tmp_path / 'sweep' / 'learning_rate=0.001'
  wait_for(process, folder / 'config.json')
  process.send_signal(number)
  _, err = process.communicate(timeout=60)
  assert process.returncode == code, err
  assert 'rerun the same command' in err
  with (folder / '.lock').open('ab') as lock:  # the run holds it, too
    assert try_lock(lock) is not False
  assert read_outcome(Run('', (), folder)).status == 'unfinished'


def test_commands_for_other_schedulers(tmp_path, command):
  arguments = (*FLAGS, '--grid', f'{RATE}=0.1,0.2', f'--workdir={tmp_path}/my sweep')
  code, out, err = command(*arguments, '--print_commands')
  assert (code, err) == (0, '')
  commands = [shlex.split(line) for line in out.splitlines()]
  for rate, (python, m, module, config, *flags, workdir) in zip((0.1, 0.2), commands, strict=True):
    assert (python, m, module) == (sys.executable, '-m', 'vit_jax.main')
    assert load_config(config.removeprefix('--config='), flags).schedule.learning_rate == rate
    folder = pathlib.Path(workdir.removeprefix('--workdir='))
    assert folder == tmp_path / 'my sweep' / f'learning_rate={rate}'
    write_finished_run(folder, accuracy=rate)
  code, out, _ = command(*arguments, '--print_commands')  # what remains: the final run
  (final,) = map(shlex.split, out.splitlines())
  assert f'--{RATE}=0.2' in final
  assert not [flag for flag in final if 'split' in flag]
  code, out, _ = command(*arguments, '--collect')
  assert code == 0
  assert '**20.00%**' in out


def test_results_are_gathered_while_runs_remain(tmp_path, command):
  write_finished_run(tmp_path / 'learning_rate=0.1', accuracy=0.5)
  grid = ('--grid', f'{RATE}=0.1,0.2', f'--workdir={tmp_path}')
  code, out, _ = command(*FLAGS, *grid, '--collect')
  assert code == 0
  assert '50.00%' in out and 'unfinished' in out and 'Chosen' not in out


def finished(monkeypatch, exit_codes):
  """Replaces all runs by records of how they ended: {'learning_rate=0.1': 3, …}, else 0."""

  def record(each):
    code = exit_codes.get(each.name, 0)
    if code:
      each.folder.mkdir()
      text = json.dumps({'exit_code': code, 'message': 'it ended.'})
      (each.folder / 'exit.json').write_text(text)
    else:
      write_finished_run(each.folder, accuracy=0.5)
    return read_outcome(each)

  monkeypatch.setattr('vit_jax.sweeps.launch.run_to_end', record)


@pytest.mark.parametrize(
  ('codes', 'code', 'sentence'),
  [
    ((3, 3), 3, 'The runs of all points diverged; try lower learning rates.'),
    ((1, 0), 1, '1 run of 2 failed, first learning_rate=0.1 (it ended); rerun the command'),
    ((3, 0, 4), 1, 'The run on all training data failed: it ended.'),
  ],
)
def test_exit_codes(tmp_path, command, monkeypatch, codes, code, sentence):
  names = ('learning_rate=0.1', 'learning_rate=0.2', 'final,learning_rate=0.2')
  finished(monkeypatch, dict(zip(names, codes, strict=False)))
  grid = ('--grid', f'{RATE}=0.1,0.2', f'--workdir={tmp_path}')
  result, out, err = command(*FLAGS, *grid)
  assert result == code
  assert sentence in err.splitlines()[-1]
  assert '| learning_rate |' in out


def test_the_grid_of_the_paper_comes_with_the_config(tmp_path, command):
  path = tmp_path / 'fine.py'
  path.write_text(
    'from vit_jax.config import default_config\n'
    'def get_config(name):\n  return default_config()\n'
    'def paper_grid(name):\n'
    "  grid = {'schedule.learning_rate': (0.003, 0.01)}\n"
    "  return grid, f'train[:90%]+{name}', 'train[90%:]'\n"
  )
  arguments = (f'--config={path}:extra', '--paper_grid', f'--workdir={tmp_path}/sweep')
  code, out, _ = command(*arguments, '--print_commands')
  assert code == 0
  commands = [shlex.split(line) for line in out.splitlines()]
  assert [line[4] for line in commands] == [f'--{RATE}=0.003', f'--{RATE}=0.01']
  assert '--config.data.train.split=train[:90%]+extra' in commands[0]
  assert '--config.data.test.split=train[90%:]' in commands[0]
  own = (f'--workdir={tmp_path}/own', '--config.data.train.split=train[:800]')
  code, out, _ = command(*arguments, *own, '--print_commands')
  assert "'--config.data.train.split=train[:784]' '--config.data.test.split=train[784:800]'" in out


@pytest.mark.parametrize(
  ('dataset', 'rates', 'train', 'held_out'),
  [
    ('cifar100', '0.001 0.003 0.01 0.03', 'train[:98%]', 'train[98%:]'),
    ('imagenet', '0.003 0.01 0.03 0.06', 'train[:99%]', 'train[99%:]'),
  ],
)
def test_table_4_is_one_flag(tmp_path, command, dataset, rates, train, held_out):
  config = f'--config=configs/finetune.py:b16,{dataset}'
  code, out, _ = command(config, '--paper_grid', f'--workdir={tmp_path}', '--print_commands')
  assert code == 0
  commands = [shlex.split(line) for line in out.splitlines()]
  assert [line[4] for line in commands] == [f'--{RATE}={rate}' for rate in rates.split()]
  for line in commands:
    splits = [f'--config.data.train.split={train}', f'--config.data.test.split={held_out}']
    assert line[5:7] == splits


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    ((), 'There is no grid; name fields and values with --grid'),
    (('--gird', f'{RATE}=1'), 'There is no flag --gird'),
    (('--grid', 'config.schedule.rate=1'), "There is no config field 'schedule.rate'"),
    (('--paper_grid',), 'quickstart.py has no function paper_grid()'),
    (('--grid', f'{RATE}=1', '--held_out=5'), "--held_out is '5'; it must be a share"),
    (('--grid', f'{RATE}=1', '--held_out=0.01%'), 'is empty'),
    (
      ('--grid', f'{RATE}=1', '--config.objective=masked_patches'),
      'objective=masked_patches does not have',
    ),
    (('--grid', f'{RATE}=1', '--workdir=gs://x/y'), 'a sweep needs a local or a mounted folder'),
    (('--grid', f'{RATE}=1', '--slurm=a=1'), '--slurm needs --launcher=slurm'),
    (('--grid', f'{RATE}=1', '--launcher=slurm', '--slurm=a'), "--slurm is 'a'; it takes NAME"),
    (
      ('--grid', f'{RATE}=1', '--config.schedule.warmup_steps=9'),
      'the warmup must end before it does',
    ),
    (('--grid', f'{RATE}=1', '--config.data.train.source=folder:/none'), '/none'),
  ],
)
def test_mistakes_are_one_sentence_and_start_nothing(tmp_path, command, arguments, sentence):
  code, out, err = command(*FLAGS, f'--workdir={tmp_path}/sweep', *arguments)
  assert (code, out, err.count('\n')) == (2, '', 1)
  assert sentence in err
  assert not (tmp_path / 'sweep').exists()


def test_the_folder_of_a_run_is_no_folder_of_a_sweep(tmp_path, command):
  write_finished_run(tmp_path, accuracy=0.5)
  code, _, err = command(*FLAGS, '--grid', f'{RATE}=1', f'--workdir={tmp_path}')
  assert code == 2
  assert 'holds a run, not a sweep' in err


def test_slurm_needs_submitit(tmp_path, command, monkeypatch):
  monkeypatch.setitem(sys.modules, 'submitit', None)
  flags = ('--grid', f'{RATE}=1', f'--workdir={tmp_path}/sweep', '--launcher=slurm')
  code, _, err = command(*FLAGS, *flags)
  assert code == 2
  assert "pip install 'vit_jax[sweep]' installs it" in err


def test_jobs_of_submitit_are_the_same_runs(tmp_path):
  pytest.importorskip('submitit')
  runs = [Run(name, ('--config=configs/none.py',), tmp_path / name) for name in 'ab']
  parameters = {'timeout_min': 5, 'tasks_per_node': 2}
  run_jobs(runs, tmp_path / 'slurm', parameters, cluster='local')
  for each in runs:
    assert 'There is no config file' in (each.folder / 'log-1.txt').read_text()
    assert read_outcome(each).message.startswith('There is no config file configs/none.py')
