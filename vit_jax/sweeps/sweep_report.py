"""The results of a sweep as files: sweep.json, sweep.csv, sweep.md and sweep.png."""

import csv
import importlib
import io
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from vit_jax.errors import UserError
from vit_jax.files import write_atomically, write_text
from vit_jax.sweeps.grid import value_text
from vit_jax.sweeps.point_runs import Outcome
from vit_jax.sweeps.sweep_plan import Sweep, choose
from vit_jax.text import plural


def summarize(sweep: Sweep, outcomes: list[Outcome], final: Outcome | None) -> dict[str, Any]:
  """The results, for sweep.json.

  Args:
    sweep: of the results.
    outcomes: of its points, in their order.
    final: of the run on all training data.
  """
  chosen = choose(sweep.points, outcomes)
  points = [
    {
      'values': point.values,
      'status': outcome.status,
      **{f'held_out_{name}': value for name, value in outcome.metrics.items()},
      'message': outcome.message,
      'workdir': point.name,
    }
    for point, outcome in zip(sweep.points, outcomes, strict=True)
  ]
  result: dict[str, Any] = {'settings': sweep.settings, 'points': points, 'chosen': None}
  if chosen:
    result['chosen'] = chosen.values
  if chosen and final:
    metrics = {f'test_{name}': value for name, value in final.metrics.items()}
    folder = sweep.final_run(chosen).name
    result['final'] = {
      'status': final.status,
      **metrics,
      'message': final.message,
      'workdir': folder,
    }
  return result


def _rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A row for each point, with the same columns."""
  columns = dict.fromkeys(key for point in result['points'] for key in point)
  metrics = [name for name in columns if name.startswith('held_out_')]
  return [
    {
      **point['values'],
      'status': point['status'],
      **{name: point.get(name) for name in metrics},
      'chosen': point['values'] == result['chosen'],
    }
    for point in result['points']
  ]


def as_csv(result: Mapping[str, Any]) -> str:
  """A line for each point."""
  rows, file = _rows(result), io.StringIO()
  writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()


def as_markdown(result: Mapping[str, Any]) -> str:
  """The table, the values that are chosen, and the result on the test data."""
  fields = list(result['points'][0]['values'])
  lines = [[*fields, 'held-out accuracy', 'held-out loss']]
  for row in _rows(result):
    accuracy, loss = row.get('held_out_accuracy'), row.get('held_out_loss')
    score = row['status'] if accuracy is None else f'{accuracy:.2%}'
    cells = [value_text(row[field]) for field in fields]
    score = f'**{score}**' if row['chosen'] else score
    lines.append([*cells, score, '' if loss is None else f'{loss:.4f}'])
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  lines.insert(1, ['-' * (width - 1) + ':' for width in widths])
  table = (
    f'| {" | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))} |'
    for line in lines
  )
  return '\n\n'.join(['\n'.join(table), *_sentences(result)]) + '\n'


def _sentences(result: Mapping[str, Any]) -> list[str]:
  if not result['chosen']:
    return []
  values = ', '.join(f'{name} = {value_text(x)}' for name, x in result['chosen'].items())
  chosen = next(row for row in _rows(result) if row['chosen'])
  examples = plural(round(chosen['held_out_examples']), 'held-out example')
  sentences = [f'Chosen on {examples}: {values}.']
  for name, value in result['chosen'].items():
    values = {point['values'][name] for point in result['points']}
    if len(values) > 1 and all(map(_is_number, values)) and value in (min(values), max(values)):
      side = 'smallest' if value == min(values) else 'largest'
      sentences.append(f'{value_text(value)} is the {side} {name} of the grid; try more beyond it.')
  final = result.get('final', {})
  if final.get('status') == 'finished':
    examples = plural(round(final['test_examples']), 'example')
    sentences.append(
      'Test accuracy after training on all training data: '
      f'{final["test_accuracy"]:.2%} of {examples}.'
    )
  return sentences


def write_report(sweep: Sweep, result: dict[str, Any]) -> str:
  """Writes all files; returns a note for the user, or ''.

  Raises:
    UserError: when they cannot be written.
  """
  folder, note = epath.Path(sweep.workdir), ''
  try:
    write_text(folder / 'sweep.json', json.dumps(result, indent=2) + '\n')
    write_text(folder / 'sweep.csv', as_csv(result))
    write_text(folder / 'sweep.md', as_markdown(result))
    try:
      figures = importlib.import_module('matplotlib.figure')
    except ImportError:
      note = "sweep.png is not drawn; pip install 'vit_jax[sweep]' installs what it needs."
    else:
      figure = figures.Figure(figsize=(6, 4), layout='constrained')
      _draw(figure.subplots(), result)
      path = folder / 'sweep.png'
      write_atomically(path, lambda scratch: figure.savefig(scratch, format='png', dpi=120))
  except OSError as error:
    raise UserError(f'{folder} cannot be written: {error.strerror or error}.') from None
  return note


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _draw(axes: Any, result: Mapping[str, Any]) -> None:
  """Draws accuracy over the first field, a curve for each combination of the others."""
  field, *others = result['points'][0]['values']
  values = [point['values'][field] for point in result['points']]
  names = list(dict.fromkeys(map(value_text, values)))
  is_numeric = all(map(_is_number, values))
  if not is_numeric:
    axes.set_xticks(range(len(names)), names)
  elif field.endswith('learning_rate') and min(values) > 0:
    axes.set_xscale('log')
    axes.set_xticks(sorted(set(values)), map(value_text, sorted(set(values))))
    axes.minorticks_off()
  curves: dict[str, list[tuple[float, float]]] = {}
  diverged = []
  for point, value in zip(result['points'], values, strict=True):
    x = value if is_numeric else names.index(value_text(value))
    label = ', '.join(f'{name} = {value_text(point["values"][name])}' for name in others)
    if point['status'] == 'finished':
      curves.setdefault(label, []).append((x, point['held_out_accuracy']))
    elif point['status'] == 'diverged':
      diverged.append(x)
  for label, curve in curves.items():
    axes.plot(*zip(*sorted(curve), strict=True), 'o-', label=label or 'held-out data')
  if diverged:
    at_the_bottom = axes.get_xaxis_transform()
    axes.plot(diverged, [0.03] * len(diverged), 'kx', label='diverged', transform=at_the_bottom)
  axes.set_xlabel(field.replace('_', ' '))
  axes.set_ylabel('accuracy on held-out data')
  axes.yaxis.set_major_formatter('{x:.1%}')
  axes.grid(alpha=0.3)
  if curves or diverged:
    axes.legend(frameon=False)
