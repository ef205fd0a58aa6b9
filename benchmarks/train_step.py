"""Times the train step of `vit_jax.training.step` on the devices of this machine, in one process.

  python benchmarks/train_step.py --models=B/16,L/16 --batch_sizes=64,128,256

Writes one row a model and batch size to benchmarks/results/train_step_<date>_<device>.csv:
images/s (median of the rounds, with the lowest and highest), milliseconds a step, TFLOP/s of the
model itself (three times the forward pass, without recomputation), the share of the device's peak
(if --peak_tflops gives it), and the memory that the compiler plans.
"""

import argparse
import csv
import datetime
import pathlib
import statistics
import time

import jax
import numpy as np

from vit_jax.config import MeshConfig, ModelConfig, OptimizerConfig, ScheduleConfig, StepConfig
from vit_jax.distributed import sharding
from vit_jax.models.flops import train_flops
from vit_jax.training.program import Program, build_program

NUM_CLASSES = 1000


def measure(name: str, batch_size: int, args: argparse.Namespace) -> dict[str, object]:
  """One row of the table."""
  variant, patch_size = name.split('/')
  mesh = sharding.make_mesh(MeshConfig(fsdp=args.fsdp))
  program = build_program(
    mesh,
    ModelConfig(variant=variant, patch_size=int(patch_size), dtype=args.dtype),
    OptimizerConfig(),
    ScheduleConfig(),
    StepConfig(batch_size=batch_size),
    (args.image_size, args.image_size, 3),
    NUM_CLASSES,
  )
  start = time.perf_counter()
  compiled = program.lower().compile()
  compile_seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  seconds, loss = time_rounds(program, compiled, args.rounds, args.steps)
  rates = sorted(batch_size / s for s in seconds)
  rate = statistics.median(rates)
  tflops = train_flops(program.model, program.image_shape[:2]) * rate / 1e12
  return {
    'date': datetime.date.today().isoformat(),
    'device': f'{mesh.size} x {mesh.devices.flat[0].device_kind}',
    'jax': jax.__version__,
    'model': name,
    'image_size': args.image_size,
    'dtype': np.dtype(program.model.numerics.dtype).name,
    'batch_size': batch_size,
    'images_per_second': round(rate, 2),
    'lowest': round(rates[0], 2),
    'highest': round(rates[-1], 2),
    'milliseconds_per_step': round(1e3 * batch_size / rate, 2),
    'model_tflops_per_second': round(tflops, 3),
    'share_of_peak': round(tflops / args.peak_tflops / mesh.size, 3) if args.peak_tflops else '',
    'arguments_gib': round(memory.argument_size_in_bytes / 2**30, 3) if memory else '',
    'temporaries_gib': round(memory.temp_size_in_bytes / 2**30, 3) if memory else '',
    'compile_seconds': round(compile_seconds, 1),
    'loss': round(loss, 4),
  }


def time_rounds(
  program: Program, compiled: jax.stages.Compiled, rounds: int, steps: int
) -> tuple[list[float], float]:
  """Seconds a step in each round, and the last loss; a first round warms up."""
  state = program.init(None)
  rng = np.random.default_rng(0)
  images = program.abstract_batch['image'].shape
  batch = jax.device_put(
    {
      'image': rng.integers(0, 256, images, dtype=np.uint8),
      'label': rng.integers(0, NUM_CLASSES, images[0], dtype=np.int32),
    },
    sharding.batch_sharding(program.mesh),
  )
  key, seconds, metrics = program.random_key(), [], {}
  for _ in range(rounds + 1):
    start = time.perf_counter()
    for _ in range(steps):
      state, metrics = compiled(state, batch, key)
    jax.block_until_ready((state, metrics))
    seconds.append((time.perf_counter() - start) / steps)
  return seconds[1:], float(metrics['train/loss'])


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--models', default='B/16,L/16')
  parser.add_argument('--batch_sizes', default='64,128')
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--dtype', default='auto')
  parser.add_argument('--fsdp', type=int, default=1)
  parser.add_argument('--steps', type=int, default=10, help='in each round')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--peak_tflops', type=float, help='of one device, at this dtype')
  parser.add_argument('--out', default='benchmarks/results', help='folder for the CSV file')
  args = parser.parse_args()
  device = jax.devices()[0].device_kind.replace(' ', '-').lower()
  path = pathlib.Path(args.out) / f'train_step_{datetime.date.today()}_{device}.csv'
  path.parent.mkdir(parents=True, exist_ok=True)
  for name in args.models.split(','):
    for batch_size in map(int, args.batch_sizes.split(',')):
      try:
        row = measure(name, batch_size, args)
      except jax.errors.JaxRuntimeError as error:
        print(f'{name}, batch {batch_size}: {str(error).splitlines()[0]}', flush=True)
        continue
      print(row, flush=True)
      is_first = not path.exists()
      with path.open('a', newline='') as file:
        writer = csv.DictWriter(file, list(row))
        if is_first:
          writer.writeheader()
        writer.writerow(row)


if __name__ == '__main__':
  main()
