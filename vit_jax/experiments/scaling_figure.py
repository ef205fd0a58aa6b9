"""The picture of the scaling experiment, in the manner of Figures 3 and 4 (arXiv 2010.11929)."""

import importlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vit_jax.experiments.curve_comparison import Curve, mean_and_range
from vit_jax.files import write_atomically

# {title of a panel: {kind of runs: {model: curve}}}
Series = Mapping[str, Mapping[str, Mapping[str, Curve]]]

# Of the kinds, in turn: (dashes, marker, is it filled).
_STYLES = (('-', 'o', True), ((0, (7, 3)), 'o', False), ((0, (2, 2)), 's', False))


def draw(series: Series, path: epath.Path) -> str:
  """Draws accuracy over the number of examples, a panel for each title, a line for each model.

  The range of the seeds is shaded; a color is a model, and dashes and markers tell the kind. If all
  runs have the same number of examples, bars take the place of the lines.

  Returns:
    A note for the user when matplotlib is missing, else ''.

  Raises:
    OSError: when the file cannot be written.
  """
  try:
    figures = importlib.import_module('matplotlib.figure')
  except ImportError:
    return f"{path.name} is not drawn; pip install 'vit_jax[sweep]' installs what it needs."
  all_curves = [
    c for kinds in series.values() for curves in kinds.values() for c in curves.values()
  ]
  if len({size for curve in all_curves for size in curve}) == 1:
    figure = _draw_bars(figures, series)
  else:
    figure = _draw_lines(figures, series)
  write_atomically(path, lambda scratch: figure.savefig(scratch, format='png', dpi=150))
  return ''


def _percent(value: float, _: Any) -> str:
  return f'{value:.0%}'


def _draw_bars(figures: Any, series: Series) -> Any:
  """A bar for each model and kind, from the top down; a line is the range of the seeds."""
  bars = list(
    dict.fromkeys(
      (kind, model) for kinds in series.values() for kind in kinds for model in kinds[kind]
    )
  )
  kind_names, models = (list(dict.fromkeys(names)) for names in zip(*bars, strict=True))
  labels = [f'{model}, {kind}' if len(kind_names) > 1 else model for kind, model in bars]
  figure = figures.Figure(figsize=(10, 1.2 + 0.35 * len(bars)), layout='constrained')
  panels = figure.subplots(1, len(series), sharey=True)
  for axes, (title, kinds) in zip(panels, series.items(), strict=True):
    for row, (kind, model) in enumerate(bars):
      values = [x for of_size in kinds.get(kind, {}).get(model, {}).values() for x in of_size]
      if not values:
        continue
      mean = statistics.fmean(values)
      axes.barh(row, mean, color=f'C{models.index(model) % 10}', alpha=0.8)
      axes.plot([min(values), max(values)], [row, row], color='black', linewidth=1)
      axes.annotate(f'{mean:.1%}', (mean, row), (4, 0), textcoords='offset points', va='center')
    axes.set_yticks(range(len(bars)), labels)
    axes.set_xlim(right=axes.get_xlim()[1] * 1.08)  # room for the numbers
    axes.set_title(title)
    axes.xaxis.set_major_formatter(_percent)
    axes.spines[['top', 'right']].set_visible(False)
  panels[0].invert_yaxis()
  return figure


def _draw_lines(figures: Any, series: Series) -> Any:
  """A line for each model and kind."""
  figure = figures.Figure(figsize=(10, 4.8), layout='constrained')
  names = list(dict.fromkeys(kind for of_kinds in series.values() for kind in of_kinds))
  models = list(
    dict.fromkeys(m for kinds in series.values() for curves in kinds.values() for m in curves)
  )
  lines = {}
  for axes, (title, kinds) in zip(figure.subplots(1, len(series)), series.items(), strict=True):
    lines |= _draw_panel(axes, title, kinds, names, models)
  if lines:
    order = sorted(lines, key=lambda key: (names.index(key[0]), models.index(key[1])))
    figure.legend(
      [lines[key] for key in order],
      [f'{model}, {kind}' if len(names) > 1 else model for kind, model in order],
      loc='outside lower center',
      ncols=len(names) if len(names) > 1 else min(6, len(order)),
      handlelength=4,
      frameon=False,
    )
  return figure


def _draw_panel(
  axes: Any,
  title: str,
  kinds: Mapping[str, Mapping[str, Curve]],
  names: Sequence[str],
  models: Sequence[str],
) -> dict[tuple[str, str], Any]:
  """Draws a panel; the order of `names` of kinds and `models` sets their looks; returns lines."""
  all_sizes, lines = set(), {}
  for kind, curves in kinds.items():
    dashes, marker, is_filled = _STYLES[names.index(kind) % len(_STYLES)]
    for model, curve in curves.items():
      color = f'C{models.index(model) % 10}'
      sizes, means, low, high = mean_and_range(curve)
      face = color if is_filled else 'white'
      look = {'linestyle': dashes, 'marker': marker, 'markersize': 5, 'markerfacecolor': face}
      (lines[kind, model],) = axes.plot(sizes, means, color=color, **look)
      axes.fill_between(sizes, low, high, color=color, alpha=0.2, linewidth=0)
      all_sizes.update(sizes)
  if all_sizes:
    axes.set_xscale('log')
    axes.set_xticks(sorted(all_sizes), [f'{size:,}' for size in sorted(all_sizes)])
    axes.minorticks_off()
  axes.set_title(title)
  axes.set_xlabel('training examples')
  axes.yaxis.set_major_formatter(_percent)
  axes.grid(alpha=0.3)
  return lines
