"""The picture of `cost_scaling.py`, from its tables."""

import importlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from benchmarks import measurement
from benchmarks.cost_points import VARIABLES
from vit_jax.errors import UserError
from vit_jax.files import write_atomically

_NAME = 'cost_scaling.png'
_TITLES = {
  'batch': 'images a device',
  'image_size': 'tokens',
  'depth': 'blocks',
  'width': 'width',
  'devices': 'devices',
}
_LOOKS = {'step': ('-', 'o'), 'forward': (':', 's')}

Row = Mapping[str, str]


def draw(folder: pathlib.Path) -> str:
  """Draws the newest table of each device of a folder.

  A column is a variable. Above: the time of an image on one device, dashed as if it were
  proportional; below: the one divided by the other.

  Returns:
    A sentence for the user.

  Raises:
    UserError: without tables, or if the file cannot be written.
  """
  tables = _newest_tables(folder)
  if not any(tables.values()):
    raise UserError(f'{folder} has no rows of cost_scaling_<date>_<device>.csv to draw.')
  try:
    figures = importlib.import_module('matplotlib.figure')
  except ImportError:
    return f"{_NAME} is not drawn; pip install 'vit_jax[sweep]' installs what it needs."
  variables = [
    name for name in VARIABLES if any(row['variable'] == name for t in tables.values() for row in t)
  ]
  figure = figures.Figure(figsize=(1 + 3.2 * len(variables), 7), layout='constrained')
  panels = figure.subplots(2, len(variables), sharex='col', squeeze=False)
  lines = {}
  for column, variable in enumerate(variables):
    for index, (title, rows) in enumerate(tables.items()):
      chosen = [row for row in rows if row['variable'] == variable]
      lines |= _draw_variable(panels[:, column], chosen, title, f'C{index % 10}')
    _label(panels[:, column], variable)
  panels[0, 0].set_ylabel('milliseconds an image')
  panels[1, 0].set_ylabel('time / proportional time')
  figure.legend(
    list(lines.values()), list(lines), loc='outside lower center', ncols=3, frameon=False
  )
  path = folder / _NAME
  try:
    write_atomically(epath.Path(path), lambda file: figure.savefig(file, format='png', dpi=110))
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror or error}.') from None
  return f'drawn: {path}'


def _newest_tables(folder: pathlib.Path) -> dict[str, list[dict[str, str]]]:
  """{title: rows with numbers}."""
  newest = {}
  for path in sorted(folder.glob('cost_scaling_*.csv')):
    if match := re.fullmatch(r'cost_scaling_([\d-]{10})_(.+)', path.stem):
      newest[match[2]] = path, match[1]
  tables = {}
  for device, (path, date) in newest.items():
    rows = [row for row in measurement.read_table(path) if row['milliseconds']]
    how = 'predicted' if rows and rows[0]['libtpu'] else 'measured'
    tables[f'{device} ({how}, {date})'] = rows
  return tables


def _draw_variable(
  panels: Sequence[Any], rows: Sequence[Row], title: str, color: str
) -> dict[str, Any]:
  """Draws a table's rows of one variable, a line a pass; returns {label: line}."""
  lines = {}
  for name, (dashes, marker) in _LOOKS.items():
    points = sorted((_point(row) for row in rows if row['pass'] == name), key=lambda p: p[0])
    if not points:
      continue
    x, times, ratios = zip(*points, strict=True)
    look = {'color': color, 'linestyle': dashes, 'marker': marker, 'markersize': 4}
    (lines[f'{title}: {name}'],) = panels[0].plot(x, times, **look)
    proportional = [time / ratio for time, ratio in zip(times, ratios, strict=True)]
    panels[0].plot(x, proportional, color=color, linestyle='--', linewidth=0.8)
    panels[1].plot(x, ratios, **look)
  return lines


def _point(row: Row) -> tuple[float, float, float]:
  """(value, milliseconds an image and device, their ratio to the proportional ones)."""
  value = float(row['tokens' if row['variable'] == 'image_size' else 'value'])
  devices = float(row['devices']) if row['libtpu'] else 1  # those of a CPU share its cores
  time = devices * float(row['milliseconds']) / float(row['batch_size'])
  return value, time, float(row['times_proportional'])


def _label(panels: Sequence[Any], variable: str) -> None:
  for axes in panels:
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
    axes.grid(alpha=0.3)
  panels[0].set_yscale('log')
  panels[1].axhline(1, color='black', linestyle='--', linewidth=0.8)
  low, high = panels[1].get_ylim()
  panels[1].set_ylim(min(low, 0.9), max(high, 1.1))  # so that noise looks small
  panels[0].set_title(_TITLES[variable])
  panels[1].set_xlabel(_TITLES[variable])
