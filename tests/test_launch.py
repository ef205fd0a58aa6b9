"""The launch scripts: their syntax, `retry.sh` and preparing in parts with real commands."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from tests.helpers import ROOT, SANDBOX, write_images
from vit_jax import signals

RETRY = ROOT / 'launch' / 'retry.sh'
# Appends a character to a file at each start, and ends as its next argument says.
CHILD = """
import os, signal, sys, time
path, *ends = sys.argv[1:]
with open(path, 'a') as file:
  file.write('x')
end = ends[min(os.path.getsize(path), len(ends)) - 1]
if end == 'wait':
  signal.signal(signal.SIGTERM, lambda *unused: os._exit(75))
  signal.signal(signal.SIGUSR1, lambda *unused: print('profiled', flush=True))
  print('ready', flush=True)
  time.sleep(60)
elif end == 'kill':
  os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(end))
"""


def start(path, *ends):
  """Starts `retry.sh` with a command that ends with `ends`: exit codes, 'kill' or 'wait'."""
  with signals.handled(signal.SIGINT, signal.default_int_handler):  # a background job ignores it
    return subprocess.Popen(
      ['bash', RETRY, sys.executable, '-c', CHILD, path, *ends],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )


@pytest.mark.parametrize('script', sorted(os.listdir(ROOT / 'launch')))
def test_the_syntax_of_shell_scripts_is_valid(script):
  if script.endswith('.yaml'):
    pytest.skip('not a shell script')
  assert subprocess.run(['bash', '-n', ROOT / 'launch' / script]).returncode == 0


@pytest.mark.parametrize(
  ('ends', 'code', 'starts'),
  [(['0'], 0, 1), (['2'], 2, 1), (['5'], 5, 1), (['75', 'kill', '78', '0'], 0, 4)],
  ids=str,
)
def test_a_command_is_rerun_until_its_exit_code_is_final(ends, code, starts, tmp_path):
  process = start(tmp_path / 'starts', *ends)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == code
  pauses = re.findall('rerunning the command in (.*) s', errors)
  assert pauses == ['2', '4', '8'][: starts - 1]
  assert len((tmp_path / 'starts').read_text()) == starts


@pytest.mark.parametrize('to_group', [False, True])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_command_and_then_the_script(number, to_group, tmp_path):
  process = start(tmp_path / 'starts', 'wait')
  assert process.stdout.readline() == 'ready\n'
  (os.killpg if to_group else os.kill)(process.pid, number)
  process.communicate(timeout=30)
  assert process.returncode == 75
  assert (tmp_path / 'starts').read_text() == 'x'


def test_a_request_for_a_profile_is_passed_on(tmp_path):
  process = start(tmp_path / 'starts', 'wait')
  assert process.stdout.readline() == 'ready\n'
  for _ in range(2):
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == 'profiled\n'
  process.terminate()
  process.communicate(timeout=30)
  assert process.returncode == 75
  assert (tmp_path / 'starts').read_text() == 'x'


def test_a_signal_between_two_starts_stops_the_script(tmp_path):
  process = start(tmp_path / 'starts', '75')
  assert 'rerunning the command' in process.stderr.readline()
  process.terminate()
  process.communicate(timeout=30)
  assert process.returncode == 75
  assert (tmp_path / 'starts').read_text() == 'x'


@pytest.mark.parametrize(('nodes', 'used'), [(1, 1), (2, 2), (3, 2), (4, 4)])
@pytest.mark.parametrize('code', [0, 76])
def test_slurm_starts_as_many_processes_as_divide_the_batch(nodes, used, code, tmp_path):
  for name, end in (('srun', code), ('scontrol', 0)):
    script = f'#!/bin/bash\necho {name} "$@" >> {tmp_path}/log\nexit {end}\n'
    (tmp_path / name).write_text(script)
    (tmp_path / name).chmod(0o755)
  env = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_NUM_NODES': str(nodes)}
  result = subprocess.run(
    ['bash', ROOT / 'launch' / 'slurm.sbatch', 'configs/x.py', '--workdir=w'],
    env=env | {'SLURM_JOB_ID': '7'},
  )
  assert result.returncode == code
  started, *requeued = (tmp_path / 'log').read_text().splitlines()
  assert f' --nodes={used} --ntasks={used} ' in started
  assert started.endswith('python -m vit_jax.main --config=configs/x.py --workdir=w')
  assert requeued == ['scontrol requeue 7'] * (code > 4)


@pytest.mark.parametrize(
  ('code', 'count', 'calls'),
  [
    (0, '', []),
    (5, '', []),
    (75, '3', ['scontrol requeue 7']),
    (76, '', ['sleep 2', 'scontrol requeue 7']),
    (137, '3', ['sleep 16', 'scontrol requeue 7']),
    (78, '50', ['sleep 256', 'scontrol requeue 7']),
  ],
)
def test_slurm_requeues_a_job_that_can_resume(code, count, calls, tmp_path):
  for name in ('srun', 'sleep', 'scontrol'):
    end = f'exit {code}' if name == 'srun' else f'echo "{name} $*" >> {tmp_path}/calls'
    (tmp_path / name).write_text(f'#!/bin/bash\n{end}\n')
    (tmp_path / name).chmod(0o755)
  environment = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7'}
  environment |= {'SLURM_JOB_NUM_NODES': '3', **({'SLURM_RESTART_COUNT': count} if count else {})}
  script = ROOT / 'launch' / 'slurm.sbatch'
  result = subprocess.run(['bash', script, 'configs/vit_l16.py'], env=environment)
  assert result.returncode == code
  made = (tmp_path / 'calls').read_text().splitlines() if calls else []
  assert made == calls and (tmp_path / 'calls').exists() == bool(calls)


# An array job runs all of its tasks, in reverse order; --dependency waits, so it is run at once.
FAKE_SBATCH = """#!/bin/bash
echo "$*" >> "$LOG"
script=$(cat)
[[ "$*" =~ --array=1-([0-9]+) ]] && tasks=$(seq "${BASH_REMATCH[1]}" -1 1)
for task in ${tasks:-none}; do
  SLURM_ARRAY_TASK_ID=$task bash -c "$script" >&2 || exit
