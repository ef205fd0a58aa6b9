"""Measures what a user waits for: the first step of a run, a model that is loaded, a prediction.

  python benchmarks/startup.py --model=Ti/16 --rounds=5

Every case is a process of its own, from its start on, and each round measures all --cases:

  import_main, import_predict  Python and the imports of a command alone
  first_step  `python -m vit_jax.main --config=configs/quickstart.py` until its first step is done
  load        a Python that loads random weights of --model from an npz file in the released layout
  predict     `python -m vit_jax.predict` on one photo, with that file

first_step and predict are measured cold, with an empty compilation cache, and warm, with a cache
that an earlier process filled. Their files are in the system's cache of files in all rounds. Any
--config.FIELD=VALUE is set in first_step.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import vit_jax
from benchmarks import measurement, programs
from vit_jax import command_line
from vit_jax.config import load_config
from vit_jax.errors import UserError
from vit_jax.models import build

COLUMNS = (
  *measurement.MACHINE,
  *('case', 'cache', 'model', 'seconds', 'seconds_lowest', 'seconds_highest', 'rounds'),
  *('until_compiling', 'compiling', 'after_compiling', 'largest_imports'),
)
CASES = ('import_main', 'import_predict', 'first_step', 'load', 'predict')
LOAD = 'import sys, jax, vit_jax; jax.block_until_ready(vit_jax.load(sys.argv[1]).params)'
_PHASES = ('until_compiling', 'compiling', 'after_compiling')
Phases = dict[str, list[float]]


def write_files(model_name: str, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes random weights and a photo; returns their paths."""
  config = load_config('configs/default.py', programs.model_flags(model_name))
  model = build.model_from_config(config.model, num_classes=1000)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02),
    build.abstract_params(model, config.data.height_width),
  )
  vit_jax.Classifier(model, params, config.data.height_width).save(folder / 'x.npz')
  pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
  Image.fromarray(pixels).resize((500, 375)).save(folder / 'x.jpg')
  return folder / 'x.npz', folder / 'x.jpg'


def environment(cache: pathlib.Path) -> dict[str, str]:
  """That of a process which keeps what it compiles in `cache`."""
  path = os.pathsep.join(filter(None, (str(measurement.ROOT), os.environ.get('PYTHONPATH'))))
  return {**os.environ, 'PYTHONPATH': path, 'JAX_COMPILATION_CACHE_DIR': str(cache)}


def run(command: list[str], cache: pathlib.Path) -> float:
  """Seconds of a process, from its start to its end.

  Raises:
    UserError: when it fails.
  """
  start = time.perf_counter()
  done = subprocess.run(command, env=environment(cache), capture_output=True, text=True)
  seconds = time.perf_counter() - start
  if done.returncode:
    raise UserError(f'{" ".join(command[1:3])} failed: {last_line(done.stderr)}')
  return seconds


def run_first_step(
  overrides: list[str], folder: pathlib.Path, cache: pathlib.Path, phases: Phases
) -> float:
  """Seconds from the start of a run to its first step; adds those of its parts to `phases`."""
  workdir = tempfile.mkdtemp(dir=folder)
  command = [sys.executable, '-m', 'vit_jax.main', '--config=configs/quickstart.py']
  command += ['--config.log_every=1', f'--workdir={workdir}', *overrides]
  start, marks = time.perf_counter(), {}
  with (
    tempfile.TemporaryFile('w+') as errors,
    subprocess.Popen(
      command, env=environment(cache), stdout=subprocess.PIPE, stderr=errors, text=True
    ) as process,
  ):
    for line in process.stdout or ():
      for mark in ('compiling the first step', 'the train step was compiled', 'step 1/'):
        if mark in line:
          marks[mark] = time.perf_counter() - start
      if 'step 1/' in marks:
        process.send_signal(signal.SIGINT)
        break
    process.communicate()
    errors.seek(0)
    if len(marks) < 3:
      raise UserError(f'the run ended before its first step: {last_line(errors.read())}')
  shutil.rmtree(workdir)
  begin, compiled, end = marks.values()
  for name, seconds in zip(_PHASES, (begin, compiled - begin, end - compiled), strict=True):
    phases[name].append(seconds)
  return end


