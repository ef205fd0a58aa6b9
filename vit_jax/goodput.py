"""Reports where the wall time of a run went, over all its restarts.

  python -m vit_jax.goodput runs/quickstart

The shares of training steps, waiting for data, evaluation, saving, start, compilation, steps that a
kill made necessary again, and the time without a process; step times; the largest loss, and what
makes it smaller. A run may be running.
"""

import argparse
import json

from vit_jax import command_line
from vit_jax.errors import UserError, first_line
from vit_jax.training import run_history, wall_time
from vit_jax.training.workdir import resolve_workdir


def _read(name: str) -> wall_time.WallTime:
  try:
    records = run_history.read_records(resolve_workdir(name))
  except (OSError, ValueError) as error:
    raise UserError(f'{name} has no readable record of its time: {first_line(error)}.') from None
  if not records:
    raise UserError(
      f'{name} has no record of its time; name the workdir of a run, made by this version.'
    )
  return wall_time.account(records)


def main() -> None:
  parser = command_line.Parser(
    'vit_jax.goodput', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('workdir', metavar='WORKDIR', help='the folder of a run')
  parser.add_argument('--json', action='store_true', help='print one JSON object')
  args = parser.parse_args()
  result = _read(args.workdir)
  print(json.dumps(result.to_json()) if args.json else '\n'.join(result.lines()))


if __name__ == '__main__':
  command_line.run(main)
