"""The results of VTAB-1k as Markdown, CSV and JSON, beside those of the paper."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vit_jax.data.vtab_tasks import GROUPS, TASKS
from vit_jax.files import write_text
from vit_jax.text import plural

# arXiv 2010.11929, Table 9: ViT-H/14 JFT, ViT-L/16 JFT, ViT-L/16 ImageNet-21k; accuracy in percent.
PUBLISHED_MODELS = ('ViT-H/14 JFT', 'ViT-L/16 JFT', 'ViT-L/16 ImageNet-21k')
PUBLISHED = {
  'caltech101': (95.3, 95.4, 90.8),
  'cifar100': (85.5, 81.9, 84.1),
  'dtd': (75.2, 74.3, 74.1),
  'oxford_flowers102': (99.7, 99.7, 99.3),
  'oxford_iiit_pet': (97.2, 96.7, 92.7),
  'sun397': (65.0, 63.5, 61.0),
  'svhn': (88.9, 87.4, 80.9),
  'patch_camelyon': (83.3, 83.6, 82.5),
  'eurosat': (96.7, 96.5, 95.6),
  'resisc45': (91.4, 89.7, 85.2),
  'diabetic_retinopathy': (76.6, 77.1, 75.3),
  'clevr_count_all': (91.7, 86.4, 70.3),
  'clevr_closest_object_distance': (63.8, 63.1, 56.1),
  'dmlab': (53.1, 49.7, 41.9),
  'dsprites_x_position': (79.4, 74.5, 74.7),
  'dsprites_orientation': (63.3, 60.5, 64.9),
  'kitti_closest_vehicle_distance': (84.5, 82.2, 79.9),
  'smallnorb_azimuth': (33.2, 36.2, 30.5),
  'smallnorb_elevation': (51.2, 51.1, 41.7),
}
# Table 2, the means of all 19.
PUBLISHED_MEANS = (77.63, 76.28, 72.72)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a task.

  Attributes:
    accuracy: share of the test examples, 0 to 1; None: the task has no result.
    examples: number of test examples.
    reason: why the task has no result, a sentence.
  """

  accuracy: float | None
  examples: int = 0
  reason: str = ''


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table: a task, the mean of a group, or of all tasks.

  Attributes:
    name: what it is.
    accuracy: in percent; None without a result.
    tasks: how many tasks it is the mean of; 0 for a task.
    of: how many there are.
    examples: test examples of a task.
    published: in percent, for each of PUBLISHED_MODELS: means of the same tasks.
  """

  name: str
  accuracy: float | None
  tasks: int = 0
  of: int = 0
  examples: int = 0
  published: tuple[float, ...] = ()

  @property
  def is_complete(self) -> bool:
    return self.tasks == self.of


@dataclasses.dataclass(frozen=True)
class Report:
  """Results of a model.

  Attributes:
    model: what was fine-tuned.
    settings: one line for each thing that a reader must know to compare them.
    outcomes: of the tasks, by name.
    compares: whether the published results are shown; they are of test examples.
    preparation: how images are prepared, for JSON.
  """

  model: str
  settings: Sequence[str]
  outcomes: Mapping[str, Outcome]
  compares: bool = True
  preparation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def rows(self) -> list[Row]:
    """Tasks that were asked for, means of their groups, and the mean of all."""
    rows = []
    for group in GROUPS:
      tasks = [task for task in self.outcomes if TASKS[task].group == group]
      rows += [self._task_row(task) for task in tasks]
      if tasks:
        rows.append(self._mean_row(group, [task for task in TASKS if TASKS[task].group == group]))
    return [*rows, self._mean_row('all', list(TASKS))]

  def _task_row(self, task: str) -> Row:
    outcome = self.outcomes[task]
    published = PUBLISHED[task] if self.compares else ()
    accuracy = None if outcome.accuracy is None else 100 * outcome.accuracy
    return Row(task, accuracy, examples=outcome.examples, published=published)

  def _mean_row(self, name: str, tasks: Sequence[str]) -> Row:
    results = {task: self.outcomes[task].accuracy for task in tasks if task in self.outcomes}
    scores = {task: 100 * share for task, share in results.items() if share is not None}
    if not scores:
      return Row(name, None, of=len(tasks))
    published: tuple[float, ...] = ()
    if self.compares and len(scores) == len(TASKS):
      published = PUBLISHED_MEANS
    elif self.compares:
      columns = zip(*(PUBLISHED[task] for task in scores), strict=True)
      published = tuple(sum(column) / len(scores) for column in columns)
    mean = sum(scores.values()) / len(scores)
    return Row(name, mean, len(scores), len(tasks), published=published)

  def to_json(self) -> dict[str, Any]:
    """JSON values, which `vit_jax.verify` reads; accuracies are shares.

    `mean` (of all 19 tasks), `natural`, `specialized` and `structured` are null unless all of
    their tasks have results; `means` has those of fewer tasks, too, with their numbers.
    """
    rows = {row.name: row for row in self.rows()}
    means = {name: rows[name] for name in (*GROUPS, 'all') if name in rows}
    whole = {name: _share(row.accuracy) for name, row in means.items() if row.is_complete}
    return {
      'model': self.model,
      **self.preparation,
      'settings': list(self.settings),
      'mean': whole.get('all'),
      **{group: whole.get(group) for group in GROUPS},
      'means': {
        name: {'accuracy': _share(row.accuracy), 'tasks': row.tasks, 'of': row.of}
        for name, row in means.items()
      },
      'tasks': {
        task: {'accuracy': outcome.accuracy, 'examples': outcome.examples}
        | ({'reason': outcome.reason} if outcome.reason else {})
        for task, outcome in self.outcomes.items()
      },
    }

  def to_csv(self) -> str:
    """One line per row: name, accuracy, test examples, tasks, of, and the published ones."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['name', 'accuracy', 'examples', 'tasks', 'of', *PUBLISHED_MODELS])
    for row in self.rows():
      counts = [row.examples or '', row.tasks if row.of else '', row.of or '']
      writer.writerow([row.name, _number(row.accuracy), *counts, *_published(row)])
    return file.getvalue()

  def to_markdown(self) -> str:
    """The table, and below it the settings and why tasks have no result."""
    columns = PUBLISHED_MODELS if self.compares else ()
    lines = [f'# VTAB-1k: {self.model}', '']
    lines.append(f'| {" | ".join(("task", "test examples", "accuracy", *columns))} |')
    lines.append(f'|---|{"---:|" * (2 + len(columns))}')
    for row in self.rows():
      numbers = [_number(row.accuracy) or '–', *(_published(row) or ['–'] * len(columns))]
      examples = f'{row.examples:,}' if row.examples else ''
      lines.append(f'| {_label(row)} | {examples} | {" | ".join(numbers)} |')
    lines += ['', 'Accuracy in percent.']
    if self.compares:
      lines[-1] += (
        ' Published: arXiv 2010.11929, Tables 2 and 9; means in these columns are of the same '
        'tasks.'
      )
    lines += ['', *(f'- {line}' for line in self.settings)]
    reasons = {task: each.reason for task, each in self.outcomes.items() if each.reason}
    if reasons:
      lines += ['', f'{plural(len(reasons), "task")} without a result:', '']
      lines += [f'- {task}: {reason}' for task, reason in reasons.items()]
    return '\n'.join(lines) + '\n'


