"""The matrix of all faults given so far: python benchmarks/faults/table.py [CSV…]

Reads what drill.py wrote (default: results/drill_*.csv of this folder) and prints Markdown: a row
for each fault with, for each number of processes and for changing topologies, how many were given
and how many of these ended as documented; then the runs that finished.
"""

import collections
import csv
import pathlib
import sys
from collections.abc import Iterable

Row = dict[str, str]
_COLUMNS = ('1', '2', '4', 'topologies')  # in the names of the files
_TITLES = ('1 process', '2 processes', '4 processes', 'another topology at each start')


def read(paths: Iterable[pathlib.Path]) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
  """The rows of faults, and of finished runs, by column."""
  faults, runs = collections.defaultdict(list), collections.defaultdict(list)
  for path in paths:
    column = path.stem.split('_')[1]
    rows: list[Row] = list(csv.DictReader(path.open()))
    for row in rows:
      row.setdefault('fault', row.get('signal', ''))  # what older drills call it
    (runs if path.stem.endswith('_runs') else faults)[column] += rows
  return faults, runs


def cell(rows: list[Row]) -> str:
  """'12', or '11 of 12' where not all ended as documented."""
  num_ok = sum(row['ok'] == 'True' for row in rows)
  return f'{len(rows)}' if num_ok == len(rows) else f'{num_ok} of {len(rows)}'


def table(faults: dict[str, list[Row]], runs: dict[str, list[Row]]) -> str:
  names = list(dict.fromkeys(row['fault'] for column in _COLUMNS for row in faults[column]))
  lines = [
    f'| fault | {" | ".join(_TITLES)} | exit codes | slowest end |',
    f'|---|{"---:|" * len(_TITLES)}---|---:|',
  ]
  for name in names:
    rows = {column: [x for x in faults[column] if x['fault'] == name] for column in _COLUMNS}
    all_rows = sum(rows.values(), [])
    codes = sorted({code for row in all_rows for code in row['exit_codes'].split()}, key=int)
    slowest = max(float(row['seconds_to_end']) for row in all_rows)
    cells = ' | '.join(cell(rows[column]) for column in _COLUMNS)
    lines.append(f'| {name} | {cells} | {", ".join(codes)} | {slowest:.1f} s |')
  cells = ' | '.join(cell(faults[column]) for column in _COLUMNS)
  total = cell(sum(faults.values(), []))
  lines.append(f'| all: {total} | {cells} | | |')
  for column, title in zip(_COLUMNS, _TITLES, strict=True):
    if rows := runs[column]:
      identical = sum(row['parameters_identical'] == 'True' for row in rows)
      worst = max(float(row['largest_loss_difference']) for row in rows)
      lines.append(
        f'\n{title}: of {len(rows)} finished, {identical} with the same bits as the '
        f'uninterrupted one, largest difference of a loss {worst:.1e}'
      )
  return '\n'.join(lines)


def main() -> None:
  results = pathlib.Path(__file__).parent / 'results'
  paths = [pathlib.Path(path) for path in sys.argv[1:]] or sorted(results.glob('drill_*.csv'))
  print(table(*read(paths)))


if __name__ == '__main__':
  main()
