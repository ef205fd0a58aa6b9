"""Strict settings for all tests: a sandbox, eight CPU devices, no rank promotion, no warnings.

Tests run in a temporary folder that has configs/ and nothing else, with a home of its own: what
lies in the user's runs/, data/ or ~/.cache can be neither read nor written.
"""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SANDBOX = pathlib.Path(tempfile.mkdtemp(prefix='vit_jax_test_')).resolve()
(SANDBOX / 'home').mkdir()
(SANDBOX / 'configs').symlink_to(ROOT / 'configs')
atexit.register(shutil.rmtree, SANDBOX, ignore_errors=True)
# Before jax is imported, and for the processes that tests start.
os.environ |= {
  'HOME': str(SANDBOX / 'home'),
  'PYTHONPATH': os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH')))),
  'VIT_JAX_TEST_SANDBOX': str(SANDBOX),
}
for name in ('VIT_JAX_CACHE', 'TFDS_DATA_DIR', 'HF_HOME', 'XDG_CACHE_HOME'):
  os.environ.pop(name, None)
# Outside the sandbox, so that the next session finds what this one compiled.
CACHE = os.path.join(tempfile.gettempdir(), f'vit_jax_test_cache_{os.getuid()}')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', CACHE)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import pytest  # noqa: E402

if jax.config.jax_platforms in (None, '', 'cpu'):
  jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_default_matmul_precision', 'highest')  # of what models are compared with

from tests.helpers import TINY, run  # noqa: E402, after the devices are configured
from vit_jax import command_line  # noqa: E402


def pytest_collection_finish(session: pytest.Session) -> None:
  del session
  os.chdir(SANDBOX)  # only now: pytest finds its tests from where it was started


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory) -> pathlib.Path:
  """The workdir of a finished tiny run, made once by the real command."""
  workdir = tmp_path_factory.mktemp('tiny') / 'run'
  result = run('main', '--config=configs/quickstart.py', f'--workdir={workdir}', *TINY)
  assert result.returncode == 0, result.stderr
  return workdir


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs a command in this process; returns (exit code, stdout, stderr)."""

  def run_here(module, *arguments):
    monkeypatch.setattr(sys, 'argv', [module.__name__, *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
      command_line.run(module.main)
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err

  return run_here
