"""Measures the forward pass and the train step, beside other implementations, in one call.

  python benchmarks/model_speed.py --models=Ti/16,B/16,L/16@384,R50+B/16 --batch_sizes=64,128
  python benchmarks/model_speed.py --models=B/16 --variant=remat:config.model.remat=full \\
    --variant=xla:config.model.attention=xla
  python benchmarks/model_speed.py --models=B/16 --peers=timm,timm_compile,transformers,original \\
    --peer_python=TORCH_ENV/bin/python --peer_checkout=VISION_TRANSFORMER_CHECKOUT

Any --config.FIELD=VALUE is set in all rows, that of a --variant in its rows only. A model is
[R50+|R26+]VARIANT/PATCH[@SIZE].

Both passes begin with uint8 pixels on the device. `forward` gives the model's logits; `step` is
softmax cross-entropy, the backward pass, clipping by the global norm and the update by AdamW. Peers
do the same work with the same sizes, batch and dropout, each in a process of its own, and only one
process computes at a time. PyTorch's bfloat16 is autocast over float32 parameters. In each round
everything is measured in turn, and so is a large matrix product, the ceiling of this machine.
benchmarks/README.md says what a row means.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measurement, programs, speed_columns
from benchmarks.peers import process, request
from vit_jax import command_line, compilation_cache
from vit_jax.config import Config, load_config
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.training.program import Program

Name = tuple[str, str]  # implementation, variant
OURS = ('vit_jax', '')  # what all others are compared with


@dataclasses.dataclass(frozen=True)
class Case:
  """A model, a dtype and a batch size; `configs` and `programs` by variant, '' without one."""

  model: str
  configs: dict[str, Config]
  programs: dict[str, Program]
  peers: dict[str, Any]  # of `request.commands`


def measure(case: Case, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
  """Measures all variants and peers of a case; yields the rows."""
  runners: dict[Name, programs.Runner | process.PeerProcess] = {}
  failures: dict[Name, str] = {}
  for variant, program in case.programs.items():
    try:
      runner = programs.open_runner(program, args.num_classes, args.passes)
      runners['vit_jax', variant] = runner
    except (RuntimeError, ValueError) as error:
      failures['vit_jax', variant] = measurement.reason(error)
  with process.open_peers(case.peers) as (peers, failed):
    runners |= {(name, ''): peer for name, peer in peers.items()}
    failures |= {(name, ''): text for name, text in failed.items()}
    timers, calls = warm_up(runners, failures, args)
    if args.matmul_size:
      dtype = build.dtype_name(case.programs[''].model)
      try:
        timers['matmul'] = matmul_timer(args.matmul_size, dtype, args.seconds)
      except RuntimeError as error:
        measurement.note(f'no matrix product is measured: {measurement.reason(error)}')
    measured, failed = measurement.measure_interleaved(timers, args.rounds)
    failures |= {key[:2]: text for key, text in failed.items() if key != 'matmul'}
    ceiling = statistics.median(measured.get('matmul', [0.0]))
    rates = {}  # images/s
    for key in calls:
      if key in measured and key[:2] not in failures:
        batch_size = case.configs[key[1]].batch_size
        rates[key] = [batch_size / seconds for seconds in measured[key]]
    parameters = build.count_parameters(case.programs[''].abstract_state.params)
    for name in dict.fromkeys([*runners, *failures]):
      row = {'model': case.model, 'implementation': name[0], 'variant': name[1]}
      row |= speed_columns.settings(case.configs[name[1]], case.programs[name[1]])
      if name in failures:
        yield row | {'note': failures[name]}
        continue
      for kind in args.passes:
        columns = {'pass': kind, 'rounds': args.rounds, 'calls_per_round': calls[*name, kind]}
        columns |= speed_columns.details(runners[name], kind)
        if name[0] != 'vit_jax' and columns['parameters'] != parameters:
          columns['note'] = f'not the {parameters:,} parameters of vit_jax'
        program, base = case.programs[name[1]], rates.get((*OURS, kind))
        columns |= speed_columns.speed(
          program, kind, rates[*name, kind], base, ceiling, args.peak_tflops
        )
        yield row | columns


def warm_up(
  runners: dict[Name, Any], failures: dict[Name, str], args: argparse.Namespace
) -> tuple[dict[Any, Callable[[], float]], dict[Any, int]]:
  """Calls each pass of each runner twice, of which the first compiles.

  Returns:
    Of (implementation, variant, pass) a function that measures the seconds of a call, and how many
    calls it makes. What fails is added to `failures`.
  """
  timers: dict[Any, Callable[[], float]] = {}
  calls: dict[Any, int] = {}
  for name, runner in runners.items():
    try:
      for kind in args.passes:
        runner.run(kind, 1)
        count = calls[*name, kind] = measurement.num_calls(runner.run(kind, 1), args.seconds)
        timers[*name, kind] = lambda run=runner.run, kind=kind, count=count: run(kind, count)
    except RuntimeError as error:
      failures[name] = measurement.reason(error)
  return {key: timer for key, timer in timers.items() if key[:2] not in failures}, calls


def matmul_timer(size: int, dtype: str, seconds: float) -> Callable[[], float]:
  """Returns a function that measures the FLOP/s of a product of two matrices on one device."""
  x, y = jax.random.normal(jax.random.key(0), (2, size, size), build.DTYPES[dtype])
  product = jax.jit(jnp.matmul)

  def measure(calls: int) -> float:
    start = time.perf_counter()
    result = None
    for _ in range(calls):
      result = product(x, y)
    jax.block_until_ready(result)
    return calls * 2 * size**3 / (time.perf_counter() - start)

  measure(1)  # compiles
  calls = measurement.num_calls(2 * size**3 / measure(1), seconds)
  return lambda: measure(calls)


# --- flags ----------------------------------------------------------------------------------


def read_variants(texts: list[str]) -> dict[str, list[str]]:
  """['fast:config.model.remat=full,config.batch_size=8'] -> {name: flags}; '' has none.

  Raises:
    UserError: for another text, or a name that comes twice.
  """
  variants: dict[str, list[str]] = {'': []}
  for text in texts:
    name, _, fields = text.partition(':')
    if not name or not fields.startswith('config.') or name in variants:
      raise UserError(f'--variant={text} must be NAME:config.FIELD=VALUE,…, with a new name.')
    variants[name] = [f'--{field}' for field in re.split(',(?=config[.])', fields)]
  return variants


def parse_args() -> tuple[argparse.Namespace, list[str]]:
  parser = measurement.make_parser('model_speed', __doc__)
  add = parser.add_argument
  add('--models', default='B/16', help='comma-separated')
  add('--batch_sizes', type=measurement.sizes, default='8', help='comma-separated')
  add('--dtypes', default='auto', help='comma-separated: auto, float32, bfloat16')
  add('--passes', default='forward,step', help='comma-separated')
  add('--variant', action='append', default=[], metavar='NAME:config.FIELD=VALUE,…')
  add('--rounds', type=measurement.positive, default=5, help='measurements of each')
  add('--seconds', type=float, default=2.0, help='of a measurement; at least one call')
  add('--num_classes', type=measurement.positive, default=1000)
  add('--cpu_devices', type=measurement.positive, default=1, help='that JAX makes of a CPU')
  add('--matmul_size', type=int, help='0: none (default: 4096 on a CPU, else 8192)')
  add('--peak_tflops', type=float, help='of a device (default: of bfloat16, where it is known)')
  request.add_flags(parser)
  args, overrides = parser.parse_known_args()
  args.models = measurement.names(args.models)
  for name, known in (
    ('peers', request.PEERS),
    ('passes', speed_columns.FLOPS),
    ('dtypes', _DTYPES),
  ):
    setattr(args, name, measurement.chosen(getattr(args, name), known, f'--{name}'))
  request.check_flags(args)
  return args, overrides


_DTYPES = ('auto', *build.DTYPES)
# A small constant rate, at which the loss of the one batch neither falls to zero nor grows.
_RATE = ('--config.schedule.decay=constant', '--config.schedule.learning_rate=1e-5')


def make_case(model: str, flags: list[str], args: argparse.Namespace) -> Case:
  """Reads the configs of a case.

  Raises:
    UserError: for what cannot be measured.
  """
  flags = [*programs.model_flags(model), *_RATE, *flags]
  configs = {
    name: load_config('configs/default.py', [*flags, *more])
    for name, more in read_variants(args.variant).items()
  }
  made = {name: programs.make_program(each, args.num_classes) for name, each in configs.items()}
  return Case(model, configs, made, request.commands(args, configs[''], made[''].model))


def main() -> None:
  args, overrides = parse_args()
  compilation_cache.disable_cache()  # compiling is timed
  if args.peers:  # a GPU has room for several processes
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  if args.cpu_devices > 1:
    jax.config.update('jax_num_cpu_devices', args.cpu_devices)
  if args.matmul_size is None:
    args.matmul_size = 4096 if jax.default_backend() == 'cpu' else 8192
  cases = [
    make_case(
      model,
      [f'--config.model.dtype={dtype}', f'--config.batch_size={batch_size}', *overrides],
      args,
    )
    for model in args.models
    for dtype in args.dtypes
    for batch_size in args.batch_sizes
  ]
  table = measurement.Table(args.out, 'model_speed', speed_columns.COLUMNS)
  for case in cases:
    for row in measure(case, args):
      table.add(row)
  print(f'written to {table.path}')


if __name__ == '__main__':
  command_line.run(main)