def _share(percent: float | None) -> float | None:
  return None if percent is None else percent / 100


def _number(value: float | None) -> str:
  return '' if value is None else f'{value:.2f}'


def _published(row: Row) -> list[str]:
  """With the digits that the paper has: two for the means of all tasks."""
  digits = 2 if row.tasks == len(TASKS) else 1
  return [f'{value:.{digits}f}' for value in row.published]


def _label(row: Row) -> str:
  """'dtd', 'natural', 'natural, 5 of 7 tasks', 'VTAB (19 tasks)', 'mean of 12 of 19 tasks'."""
  if not row.of:
    return row.name
  if row.name == 'all':
    label = (
      f'VTAB ({row.of} tasks)' if row.is_complete else f'mean of {row.tasks} of {row.of} tasks'
    )
  else:
    label = f'{row.name}, {"" if row.is_complete else f"{row.tasks} of "}{row.of} tasks'
  return f'**{label}**'


def write_report(report: Report, workdir: epath.Path) -> None:
  """Writes vtab.md, vtab.csv and vtab.json, each whole or not at all."""
  workdir.mkdir(parents=True, exist_ok=True)
  write_text(workdir / 'vtab.md', report.to_markdown())
  write_text(workdir / 'vtab.csv', report.to_csv())
  write_text(workdir / 'vtab.json', json.dumps(report.to_json(), indent=1) + '\n')
