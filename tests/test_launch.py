"""The launch scripts: their syntax, and `retry.sh` with real commands and signals."""

import os
import signal
import subprocess
import sys

import pytest

from tests.helpers import ROOT
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
  [(['0'], 0, 1), (['2'], 2, 1), (['4'], 4, 1), (['75', 'kill', '76', '0'], 0, 4)],
  ids=str,
)
def test_a_command_is_rerun_until_its_exit_code_is_final(ends, code, starts, tmp_path):
  process = start(tmp_path / 'starts', *ends)
  process.communicate(timeout=60)
  assert process.returncode == code
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


def test_a_signal_between_two_starts_stops_the_script(tmp_path):
  process = start(tmp_path / 'starts', '75')
  assert 'rerunning the command' in process.stderr.readline()
  process.terminate()
  process.communicate(timeout=30)
  assert process.returncode == 75
  assert (tmp_path / 'starts').read_text() == 'x'