done
echo "$(wc -l < "$LOG");cluster"
"""


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
  root = tmp_path / "my 'photos'"
  names = [f'{split}/{c}/{i}.png' for split in ('train', 'test') for c in 'ab' for i in range(4)]
  write_images(root, dict.fromkeys(names, (8, 8)))
  return root


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
  """With `python` and a fake sbatch first in PATH."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  scripts = {'python': f'#!/bin/bash\nexec {sys.executable} "$@"\n', 'sbatch': FAKE_SBATCH}
  for name, script in scripts.items():
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)
  path = f'{folder}:{os.environ["PATH"]}'
  return {**os.environ, 'PATH': path, 'LOG': str(tmp_path / 'log'), 'PARTS': '2'}


def test_slurm_prepares_in_parts_and_merges_them(photos, environment, tmp_path):
  result = subprocess.run(
    [ROOT / 'launch' / 'prepare_slurm.sh', photos, tmp_path / 'out', '--shards=2', '--workers=1'],
    env=environment,
    cwd=SANDBOX,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout == 'parts: job 1, merge: job 2\n'
  assert 'part 2/2 is finished: 2 shards' in result.stderr
  parts, merge = (tmp_path / 'log').read_text().splitlines()
  assert '--array=1-2' in parts and '--dependency=afterok:1 ' in merge
  assert (tmp_path / 'out' / 'dataset.json').exists()


def read_container(name: str) -> tuple[list[str], list[str]]:
  """The command and the arguments of the pod of a Job."""
  yaml = pytest.importorskip('yaml')
  job = yaml.safe_load((ROOT / 'launch' / name).read_text())
  assert (job['kind'], job['apiVersion']) == ('Job', 'batch/v1')
  (container,) = job['spec']['template']['spec']['containers']
  return container['command'], container['args']


def test_gke_prepares_in_parts_and_merges_them(photos, environment, tmp_path):
  target = tmp_path / 'out'
  command, args = read_container('gke_prepare.yaml')
  command = [word.replace('/64', '/2') for word in command]
  merge, merge_args = read_container('gke_prepare_merge.yaml')
  assert merge_args == [arg for arg in args if not arg.startswith('--workers')] + ['--merge']
  args = [str(photos), str(target), *args[2:]]
  merge_args = [str(photos), str(target), *merge_args[2:]]
  for index in ('1', '0'):
    env = {**environment, 'JOB_COMPLETION_INDEX': index}
    subprocess.run([*command, *args, '--shards=2'], env=env, cwd=SANDBOX, check=True)
  subprocess.run([*merge, *merge_args, '--shards=2'], env=environment, cwd=SANDBOX, check=True)
  assert json.loads((target / 'dataset.json').read_text())['settings']['size'] == 256
