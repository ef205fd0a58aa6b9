"""Shows runs as a page: curves, config, predicted and measured figures, pictures.

  python -m vit_jax.report runs/quickstart                  # as the run itself writes it
  python -m vit_jax.report runs/a runs/b --out=both.html    # curves side by side, what differs

A RUN is the folder of a run, which may be running, or a metrics.jsonl.
"""

import argparse
import collections

from vit_jax import command_line
from vit_jax.errors import UserError, first_line
from vit_jax.files import real_path, user_path
from vit_jax.run_report.curves import MAX_INTERVALS
from vit_jax.run_report.run_files import Run, read_run
from vit_jax.run_report.run_page import render, render_comparison

MAX_RUNS = 32


def _read(name: str, max_intervals: int) -> Run:
  try:
    return read_run(real_path(user_path(name)), max_intervals)
  except (OSError, ValueError, ImportError) as error:
    raise UserError(f'{name} cannot be read: {first_line(error).rstrip(".")}.') from None


def _names(arguments: list[str], runs: list[Run]) -> list[str]:
  """The names of the runs, or as much of their paths as makes them different."""
  count = collections.Counter(run.name for run in runs)
  return [
    run.name if count[run.name] == 1 else argument
    for argument, run in zip(arguments, runs, strict=True)
  ]


def main() -> None:
  parser = command_line.Parser(
    'vit_jax.report', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('runs', nargs='+', metavar='RUN', help='folder of a run, or metrics.jsonl')
  out_help = 'the page to write (default: %(default)s)'
  parser.add_argument('--out', default='report.html', metavar='X.html', help=out_help)
  args = parser.parse_args()
  command_line.check_page(args.out)
  arguments = list(dict.fromkeys(args.runs))
  if len(arguments) > MAX_RUNS:
    raise UserError(f'There are {len(arguments)} runs; a page shows at most {MAX_RUNS}.')
  max_intervals = max(MAX_INTERVALS // len(arguments), 50)
  runs = [_read(name, max_intervals) for name in arguments]
  if len(runs) == 1:
    page = render(runs[0])
  else:
    page = render_comparison(dict(zip(_names(arguments, runs), runs, strict=True)))
  command_line.write_page(args.out, page)
  print(f'{args.out}: {len(page.encode()) / 1e6:.2f} MB')


if __name__ == '__main__':
  command_line.run(main)
