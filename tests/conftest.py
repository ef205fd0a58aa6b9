"""Strict settings for all tests: eight CPU devices, no rank promotion, warnings are errors."""

import os
import pathlib
import subprocess
import sys
import tempfile

# Before jax is imported, and for the processes that tests start.
CACHE = os.path.join(tempfile.gettempdir(), f'vit_jax_test_cache_{os.getuid()}')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', CACHE)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from PIL import Image  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / 'tests' / 'golden'

if jax.config.jax_platforms in (None, '', 'cpu'):
  jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_default_matmul_precision', 'highest')  # no TF32 against golden numbers

# A run of seconds: two blocks of width 16 on digits of 8 x 8 pixels.
TINY = (
    '--config.total_steps=6',
    '--config.batch_size=16',
    '--config.eval_batch_size=120',
    '--config.log_every=2',
    '--config.eval_every=3',
    '--config.checkpoint.every=2',
    '--config.schedule.warmup_steps=2',
    '--config.model.width=16',
    '--config.model.depth=2',
    '--config.model.mlp_dim=32',
    '--config.model.num_heads=2',
    '--config.model.dropout_rate=0.1',
    '--config.data.image_size=8',
    '--config.data.threads=2',
)


def start(module: str, *args: str, **kwargs) -> subprocess.Popen:
  """Starts `python -m vit_jax.<module>` in a real process, from the root of the project."""
  return subprocess.Popen(
      [sys.executable, '-m', f'vit_jax.{module}', *map(str, args)],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      **kwargs,
  )


def run(module: str, *args: str, **kwargs) -> subprocess.CompletedProcess:
  """Runs `python -m vit_jax.<module>` to its end."""
  process = start(module, *args, **kwargs)
  out, err = process.communicate(timeout=300)
  return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def write_images(folder: pathlib.Path, files: dict[str, tuple[int, int]], seed: int = 0) -> None:
  """Writes random RGB images: {'train/cat/1.png': (height, width), …}."""
  rng = np.random.default_rng(seed)
  for name, size in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory) -> pathlib.Path:
  """The workdir of a finished tiny run, made once by the real command."""
  workdir = tmp_path_factory.mktemp('tiny') / 'run'
  result = run('main', '--config=configs/quickstart.py', f'--workdir={workdir}', *TINY)
  assert result.returncode == 0, result.stderr
  return workdir
