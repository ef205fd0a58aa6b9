"""Measures what a checkpoint costs: how long it stalls the loop, is written, and is restored.

  python benchmarks/checkpoint_cost.py --models=S/16,B/16,L/16 --workdir=/where/runs/are

The state is that of a run (parameters, AdamW's moments) with random numbers, which hardly compress;
`vit_jax.checkpoints` saves and restores it as a run does. The same number of bytes is written to
one file and read plainly in the same round. What is read is in the system's cache of files.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measurement, programs
from vit_jax import command_line
from vit_jax.checkpoints.manager import Checkpointer
from vit_jax.config import load_config
from vit_jax.training.program import Program

TIMES = ('stall', 'write', 'restore', 'plain_write', 'plain_read')
COLUMNS = (
  *measurement.MACHINE,
  *('model', 'state_gb', 'files_gb', 'rounds'),
  *(f'{name}_seconds{suffix}' for name in TIMES for suffix in ('', '_lowest', '_highest')),
  *(f'{name}_gb_per_second' for name in TIMES[1:]),
)


def random_state(program: Program) -> Any:
  """A state of random numbers, in the shardings of the program."""
  rng = np.random.default_rng(0)

  def make(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    values = rng.random(leaf.shape, np.float32) if is_float else np.zeros(leaf.shape)
    return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

  return jax.block_until_ready(jax.tree.map(make, program.abstract_state))


def save_and_restore(program: Program, state: Any, folder: pathlib.Path) -> dict[str, float]:
  """Seconds of each part of a save and a restore, and `files`, bytes."""
  with Checkpointer(epath.Path(folder), keep=1) as checkpointer:
    start = time.perf_counter()
    checkpointer.save(1, state, None)
    stalled = time.perf_counter() - start
  written = time.perf_counter() - start  # leaving the context waits for the files
  size = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
  with Checkpointer(epath.Path(folder), keep=1) as checkpointer:
    start = time.perf_counter()
    jax.block_until_ready(checkpointer.restore(1, program.abstract_state))
    restored = time.perf_counter() - start
  return {'stall': stalled, 'write': written, 'restore': restored, 'files': size}


def write_and_read(size: int, folder: pathlib.Path) -> dict[str, float]:
  """Seconds of writing and reading so many bytes in one file."""
  data = np.random.default_rng(0).bytes(min(size, 2**26))
  path, start = folder / 'plain', time.perf_counter()
  with path.open('wb') as file:
    for begin in range(0, size, len(data)):
      file.write(data[: size - begin])
  written = time.perf_counter() - start
  start = time.perf_counter()
  with path.open('rb') as file:
    while file.read(2**26):
      pass
  return {'plain_write': written, 'plain_read': time.perf_counter() - start}


def measure(name: str, program: Program, args: argparse.Namespace) -> dict[str, Any]:
  """The row of a model."""
  state = random_state(program)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  measured: dict[str, list[float]] = {}
  for _ in range(args.rounds):
    with tempfile.TemporaryDirectory(dir=args.workdir) as folder:
      once = save_and_restore(program, state, pathlib.Path(folder))
    with tempfile.TemporaryDirectory(dir=args.workdir) as folder:
      once |= write_and_read(size, pathlib.Path(folder))
    for key, value in once.items():
      measured.setdefault(key, []).append(value)
  row = {**measurement.machine(program.mesh.size), 'model': name, 'rounds': args.rounds}
  row |= {'state_gb': round(size / 1e9, 4)}
  row |= {'files_gb': round(statistics.median(measured['files']) / 1e9, 4)}
  for key in TIMES:
    row |= measurement.summary(measured[key], f'{key}_seconds', 4)
  rates = {key: size / 1e9 / statistics.median(measured[key]) for key in TIMES[1:]}
  return row | {f'{key}_gb_per_second': round(rate, 3) for key, rate in rates.items()}


def parse_args() -> tuple[argparse.Namespace, list[str]]:
  parser = measurement.make_parser('checkpoint_cost', __doc__)
  add = parser.add_argument
  add('--models', default='S/16,B/16,L/16', help='comma-separated')
  add('--rounds', type=measurement.positive, default=5)
  add('--num_classes', type=measurement.positive, default=1000)
  add('--workdir', help="folder to write in (default: the system's temporary one)")
  return parser.parse_known_args()


def main() -> None:
  args, overrides = parse_args()
  made = {}
  for name in measurement.names(args.models):
    config = load_config('configs/default.py', [*programs.model_flags(name), *overrides])
    made[name] = programs.make_program(config, args.num_classes)
  table = measurement.Table(args.out, 'checkpoint_cost', COLUMNS)
  if args.workdir:
    pathlib.Path(args.workdir).mkdir(parents=True, exist_ok=True)
  for name, program in made.items():
    table.add(measure(name, program, args))
  print(f'written to {table.path}')


if __name__ == '__main__':
  command_line.run(main)
