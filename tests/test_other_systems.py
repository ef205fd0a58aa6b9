"""Windows and macOS, which lack some modules: they are hidden from real processes."""

import os
import subprocess
import sys

from tests.helpers import SANDBOX, TINY, write_images, write_tfds

# What Windows lacks; `grain` asks for the system before it imports array_record.
HIDE = """
import os, platform, signal, sys
hidden = 'resource fcntl termios array_record array_record.python'
sys.modules |= dict.fromkeys(hidden.split())
system, platform.system = platform.system, lambda: 'Windows'
try:
  import grain.python
except ImportError:
  pass
platform.system = system
for module, names in ((os, 'pread memfd_create'), (signal, 'pthread_sigmask SIGKILL')):
  for name in names.split():
    delattr(module, name)
from vit_jax import command_line, main, prepare_data
command = {'main': main, 'prepare_data': prepare_data}[sys.argv.pop(1)]
command_line.run(command.main)
"""


def run_elsewhere(*arguments) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, '-c', HIDE, *map(str, arguments)],
    cwd=SANDBOX,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=200,
  )


def train(source: str, workdir) -> subprocess.CompletedProcess:
  flags = (f'--config.data.{part}.source={source}' for part in ('train', 'test'))
  flags = (*flags, f'--workdir={workdir}', '--config.data.workers=0', '--config.total_steps=3')
  return run_elsewhere('main', '--config=configs/quickstart.py', *TINY, *flags)


def test_a_folder_is_trained_without_the_modules_that_windows_lacks(tmp_path):
  write_images(tmp_path / 'images', {f'{c}/{i}.png': (8, 8) for c in 'ab' for i in range(30)})
  result = train(f'folder:{tmp_path}/images', tmp_path / 'run')
  assert result.returncode == 0, result.stderr
  assert (tmp_path / 'run' / 'model' / 'params.npz').exists()


def test_prepared_data_without_its_package_ends_in_one_sentence(tmp_path):
  write_tfds(tmp_path / 'pets', 'label')
  write_images(tmp_path / 'images', {f'{c}/{i}.png': (8, 8) for c in 'ab' for i in range(3)})
  for result in (
    train(f'array_record:{tmp_path}/pets', tmp_path / 'run'),
    run_elsewhere('prepare_data', f'folder:{tmp_path}/images', tmp_path / 'target'),
  ):
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith('error: The package array-record, which')
    assert 'Traceback' not in result.stderr
  assert not (tmp_path / 'target').exists()
