"""Compares a run or an evaluation with a published result, or with another run.

  python -m vit_jax.verify runs/l16-cifar10 --against=ViT-L/16,imagenet21k,cifar10
  python -m vit_jax.verify result.json --against=augreg-ti16
  python -m vit_jax.verify runs/a --against=runs/b --rtol=1e-4

The first argument is a workdir, its metrics.jsonl, or a file that `vit_jax.evaluate --json` or
`vit_jax.vtab --json` printed; --against is such a path, too, or a row of results/published.csv, by
its id or by model, pretraining data, target (and resolution, metric, source). Against a row, the
last value of the metric may differ by the noise: three standard deviations or the range of the
published runs, by default 0.5 percentage points. Against a run, every value of every metric is
compared at all common steps; they must be equal, unless --rtol or --atol allow a difference.

Exit code 0: equal within the noise; 1: they differ; 2: the input cannot be compared.
"""

import argparse
import json
import math

from vit_jax import command_line
from vit_jax.errors import DifferentResultsError, UserError
from vit_jax.files import user_path
from vit_jax.text import printable
from vit_jax.verification import comparison, measurements, published, row_comparison
from vit_jax.verification.comparison import Verification


def _verify(args: argparse.Namespace) -> Verification:
  for name in ('rtol', 'atol'):
    value = getattr(args, name)
    if value is not None and not (0 <= value < math.inf):
      raise UserError(f'--{name} is {value}; it must be 0 or positive.')
  measured = measurements.read_measurements(args.measured)
  if user_path(args.against).exists():
    if args.metric is not None:
      raise UserError('--metric is for a published result; all metrics of two runs are compared.')
    expected = measurements.read_measurements(args.against)
    return comparison.against_run(measured, expected, args.rtol or 0.0, args.atol or 0.0)
  if args.rtol is not None:
    raise UserError('--rtol is for two runs; use --atol, in percentage points.')
  rows = published.read_rows(args.published or published.default_path())
  row, *others = published.find_rows(rows, args.against)
  return row_comparison.against_row(measured, row, args.metric, args.atol, others)


def main() -> None:
  parser = command_line.Parser(
    'vit_jax.verify', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('measured', metavar='RUN_OR_RESULT', help='a workdir, or a JSON file of results')
  add('--against', required=True, metavar='ROW_OR_RUN', help='a published row, a run or a result')
  add('--metric', help="of the run, if it is not clear which one is the row's")
  add('--rtol', type=float, metavar='X', help='two runs: allowed share of the expected value')
  add('--atol', type=float, metavar='X', help='allowed difference; a row: in percentage points')
  add('--published', metavar='FILE.csv', help='the table of rows (default: the one of vit_jax)')
  add('--json', action='store_true', help='print one JSON object')
  args = parser.parse_args()
  result = _verify(args)
  if args.json:
    print(json.dumps(result.to_json()))
  else:
    for line in result.lines():
      print(printable(line))
  if (first := result.first_difference) is not None:
    raise DifferentResultsError(f'{args.measured} differs from {args.against}, first {first}.')


if __name__ == '__main__':
  command_line.run(main)
