"""What a train step costs by batch, tokens, depth, width and devices: measured, or predicted.

  python benchmarks/cost_scaling.py --on=cpu
  python benchmarks/cost_scaling.py --on=v5e --vary=batch --vary=width:256,320,384
  python benchmarks/cost_scaling.py --draw

One variable at a time is set to other values than those of the base: `batch` (images a device),
`image_size` (pixels; the tokens grow with it), `depth`, `width` (heads and MLPs grow with it),
`devices` (each with the batch of the base). Any --config.FIELD=VALUE is set in all rows.

On a CPU, the points of a variable are measured in turns, by `model_speed.py`; its devices share the
cores. For a TPU (v5e, v4, …) each point's step is compiled, which takes a minute and needs libtpu
but no TPU; its time is that of `python -m vit_jax.plan`. Rows of the same day that exist are left
out, so an interrupted call can be repeated. The picture, cost_scaling.png, shows the newest table
of each device. benchmarks/README.md says what a row means.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import cost_figure, cost_points, cost_prediction, measurement, model_speed, programs
from benchmarks.cost_points import Point
from vit_jax import command_line
from vit_jax.config import replace_fields
from vit_jax.errors import UserError
from vit_jax.hardware import num_cores
from vit_jax.planning import topologies

_PASSES = ('forward', 'step')
_ABOUT = (  # what a row is about
  *('variable', 'value', 'pass', 'model', 'image_size', 'tokens', 'depth', 'width', 'batch_size'),
  *('devices', 'flags'),
)
COLUMNS = (
  *(*measurement.MACHINE, 'libtpu', 'dtype', *_ABOUT, 'milliseconds', 'times_proportional'),
  *('images_per_second', 'images_per_second_lowest', 'images_per_second_highest'),
  *('tflops_per_second', 'share_of_peak', 'share_of_matmul', 'arguments_gib', 'temporaries_gib'),
  *('compile_seconds', 'arithmetic_ms', 'hbm_ms', 'interconnect_ms'),
  *(*cost_prediction.PART_COLUMNS.values(), 'note'),
)

Row = dict[str, Any]
Key = tuple[str, ...]


def key_of(row: Mapping[str, Any], *without: str) -> Key:
  """What a row is about, but for some columns."""
  return tuple(str(row[name]) for name in _ABOUT if name not in without)


def measure(
  points: list[Point], existing: Mapping[Key, Row], args: argparse.Namespace
) -> Iterator[Row]:
  """Measures the points of a variable whose rows do not exist, in turns, beside the base."""
  kept = [
    point
    for point in points
    if point.is_base or any(key_of(row) not in existing for row in _about(point, args))
  ]
  names = {'' if point.is_base else str(point.value): point for point in kept}
  measurement.note(f'{points[0].variable}: {", ".join(str(point.value) for point in kept)} …')
  configs = {
    name: replace_fields(
      point.config, {'mesh.data': point.columns['devices'], 'mesh.fsdp': 1, 'mesh.tensor': 1}
    )
    for name, point in names.items()
  }
  made = {name: programs.make_program(each, args.num_classes) for name, each in configs.items()}
  for row in model_speed.measure(model_speed.Case(args.model, configs, made, {}), args):
    for about in _about(names[row['variant']], args):
      if row.get('pass', about['pass']) == about['pass']:  # a failure has no pass: it is of both
        yield {name: value for name, value in row.items() if name in COLUMNS} | about


def predict(
  points: list[Point], existing: Mapping[Key, Row], args: argparse.Namespace
) -> Iterator[Row]:
  """Predicts points, but for those whose config exists as the point of another variable."""
  known = {key_of(row, 'variable', 'value'): row for row in existing.values()}
  for point in points:
    rows = _about(point, args)
    if not all(key_of(row, 'variable', 'value') in known for row in rows):
      measurement.note(f'compiling {point.variable} {point.value} …')
      columns = cost_prediction.predict(point, args.on, args.num_classes)
      known |= {key_of(row, 'variable', 'value'): columns[row['pass']] for row in rows}
    for row in rows:
      yield known[key_of(row, 'variable', 'value')] | row


def _about(point: Point, args: argparse.Namespace) -> list[Row]:
  return [point.columns | {'pass': name, 'flags': args.flags} for name in _PASSES]


def fill(table: measurement.Table, points: list[Point], args: argparse.Namespace) -> None:
  """Adds the rows that a table lacks, with their ratio to a proportional cost."""
  existing = {key_of(row): row for row in table.rows() if row['milliseconds']}
  run = measure if args.on == 'cpu' else predict
  for variable in dict.fromkeys(point.variable for point in points):
    chosen = [point for point in points if point.variable == variable]
    if all(key_of(row) in existing for point in chosen for row in _about(point, args)):
      continue
    base_costs = {}  # by pass
    for row in run(chosen, existing, args):
      if row.get('milliseconds'):
        devices = 1 if args.on == 'cpu' else row['devices']  # those of a CPU share its cores
        cost = devices * float(row['milliseconds']) / cost_points.work(row)
        if row['value'] == chosen[0].value:
          base_costs[row['pass']] = cost
        if row['pass'] in base_costs:
          row['times_proportional'] = round(cost / base_costs[row['pass']], 3)
      if key_of(row) not in existing:
        table.add(row)
        if row.get('milliseconds'):
          existing[key_of(row)] = row


# --- flags ----------------------------------------------------------------------------------


def parse_args() -> tuple[argparse.Namespace, list[str]]:
  parser = measurement.make_parser('cost_scaling', __doc__)
  add = parser.add_argument
  kinds = ', '.join(topologies.SLICES)
  variables = ', '.join(cost_points.VARIABLES)
  add('--on', default='cpu', help=f'cpu, or the TPU to predict for: {kinds}')
  add('--draw', action='store_true', help='only draw the picture of the tables in --out')
  add(
    '--vary',
    action='append',
    default=[],
    metavar='VARIABLE[:VALUE,…]',
    help=f'{variables}; can be repeated; default: all of them',
  )
  add('--model', help='of the base (default: S/16 on a CPU, else B/16)')
  add('--batch_size', type=measurement.positive, help='of the base (default: 8 on a CPU, else 128)')
  add('--depth', type=measurement.positive, help='of the base (default: 4 on a CPU, else 2)')
  add('--num_classes', type=measurement.positive, default=1000)
  add('--rounds', type=measurement.positive, default=3, help='measurements of each, on a CPU')
  add('--seconds', type=float, default=0.5, help='of a measurement; at least one call')
  add('--matmul_size', type=int, default=4096, help='of the product that is the ceiling; 0: none')
  args, overrides = parser.parse_known_args()
  if args.on != 'cpu' and args.on not in topologies.SLICES:
    raise UserError(f'--on={args.on[:40]} is not one of cpu, {kinds}.')
  model, batch_size, depth = ('S/16', 8, 4) if args.on == 'cpu' else ('B/16', 128, 2)
  args.model = args.model or model
  args.batch_size, args.depth = args.batch_size or batch_size, args.depth or depth
  args.flags, args.passes, args.peak_tflops = ' '.join(overrides), _PASSES, None
  return args, overrides


def start_backend(on: str, devices: Sequence[int]) -> None:
  """Sets up JAX for so many devices of this CPU, or for slices of so many chips.

  Raises:
    UserError: for more devices than cores, or a slice that does not exist.
  """
  if on == 'cpu' and max(devices) > num_cores():
    raise UserError(f'--vary=devices:{max(devices)} is more than the CPU cores, {num_cores()}.')
  topologies.prepare_backend([cost_prediction.topology_of(on, count) for count in devices])


def main() -> None:
  args, overrides = parse_args()
  if not args.draw:
    on_cpu = args.on == 'cpu'
    defaults = cost_points.CPU_VALUES if on_cpu else cost_points.TPU_VALUES
    values = cost_points.read_vary(args.vary, defaults)
    start_backend(args.on, [1, *values.get('devices', [])])
    base = cost_points.make_base(args.model, args.batch_size, args.depth, overrides)
    points = cost_points.make_points(base, values)
    table = measurement.Table(args.out, 'cost_scaling', COLUMNS, None if on_cpu else args.on)
    fill(table, points, args)
    print(f'written to {table.path}')
  print(cost_figure.draw(args.out))


if __name__ == '__main__':
  command_line.run(main)
