"""Times the training step of `vit_jax.training.step` on this machine's devices, one process.

  python benchmarks/train_step.py --models=B/16,L/16 --batch_sizes=64,128,256

Writes one row a model and batch size to benchmarks/results/train_step_<date>_<device>.csv:
images/s (median of the rounds, with the lowest and highest), milliseconds a step, TFLOP/s of the
model's own arithmetic (three times the forward pass, no recomputation), the share of the device's
peak where --peak_tflops says it, and the peak memory the compiler plans.
"""

import argparse
import csv
import datetime
import pathlib
import statistics
import time

import jax
import numpy as np

from vit_jax import config as config_lib
from vit_jax.distributed import sharding as mesh_lib
from vit_jax.models.flops import train_flops
from vit_jax.training import setup
from vit_jax.training.program import build_program

NUM_CLASSES = 1000


def measure(name: str, batch_size: int, args: argparse.Namespace) -> dict[str, object]:
  """One row of the table."""
  config = config_lib.default_config()
  config.model.variant, config.model.patch_size = name.split('/')[0], int(name.split('/')[1])
  config.model.dtype = args.dtype
  config.mesh.fsdp = args.fsdp
  config.batch_size = batch_size
  config.data.image_size = args.image_size
  mesh = mesh_lib.make_mesh(config.mesh)
  setup.check_config(config, mesh)
  program = build_program(config, mesh, NUM_CLASSES)
  model, size = program.model, program.image_size
  state = program.init(None)
  rng = np.random.default_rng(0)
  batch = jax.device_put(
    {
      'image': rng.integers(0, 256, (batch_size, *size, 3), dtype=np.uint8),
      'label': rng.integers(0, NUM_CLASSES, batch_size, dtype=np.int32),
    },
    mesh_lib.batch_sharding(mesh),
  )
  key = jax.device_put(jax.random.key(0), mesh_lib.replicated(mesh))
  began = time.perf_counter()
  compiled = program.compile()
  compile_seconds = time.perf_counter() - began
  memory = compiled.memory_analysis()
  seconds = []
  for round_ in range(args.rounds + 1):  # the first one warms up
    began = time.perf_counter()
    for _ in range(args.steps):
      state, metrics = compiled(state, batch, key)
    jax.block_until_ready((state, metrics))
    if round_:
      seconds.append((time.perf_counter() - began) / args.steps)
  rates = sorted(batch_size / s for s in seconds)
  tflops = train_flops(model, size) * statistics.median(rates) / 1e12
  row = {
    'date': datetime.date.today().isoformat(),
    'device': f'{mesh.size} x {mesh.devices.flat[0].device_kind}',
    'jax': jax.__version__,
    'model': name,
    'image_size': args.image_size,
    'dtype': np.dtype(model.numerics.dtype).name,
    'batch_size': batch_size,
    'images_per_second': round(statistics.median(rates), 2),
    'lowest': round(rates[0], 2),
    'highest': round(rates[-1], 2),
    'milliseconds_per_step': round(1e3 * batch_size / statistics.median(rates), 2),
    'model_tflops_per_second': round(tflops, 3),
    'share_of_peak': round(tflops / args.peak_tflops / mesh.size, 3) if args.peak_tflops else '',
    'arguments_gib': round(memory.argument_size_in_bytes / 2**30, 3) if memory else '',
    'temporaries_gib': round(memory.temp_size_in_bytes / 2**30, 3) if memory else '',
    'compile_seconds': round(compile_seconds, 1),
    'loss': round(float(metrics['train/loss']), 4),
  }
  return row


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--models', default='B/16,L/16')
  parser.add_argument('--batch_sizes', default='64,128')
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--dtype', default='auto')
  parser.add_argument('--fsdp', type=int, default=1)
  parser.add_argument('--steps', type=int, default=10, help='a round')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--peak_tflops', type=float, help="one device's, at this dtype")
  parser.add_argument('--out', default='benchmarks/results', help='folder of the CSV file')
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
      new = not path.exists()
      with path.open('a', newline='') as file:
        writer = csv.DictWriter(file, row)
        if new:
          writer.writeheader()
        writer.writerow(row)


if __name__ == '__main__':
  main()
