"""Plots a curve.png beside each metrics.jsonl: `python results/plot.py results/*/metrics.jsonl`."""

import json
import pathlib
import sys

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt


def plot(path: pathlib.Path) -> None:
  """Plots losses (left) and test accuracy (right) over steps, to curve.png beside `path`."""
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout='constrained')
  for axes, name in ((left, 'train/loss'), (left, 'test/loss'), (right, 'test/accuracy')):
    points = [(line['step'], line[name]) for line in lines if name in line]
    dense = name.startswith('train')
    axes.plot(*zip(*points, strict=True), label=name, lw=0.8 if dense else 2, alpha=0.7)
  right.yaxis.set_major_formatter('{x:.0%}')
  for axes in (left, right):
    axes.set_xlabel('step')
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
  figure.savefig(path.with_name('curve.png'), dpi=100)


for argument in sys.argv[1:]:
  plot(pathlib.Path(argument))
