"""Measures a real run, from files to metrics, beside the bare train step of the same config.

  python benchmarks/end_to_end.py --model=B/16 --config.batch_size=32 --data=folder:/photos
  python benchmarks/end_to_end.py --model=S/16 --config.batch_size=16

The run is `python -m vit_jax.main` in a process of its own, on --data or on JPEG files of 500 x 375
pixels that are made for it. Its rate is that of metrics.jsonl, without compilation, evaluations and
checkpoints, after a first interval in which the queues fill. The bare step is the same compiled
step on one batch that is already on the device. Both are measured in turn.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measurement, programs
from vit_jax import command_line
from vit_jax.config import Config, load_config
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.training.preflight import open_sources

COLUMNS = (
  *measurement.MACHINE,
  *('data', 'model', 'image_size', 'dtype', 'batch_size', 'steps', 'rounds', 'images_per_second'),
  *('images_per_second_lowest', 'images_per_second_highest', 'bare_images_per_second'),
  *('bare_images_per_second_lowest', 'bare_images_per_second_highest', 'overhead_percent'),
  'data_wait_percent',
)
CLASSES = ('cat', 'dog')


def write_images(folder: pathlib.Path, count: int) -> None:
  """Writes smooth random JPEG files of two classes: `count` for training, 8 for tests."""
  rng = np.random.default_rng(0)
  for split, size in (('train', count), ('test', 8)):
    for i in range(size):
      path = folder / split / CLASSES[i % 2] / f'{i}.jpg'
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
      image = Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC)
      image.save(path, quality=90)


def run_flags(args: argparse.Namespace, source: str) -> list[str]:
  """The flags of the run, which the bare step has, too."""
  steps = args.log_every * (args.intervals + 1)
  flags = {
    'data.train.source': source,
    'total_steps': steps,
    'log_every': args.log_every,
    'eval_every': steps,
    'checkpoint.every': steps,
    'schedule.learning_rate': 1e-5,
  }
  named = [f'--config.{name}={value}' for name, value in flags.items()]
  return [*programs.model_flags(args.model), *named]


def real_run(flags: list[str], log_every: int, batch_size: int) -> tuple[float, float]:
  """(images/s, share of the time that it waited for data) of a run, after its first interval.

  Raises:
    UserError: when it fails.
  """
  path = os.pathsep.join(filter(None, (str(measurement.ROOT), os.environ.get('PYTHONPATH'))))
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, '-m', 'vit_jax.main', '--config=configs/default.py', *flags]
    command.append(f'--workdir={folder}/run')
    env = {**os.environ, 'PYTHONPATH': path}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
      raise UserError(f'the run failed: {([""] + done.stderr.strip().splitlines())[-1][:300]}')
    lines = pathlib.Path(folder, 'run', 'metrics.jsonl').read_text().splitlines()
  logged = [x for x in map(json.loads, lines) if 'train/images_per_second' in x][1:]
  seconds = [log_every * batch_size / x['train/images_per_second'] for x in logged]
  waits = [x['train/data_wait/max'] for x in logged]
  rate = len(logged) * log_every * batch_size / sum(seconds)
  return rate, float(np.average(waits, weights=seconds))


def measure(args: argparse.Namespace, flags: list[str], config: Config) -> dict[str, Any]:
  """Measures run and bare step in turn; returns the row."""
  num_classes = open_sources(config.data)[0].num_classes
  program = programs.make_program(config, num_classes)
  runner = programs.open_runner(program, num_classes, ['step'])
  runner.run('step', 1)
  calls, waits = args.log_every * args.intervals, []

  def run() -> float:
    rate, wait = real_run(flags, args.log_every, config.batch_size)
    waits.append(wait)
    return rate

  def bare() -> float:
    return config.batch_size / runner.run('step', calls)

  measured, failures = measurement.measure_interleaved({'run': run, 'bare': bare}, args.rounds)
  if failures:
    raise UserError('; '.join(failures.values()))
  run_rate, bare_rate = (statistics.median(measured[name]) for name in ('run', 'bare'))
  height, width = config.data.height_width
  return {
    **measurement.machine(program.mesh.size),
    'data': args.data or f'{args.images} JPEG files',
    'model': args.model,
    'image_size': height if height == width else f'{height}x{width}',
    'dtype': build.dtype_name(program.model),
    'batch_size': config.batch_size,
    'steps': calls,
    'rounds': args.rounds,
    **measurement.summary(measured['run'], 'images_per_second'),
    **measurement.summary(measured['bare'], 'bare_images_per_second'),
    'overhead_percent': round(100 * (bare_rate / run_rate - 1), 2),
    'data_wait_percent': round(100 * statistics.median(waits), 2),
  }


def parse_args() -> tuple[argparse.Namespace, list[str]]:
  parser = measurement.make_parser('end_to_end', __doc__)
  add = parser.add_argument
  add('--model', default='B/16', help='[R50+|R26+]VARIANT/PATCH[@SIZE]')
  add('--data', default='', help='a source, as config.data.train.source takes it')
  add('--images', type=measurement.positive, default=2000, help='JPEG files, without --data')
  add('--log_every', type=measurement.positive, default=10, help='steps of an interval')
  add('--intervals', type=measurement.positive, default=5, help='measured, after a first one')
  add('--rounds', type=measurement.positive, default=3)
  return parser.parse_known_args()


def main() -> None:
  args, overrides = parse_args()
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # a GPU has room for both
  # A wrong flag is refused before images are made.
  load_config('configs/default.py', [*run_flags(args, args.data or 'digits'), *overrides])
  table = measurement.Table(args.out, 'end_to_end', COLUMNS)
  with tempfile.TemporaryDirectory() as folder:
    if not args.data:
      write_images(pathlib.Path(folder), args.images)
    flags = [*run_flags(args, args.data or f'folder:{folder}'), *overrides]
    table.add(measure(args, flags, load_config('configs/default.py', flags)))
  print(f'written to {table.path}')


if __name__ == '__main__':
  command_line.run(main)
