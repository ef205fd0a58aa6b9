"""Plots accuracies.png beside this file: from scratch and fine-tuned, a dot a seed, and means."""

import csv
import pathlib
import statistics

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

FOLDER = pathlib.Path(__file__).parent
TARGETS = {'mean_color': 'mean color', 'downsized': '4 x 4 colors', 'pixels': 'pixels'}


def accuracies(target: str, kind: str) -> list[float]:
  """Accuracies in percent of the finished runs on 5,000 images."""
  with (FOLDER / target / 'scaling.csv').open(newline='') as file:
    rows = [row for row in csv.DictReader(file) if row['kind'] == kind]
  return [100 * float(row['accuracy']) for row in rows if row['accuracy']]


def main() -> None:
  columns = {'from scratch': accuracies('pixels', 'from scratch')}
  columns |= {
    f'{name},\nfine-tuned': accuracies(key, 'fine-tuned') for key, name in TARGETS.items()
  }
  figure, axes = plt.subplots(figsize=(6, 3.2), layout='constrained')
  for i, values in enumerate(columns.values()):
    color = 'tab:blue' if i else 'tab:gray'
    axes.hlines(statistics.fmean(values), i - 0.25, i + 0.25, color=color, lw=2)
    axes.plot([i] * len(values), values, 'o', color=color, alpha=0.7)
  axes.set_xticks(range(len(columns)), list(columns))
  axes.set_ylabel('test accuracy in %')
  axes.grid(axis='y', alpha=0.3)
  axes.spines[['top', 'right']].set_visible(False)
  figure.savefig(FOLDER / 'accuracies.png', dpi=100)


main()
