"""Compiles the train step of a run for devices that need not be there, and says what it needs.

  python -m vit_jax.plan --config=configs/vit_l16.py --topology=v5e:16x16
  python -m vit_jax.plan --config=configs/vit_l16.py --sweep=v5e-256,v4-128 --out=l16.csv

Fields of the config are set as for vit_jax.main: --config.field=value. Topologies: v2, v3, v4,
v5e, v5p, v6e or tpu7x, by their sides in chips (v5e:16x16, v4:4x4x4) or as Google names slices
(v5e-256, v4-128: TensorCores), config.mesh.num_slices of them; or cpu:8. Where the training data
is not at hand, config.data.num_classes counts, and an example has one label. The exit code is 4
when a run does not fit.
"""

import argparse
import csv
import json
import sys
from typing import Any

from vit_jax import command_line
from vit_jax.config import Config, load_config
from vit_jax.errors import DeviceMemoryError, UserError
from vit_jax.planning import planner, report, topologies
from vit_jax.planning.planner import Plan
from vit_jax.planning.topologies import Topology


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _plan_one(config: Config, topology: Topology, args: argparse.Namespace):
  """One topology; when the run does not fit, its fallback_configs."""
  classes = planner.classes_of(config)
  _say(f'compiling for {topology.name}{"; a pod takes minutes" if topology.chip else ""} …')
  plan, tried, found = planner.make_plan(config, topology, classes), [], None
  if not args.json:
    print(report.page(plan))
  if plan.fits is False and not args.no_fallback:
    _say('it does not fit; compiling its fallback_configs …')

    def note(neighbour: Plan) -> None:
      tried.append(neighbour)
      if not args.json:
        print(f'tried {report.attempt(neighbour)}', flush=True)

    found = planner.first_that_fits(config, topology, classes, plan.limit, note)
  if args.json:
    fields = report.as_json(plan) | {
      'tried': [report.as_json(neighbour) for neighbour in tried],
      'fits_with': found.flags if found else None,
    }
    print(json.dumps(fields, indent=2))
  if plan.fits is False:
    raise DeviceMemoryError(
      f'The run does not fit {topology.name}; '
      + (f'it does with {found.flags}.' if found else 'more chips would help.')
    )


def _sweep(config: Config, wanted: list[Topology], args: argparse.Namespace):
  """A table over topologies; its file grows by a line each, because a sweep takes long."""
  classes, plans = planner.classes_of(config), []
  for topology in wanted:
    _say(f'compiling for {topology.name} …')
    try:
      plans.append(planner.make_plan(config, topology, classes))
    except UserError as error:
      _say(f'{topology.name} is left out: {error}')
      continue
    if args.out:
      _write_row(args.out, report.row(plans[-1]), new=len(plans) == 1)
  if not plans:
    raise UserError('The config can run on none of these topologies.')
  if args.json:
    print(json.dumps([report.as_json(plan) for plan in plans], indent=2))
  else:
    print(report.table([report.row(plan) for plan in plans]))


def _write_row(path: str, row: dict[str, Any], new: bool) -> None:
  try:
    with open(path, 'w' if new else 'a', newline='') as file:
      writer = csv.DictWriter(file, row, lineterminator='\n')
      if new:
        writer.writeheader()
      writer.writerow(row)
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror}.') from None


def main() -> None:
  parser = command_line.Parser(
    'vit_jax.plan', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--config', required=True, help='as for vit_jax.main')
  where = parser.add_mutually_exclusive_group(required=True)
  where.add_argument('--topology', help='v5e:16x16, v5e-256, cpu:8, …')
  where.add_argument('--sweep', metavar='T,T,…', help='a table over several topologies')
  parser.add_argument('--json', action='store_true', help='print JSON')
  parser.add_argument('--out', metavar='FILE.csv', help='keep the table of a sweep')
  parser.add_argument(
    '--no_fallback', action='store_true', help='try nothing else when it does not fit'
  )
  args, overrides = parser.parse_known_args()
  if args.out is not None and args.sweep is None:
    raise UserError('--out goes with --sweep.')
  config = planner.resolve_steps(load_config(args.config, overrides))
  names = [args.topology] if args.sweep is None else args.sweep.split(',')
  wanted = [topologies.parse_topology(name) for name in names]
  topologies.prepare(wanted)
  if args.sweep is None:
    _plan_one(config, wanted[0], args)
  else:
    _sweep(config, wanted, args)


if __name__ == '__main__':
  command_line.run(main)