def last_line(text: str) -> str:
  return ([''] + text.strip().splitlines())[-1][:200]


def largest_imports(module: str, count: int = 6) -> str:
  """'jax 0.61, orbax 0.50, …': seconds of the packages that take longest to import."""
  command = [sys.executable, '-X', 'importtime', '-c', f'import {module}']
  env = environment(pathlib.Path())
  text = subprocess.run(command, env=env, capture_output=True, text=True).stderr
  seconds: dict[str, float] = {}
  for own, name in re.findall(r'import time: +(\d+) \| +\d+ \| +([\w.]+)', text):
    package = name.split('.')[0]
    seconds[package] = seconds.get(package, 0) + int(own) / 1e6
  largest = sorted(seconds, key=lambda name: -seconds[name])[:count]
  return ', '.join(f'{name} {seconds[name]:.2f}' for name in largest)


def make_cases(
  args: argparse.Namespace, overrides: list[str], folder: pathlib.Path
) -> tuple[dict[tuple[str, str], Callable[[], float]], dict[str, Phases]]:
  """{(case, cache): a function that measures it}, and {cache: the parts of the first step}."""
  weights, photo = write_files(args.model, folder)
  phases = {name: {phase: [] for phase in _PHASES} for name in ('cold', 'warm')}

  def first_step(cache: pathlib.Path, phases: Phases) -> float:
    return run_first_step(overrides, folder, cache, phases)

  def predict(cache: pathlib.Path) -> float:
    return run([sys.executable, '-m', 'vit_jax.predict', f'--model={weights}', str(photo)], cache)

  def empty() -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp(dir=folder))

  def import_module(module: str) -> Callable[[], float]:
    return lambda: run([sys.executable, '-c', f'import {module}'], warm)

  warm = empty()
  cases = {
    ('import_main', ''): import_module('vit_jax.main'),
    ('import_predict', ''): import_module('vit_jax.predict'),
    ('first_step', 'cold'): lambda: first_step(empty(), phases['cold']),
    ('first_step', 'warm'): lambda: first_step(warm, phases['warm']),
    ('load', ''): lambda: run([sys.executable, '-c', LOAD, str(weights)], warm),
    ('predict', 'cold'): lambda: predict(empty()),
    ('predict', 'warm'): lambda: predict(warm),
  }
  if 'first_step' in args.cases:  # fills the cache
    first_step(warm, {name: [] for name in _PHASES})
  if 'predict' in args.cases:
    predict(warm)
  return {key: case for key, case in cases.items() if key[0] in args.cases}, phases


def parse_args() -> tuple[argparse.Namespace, list[str]]:
  parser = measurement.make_parser('startup', __doc__)
  add = parser.add_argument
  add('--model', default='Ti/16', help='to load and to predict with')
  add('--cases', default=','.join(CASES), help='comma-separated')
  add('--rounds', type=measurement.positive, default=5)
  args, overrides = parser.parse_known_args()
  args.cases = measurement.chosen(args.cases, CASES, '--cases')
  load_config('configs/quickstart.py', overrides)  # refuses what is wrong
  return args, overrides


def main() -> None:
  args, overrides = parse_args()
  table = measurement.Table(args.out, 'startup', COLUMNS)
  with tempfile.TemporaryDirectory() as folder:
    cases, phases = make_cases(args, overrides, pathlib.Path(folder))
    measured, failures = measurement.measure_interleaved(cases, args.rounds)
  if failures:
    raise UserError('; '.join(failures.values()))
  for (case, cache), seconds in measured.items():
    row = {**measurement.machine(), 'case': case, 'cache': cache, 'rounds': args.rounds}
    row |= measurement.summary(seconds, 'seconds')
    if case == 'first_step':
      row |= {name: round(statistics.median(x), 3) for name, x in phases[cache].items()}
    elif case.startswith('import_'):
      row['largest_imports'] = largest_imports(f'vit_jax.{case.removeprefix("import_")}')
    else:
      row['model'] = args.model
    table.add(row)
  print(f'written to {table.path}')


if __name__ == '__main__':
  command_line.run(main)
