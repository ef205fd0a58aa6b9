"""`python -m vit_jax` and `vit-jax`: the list of the commands, and each of them by its name."""

import shutil
import subprocess
import sys

import pytest

from tests.helpers import ROOT
from vit_jax.__main__ import COMMANDS


def run(*arguments: str, code: int = 0) -> str:
  """What `python -m vit_jax` prints, on stdout or, for a mistake, on stderr."""
  command = [sys.executable, '-m', 'vit_jax', *arguments]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == code, result.stderr
  return result.stderr if code else result.stdout


@pytest.mark.parametrize('arguments', [(), ('--help',)])
def test_every_command_has_a_line(arguments):
  lines = run(*arguments).splitlines()
  for name in COMMANDS:
    (line,) = [line for line in lines if line.split()[:1] == [name]]
    assert len(line) <= 100 and line.split()[1][0].isupper()


def test_an_unknown_command_names_the_close_ones():
  assert run('trian', code=2) == "error: There is no command 'trian'; choose train.\n"
  assert run('\x1b', code=2).startswith(
    r"error: There is no command '\\x1b'; choose train, evaluate"
  )


def test_a_command_runs_with_worker_processes_of_its_own(tmp_path):
  run(
    'train',
    '--config=configs/quickstart.py',
    f'--workdir={tmp_path}/run',
    '--config.total_steps=2',
    '--config.batch_size=8',
    '--config.data.workers=1',
    '--config.model.depth=1',
  )
  assert 'accuracy' in run('evaluate', f'--model={tmp_path}/run', '--data=digits', '--json')


def test_the_console_script_is_installed():
  script = shutil.which('vit-jax', path=str(sys.prefix) + '/bin')
  if script is None:
    pytest.skip('vit_jax is not installed in this environment')
  result = subprocess.run([script, 'catalog', '--help'], capture_output=True, text=True)
  assert (result.returncode, result.stdout[:32]) == (0, 'usage: python -m vit_jax.catalog')
