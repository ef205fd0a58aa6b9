"""The picture of the scaling experiment, in the manner of Figures 3 and 4 (arXiv 2010.11929)."""

import importlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from vit_jax.experiments.curve_comparison import Curve, mean_and_range
from vit_jax.files import write_atomically

# {title of a panel: {kind of runs: {model: curve}}}
Series = Mapping[str, Mapping[str, Mapping[str, Curve]]]

_STYLES = ('-', '--', ':')


def draw(series: Series, path: epath.Path) -> str:
  """Draws accuracy over the number of examples, a panel for each title, a line for each model.

  The range of the seeds is shaded; a color is a model, and the style of the line tells the kind.

  Returns:
    A note for the user when matplotlib is missing, else ''.

  Raises:
    OSError: when the file cannot be written.
  """
  try:
    figures = importlib.import_module('matplotlib.figure')
  except ImportError:
    return f"{path.name} is not drawn; pip install 'vit_jax[sweep]' installs what it needs."
  figure = figures.Figure(figsize=(10, 4.2), layout='constrained')
  for axes, (title, kinds) in zip(figure.subplots(1, len(series)), series.items(), strict=True):
    _draw_panel(axes, title, kinds)
  write_atomically(path, lambda scratch: figure.savefig(scratch, format='png', dpi=150))
  return ''


def _draw_panel(axes: Any, title: str, kinds: Mapping[str, Mapping[str, Curve]]) -> None:
  models = list(dict.fromkeys(model for curves in kinds.values() for model in curves))
  all_sizes = set()
  for number, (kind, curves) in enumerate(kinds.items()):
    for model, curve in curves.items():
      color = f'C{models.index(model) % 10}'
      sizes, means, low, high = mean_and_range(curve)
      style, label = _STYLES[number % len(_STYLES)], f'{model}, {kind}' if number else model
      axes.plot(sizes, means, f'o{style}', color=color, markersize=4, label=label)
      axes.fill_between(sizes, low, high, color=color, alpha=0.2, linewidth=0)
      all_sizes.update(sizes)
  if all_sizes:
    axes.set_xscale('log')
    axes.set_xticks(sorted(all_sizes), [f'{size:,}' for size in sorted(all_sizes)])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize='small')
  axes.set_title(title)
  axes.set_xlabel('training examples')
  axes.set_ylabel(title.lower())
  axes.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
  axes.grid(alpha=0.3)
