"""Predicts the memory, time and traffic of a run on devices that need not exist.

  python -m vit_jax.plan --config=configs/vit_l16.py --topology=v5e:16x16
  python -m vit_jax.plan --config=configs/vit_l16.py --sweep=v5e-256,v4-128 --out=l16.csv

It compiles the train step itself. Config fields are set as for vit_jax.main:
--config.field=value. Topologies: v2, v3, v4, v5e, v5p, v6e or tpu7x, by their chips along each
dimension (v5e:16x16, v4:4x4x4) or as Google names slices (v5e-256, v4-128: TensorCores),
config.mesh.num_slices of them; or cpu:8. Without the training data, set config.data.num_classes;
an example then has one label. The exit code is 4 when a run does not fit.

On a TPU topology it predicts the time of a step from the compiler's own cycle estimates;
--profile=FILE.html or FILE.csv writes where the cycles go.
"""

import argparse
import csv
import json
import sys
from typing import Any

from vit_jax import command_line
from vit_jax.config import Config, load_config
from vit_jax.errors import DeviceMemoryError, UserError
from vit_jax.planning import fallback, plan_report, planner, profile_page, topologies
from vit_jax.planning.planner import Plan
from vit_jax.planning.topologies import Topology


def _log(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _plan_one(config: Config, topology: Topology, args: argparse.Namespace) -> None:
  """Prints the plan of one topology; if the run does not fit, tries its fallback configs."""
  labels = planner.read_labels(config)
  _log(f'compiling for {topology.name}{"; a pod takes minutes" if topology.chip else ""} …')
  plan = planner.make_plan(config, topology, labels)
  if not args.json:
    print(plan_report.page(plan))
  tried: list[Plan] = []
  if plan.fits is False and plan.limit is not None and not args.no_fallback:
    _log('it does not fit; compiling fallback configs …')
    for candidate in fallback.fallback_plans(config, topology, labels, plan.limit):
      tried.append(candidate)
      if not args.json:
        print(f'tried {plan_report.fallback_line(candidate)}', flush=True)
  flags = tried[-1].flags if tried and tried[-1].fits else None
  profiled = tried[-1] if flags else plan
  if args.profile and profiled.cycles is None:
    _log(f'no profile: the step does not fit, so {args.profile} was not written')
  elif args.profile and profiled.cycles:
    profile_page.write(profiled, profiled.cycles, args.profile)
    _log(f'{args.profile} is the profile of this config{f" with {flags}" if flags else ""}')
  if args.json:
    fallbacks = [plan_report.as_json(candidate) for candidate in tried]
    fields = plan_report.as_json(plan) | {'tried': fallbacks, 'fits_with': flags}
    print(json.dumps(fields, indent=2))
  if plan.fits is False:
    advice = f'set {flags}, which fits' if flags else 'use more chips'
    raise DeviceMemoryError(f'The run does not fit {topology.name}; {advice}.')


def _sweep(config: Config, topologies: list[Topology], args: argparse.Namespace) -> None:
  """Prints a table of topologies; its file grows row by row, because a sweep takes long."""
  labels = planner.read_labels(config)
  plans: list[Plan] = []
  for topology in topologies:
    _log(f'compiling for {topology.name} …')
    try:
      plans.append(planner.make_plan(config, topology, labels))
    except UserError as error:
      _log(f'{topology.name} is left out: {error}')
      continue
    if args.out:
      _write_row(args.out, plan_report.row(plans[-1]), is_first=len(plans) == 1)
  if not plans:
    raise UserError('The config can run on none of these topologies.')
  if args.json:
    print(json.dumps([plan_report.as_json(plan) for plan in plans], indent=2))
  else:
    print(plan_report.table([plan_report.row(plan) for plan in plans]))


def _write_row(path: str, row: dict[str, Any], is_first: bool) -> None:
  try:
    with open(path, 'w' if is_first else 'a', newline='') as file:
      writer = csv.DictWriter(file, list(row), lineterminator='\n')
      if is_first:
        writer.writeheader()
      writer.writerow(row)
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror}.') from None


def main() -> None:
  parser = command_line.Parser(
    'vit_jax.plan', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--config', required=True, help='as for vit_jax.main')
  target = parser.add_mutually_exclusive_group(required=True)
  target.add_argument('--topology', help='v5e:16x16, v5e-256, cpu:8, …')
  target.add_argument('--sweep', metavar='T,T,…', help='make a table of several topologies')
  parser.add_argument('--json', action='store_true', help='print JSON')
  parser.add_argument('--out', metavar='FILE.csv', help='write the table of a sweep to this file')
  parser.add_argument(
    '--profile', metavar='FILE', help='write where the cycles go to FILE.html or FILE.csv'
  )
  parser.add_argument(
    '--no_fallback', action='store_true', help='try no other config when the run does not fit'
  )
  args, overrides = parser.parse_known_args()
  if args.out is not None and args.sweep is None:
    raise UserError('--out needs --sweep.')
  if args.profile is not None and args.topology is None:
    raise UserError('--profile needs --topology.')
  config = planner.resolve_steps(load_config(args.config, overrides))
  names = [args.topology] if args.sweep is None else args.sweep.split(',')
  parsed = [topologies.parse_topology(name) for name in names]
  if args.profile is not None:
    profile_page.check_path(args.profile, parsed[0])
  topologies.prepare_backend(parsed)
  if args.sweep is None:
    _plan_one(config, parsed[0], args)
  else:
    _sweep(config, parsed, args)


if __name__ == '__main__':
  command_line.run(main)
