"""The results of the scaling experiment as scaling.csv, scaling.json and scaling.md."""

import csv
import io
import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vit_jax.errors import UserError
from vit_jax.experiments.curve_comparison import compare_curves
from vit_jax.experiments.scaling_figure import draw
from vit_jax.experiments.scaling_grid import Cell, Experiment, Facts
from vit_jax.files import write_text
from vit_jax.sweeps.point_runs import read_outcome, seconds_of

METRICS = {'accuracy': 'Accuracy', 'accuracy_10shot': '10-shot accuracy'}  # columns, titles
_SHOTS = 'fewshot/accuracy_10shot'
_FOOTNOTE = (
  'With two or more seeds each, a side leads where its worst seed is better than the best one of '
  'the other; of two equal models with three seeds each, one does so by chance at one size in ten. '
  'One seed shows no lead: its difference may be chance.'
)

Row = dict[str, Any]
Curves = dict[str, dict[str, dict[int, list[float]]]]


def read_rows(experiment: Experiment, facts: Mapping[Cell, Facts]) -> list[Row]:
  """A row for each run, finished or not: shares in [0, 1], None for what is unknown."""
  rows, kind_names = [], experiment.kind_names
  for cell in experiment.cells:
    run, known = experiment.run(cell), facts[cell]
    outcome = read_outcome(run)
    rows.append(
      {
        'run': cell.name,
        'model': cell.model,
        'fraction': cell.fraction,
        'examples': known.examples,
        'kind': kind_names[cell.kind],
        'seed': cell.seed,
        'status': outcome.status,
        'message': outcome.message,
        'accuracy': outcome.metrics.get('accuracy'),
        'loss': outcome.metrics.get('loss'),
        'accuracy_10shot': outcome.evals.get(_SHOTS),
        'parameters': known.parameters,
        'forward_mflops': round(known.forward_flops / 1e6, 3),
        'training_flops': known.training_flops,
        'seconds': seconds_of(run),
        'command': shlex.join(experiment.command(cell)),
      }
    )
  return rows


def curves(rows: Sequence[Row], metric: str) -> Curves:
  """{kind: {model: {examples: values of the seeds}}} of the runs that are finished."""
  result: Curves = {}
  for row in rows:
    if row[metric] is not None:
      of_model = result.setdefault(row['kind'], {}).setdefault(row['model'], {})
      of_model.setdefault(row['examples'], []).append(row[metric])
  return result


def sentences(rows: Sequence[Row]) -> list[str]:
  """Who leads where, and where curves cross: of two models of a kind, of two kinds of a model."""
  result = []
  for metric, title in METRICS.items():
    of_kinds = curves(rows, metric)
    for kind, of_models in of_kinds.items():
      result += [f'{title}, {kind}: {text}' for text in compare_curves(of_models)]
    for model in dict.fromkeys(row['model'] for row in rows):
      of_model = {kind: each[model] for kind, each in of_kinds.items() if model in each}
      result += [f'{title}, {model}: {text}' for text in compare_curves(of_model)]
  return result


def as_csv(rows: Sequence[Row]) -> str:
  """A line for each run."""
  file = io.StringIO()
  writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()


def _mean_and_deviation(values: Sequence[float] | None) -> str:
  if not values:
    return '–'
  text = f'{100 * statistics.fmean(values):.1f}'
  return f'{text} ± {100 * statistics.stdev(values):.1f}' if len(values) > 1 else text


def _table(rows: Sequence[Row], metric: str) -> str:
  sizes = sorted({row['examples'] for row in rows})
  head = ['model', '', 'parameters', 'MFLOPs', *(f'{size:,}' for size in sizes)]
  lines = [head, ['---', '---', *['---:'] * (len(head) - 2)]]
  of_kinds = curves(rows, metric)
  for kind, model in dict.fromkeys((row['kind'], row['model']) for row in rows):
    row = next(row for row in rows if row['model'] == model)
    values = of_kinds.get(kind, {}).get(model, {})
    numbers = [f'{row["parameters"]:,}', f'{row["forward_mflops"]:.1f}']
    cells = [_mean_and_deviation(values.get(size)) for size in sizes]
    lines.append([model, kind, *numbers, *cells])
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def as_markdown(rows: Sequence[Row]) -> str:
  """A table for each metric, and where curves cross."""
  unfinished = sum(row['status'] != 'finished' for row in rows)
  parts = ['# Accuracy by the number of training examples']
  for metric, title in METRICS.items():
    parts += [
      f'{title} in percent, mean ± standard deviation over the seeds (no ±: one seed):',
      _table(rows, metric),
    ]
  parts.append('MFLOPs: of the forward pass of an image; a multiply-add counts as two.')
  if lines := sentences(rows):
    parts.append('\n'.join(f'- {line}' for line in lines))
    parts.append(_FOOTNOTE)
  if unfinished:
    be = 'is' if unfinished == 1 else 'are'
    parts.append(f'{unfinished} of {len(rows)} runs {be} not finished.')
  ended = [row for row in rows if row['status'] in ('failed', 'diverged')]
  if ended:
    parts.append('\n'.join(f'- {row["run"]} {row["status"]}: {row["message"]}' for row in ended))
  return '\n\n'.join(parts) + '\n'


def write_report(experiment: Experiment, rows: Sequence[Row]) -> str:
  """Writes all files; returns a note for the user, or ''.

  Raises:
    UserError: when they cannot be written.
  """
  folder = epath.Path(experiment.folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'scaling.csv', as_csv(rows))
    write_text(folder / 'scaling.json', json.dumps(as_json(rows), indent=2) + '\n')
    write_text(folder / 'scaling.md', as_markdown(rows))
    series = {title: curves(rows, metric) for metric, title in METRICS.items()}
    return draw(series, folder / 'scaling.png')
  except OSError as error:
    raise UserError(f'{folder} cannot be written: {error.strerror or error}.') from None


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
  """The rows, and the sentences on them."""
  return {'runs': list(rows), 'comparison': sentences(rows)}
