"""Reports as HTML files that need no network: of one run, and of several runs side by side."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm

from vit_jax.config import changed_fields, flatten
from vit_jax.run_report import plots
from vit_jax.run_report.curves import MAX_INTERVALS
from vit_jax.run_report.measured import predicted_and_measured
from vit_jax.run_report.run_files import Run
from vit_jax.templates import environment, inline_file, policy
from vit_jax.text import format_value, shortened

_PACKAGE = 'vit_jax.run_report'
_MAX_NAME = 80  # characters of a name
# Of the pictures, in their units.
_AREA = {
  'width': plots.WIDTH,
  'height': plots.HEIGHT,
  'left': plots.LEFT,
  'right': plots.RIGHT,
  'top': plots.TOP,
  'bottom': plots.BOTTOM,
}


def _join_labels(labels: Sequence[tuple[str, float]]) -> str:
  """'cat', or 'cat 70%, dog 30%' of an image that Mixup or CutMix has made."""
  if len(labels) == 1 or all(weight == 1 for _, weight in labels):
    return ', '.join(name for name, _ in labels)
  return ', '.join(f'{name} {weight:.0%}' for name, weight in labels)


_TEMPLATES = environment(_PACKAGE)
_TEMPLATES.filters |= {
  'place': '{:.1f}'.format,
  'short': lambda name: shortened(str(name), _MAX_NAME),
  'field': lambda value: shortened(repr(value), 400),
  'labels': _join_labels,
}


def render(run: Run) -> str:
  """The page of one run."""
  restarts, curves = run.state.restarts, run.curves
  drawn = [
    plots.draw(name, {'': curves.curves[name]}, {'': 0}, restarts) for name in curves.names()
  ]
  columns, comparison, note = predicted_and_measured(run)
  pictures = []
  if run.first_batch:
    title = f'Images of step {run.first_batch.step:,}, as the model sees them'
    pictures.append((title, run.first_batch))
  if run.mistakes:
    pictures.append((f'Most confident mistakes after step {run.mistakes.step:,}', run.mistakes))
  return _render(
    'run_page.html.j2',
    run=run,
    tiles=_tiles(run),
    plots=[plot for plot in drawn if plot],
    max_intervals=MAX_INTERVALS,
    columns=columns,
    comparison=comparison,
    comparison_note=note,
    pictures=pictures,
    fields={} if run.config is None else flatten(run.config),
    changed={} if run.config is None else changed_fields(run.config),
  )


def render_comparison(runs: Mapping[str, Run]) -> str:
  """The page of several runs, by the names that it calls them."""
  numbers = {name: number for number, name in enumerate(runs)}
  metrics = list(dict.fromkeys(metric for run in runs.values() for metric in run.curves.names()))
  drawn = []
  for metric in metrics:
    curves = {n: r.curves.curves[metric] for n, r in runs.items() if metric in r.curves.curves}
    drawn.append(plots.draw(metric, curves, numbers))
  return _render(
    'comparison_page.html.j2',
    names=list(runs),
    plots=[plot for plot in drawn if plot],
    rows=_last_values(list(runs.values()), metrics),
    differing=_differing_fields(list(runs.values())),
  )


def _render(template: str, **values: Any) -> str:
  script = inline_file(_PACKAGE, 'run_page.js')
  return _TEMPLATES.get_template(template).render(
    **values,
    written=time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime()),
    area=_AREA,
    style=inline_file(_PACKAGE, 'run_page.css'),
    script=script,
    policy=policy(script),
  )


def _tiles(run: Run) -> list[tuple[str, str]]:
  """(number, what it is) of the head line."""
  curves, total = run.curves, run.total_steps
  tiles = [(run.state.name, run.state.reason or 'state')]
  tiles.append((f'{curves.step:,}', f'of {total:,} steps' if total else 'steps'))
  seconds = curves.seconds_left(total) if total and run.state.name == 'running' else None
  if seconds is not None:
    tiles.append((tqdm.tqdm.format_interval(round(seconds)), 'left, h:min:s'))
  metric = curves.main_metric()
  best = curves.best(metric) if metric else None
  if metric and best and (last := curves.curves[metric].last):
    tiles.append((format_value(metric, last.value), f'{metric}, last: step {last.step:,}'))
    tiles.append((format_value(metric, best.value), f'{metric}, best: step {best.step:,}'))
  return tiles


def _last_values(runs: Sequence[Run], metrics: Sequence[str]) -> list[tuple[str, list[str]]]:
  """(what it is, its text for each run)."""

  def text(run: Run, metric: str) -> str:
    curve = run.curves.curves.get(metric)
    return format_value(metric, curve.last.value) if curve and curve.last else ''

  states = [('state', [run.state.name for run in runs])]
  steps = [('step', [f'{run.curves.step:,}' for run in runs])]
  return [*states, *steps, *((name, [text(run, name) for run in runs]) for name in metrics)]


def _differing_fields(runs: Sequence[Run]) -> dict[str, list[str]]:
  """The fields that are not the same in all runs with a config; '' where there is none."""
  configs = [{} if run.config is None else flatten(run.config) for run in runs]
  differing = {}
  for name in dict.fromkeys(name for config in configs for name in config):
    texts = [shortened(repr(config[name]), 400) if name in config else '' for config in configs]
    if len({text for text, config in zip(texts, configs, strict=True) if config}) > 1:
      differing[name] = texts
  return differing
