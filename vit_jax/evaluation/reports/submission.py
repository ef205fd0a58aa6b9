"""Predictions in the rows and columns of a competition's template, as sample_submission.csv."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

from vit_jax.data.sources.tables.table_file import open_table
from vit_jax.errors import UserError
from vit_jax.evaluation.reports.predictions import Prediction
from vit_jax.text import plural


@dataclasses.dataclass(frozen=True)
class Template:
  """The table that a competition expects, without its values.

  Attributes:
    path: of the template.
    columns: the first has the names of images; the other is their label, or the others are the
      classes, whose probabilities are wanted.
    ids: the names of images, as they are written there, in order.
  """

  path: str
  columns: tuple[str, ...]
  ids: tuple[str, ...]

  @property
  def wants_probabilities(self) -> bool:
    return len(self.columns) > 2


def read_template(path: str, class_names: Sequence[str]) -> Template:
  """Reads a template.

  Raises:
    UserError: for a file that is not a table, or whose columns are neither a label nor the classes.
  """
  table = open_table(path)
  columns = table.columns
  if len(columns) != 2 and set(columns[1:]) != set(class_names):
    raise UserError(
      f'{path} has the columns {", ".join(columns)[:200]}; a name and a label are needed, or a '
      f'name and the {plural(len(class_names), "class")} of the model, such as {class_names[0]}.'
    )
  return Template(path, columns, tuple(str(cell).strip() for (cell,) in table.rows(columns[:1])))


def fill(template: Template, predictions: Iterable[Prediction]) -> list[list[str]]:
  """The rows of a submission; images are matched by their file names, with or without ending.

  Raises:
    UserError: when an image of the template has no prediction, or two.
  """
  known: dict[str, list[Prediction]] = {}
  for each in predictions:
    for name in {each.path.name, each.path.stem}:
      known.setdefault(name, []).append(each)
  matches = [known.get(pathlib.PurePosixPath(name).name, []) for name in template.ids]
  if missing := [i for i, match in enumerate(matches) if not match]:
    raise UserError(
      f'{template.path} has {plural(len(missing), "row")} of {len(matches):,} without a '
      f'prediction, such as {template.ids[missing[0]]!r}; name the folder of these images.'
    )
  if double := next((match for match in matches if len(match) > 1), None):
    raise UserError(
      f'{double[0].path} and {double[1].path} have the name of one row in {template.path}; '
      'classify one of them.'
    )
  rows = []
  for name, (prediction,) in zip(template.ids, matches, strict=True):
    if not template.wants_probabilities:
      rows.append([name, prediction.top[0][1]])
      continue
    probabilities = {label: probability for _, label, probability in prediction.top}
    rows.append([name, *(str(probabilities[label]) for label in template.columns[1:])])
  return rows
