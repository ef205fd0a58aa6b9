"""The table of published results, results/published.csv: its rows, and finding one of them."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from vit_jax.errors import UserError
from vit_jax.files import read_text

# Percentage points by which another run may differ from a row without a spread: three times the
# largest standard deviation of Table 2's single data sets (0.15, Pets), rounded up.
DEFAULT_NOISE = 0.5
_MAX_LISTED = 8  # rows in a message


@dataclasses.dataclass(frozen=True)
class Row:
  """A published result.

  Attributes:
    id: its short name.
    model: as published, ViT-L/16.
    pretraining: jft, imagenet21k, imagenet, cifar10 or none.
    epochs: of pretraining; '' where the source does not say.
    target: cifar10, imagenet_real, …; pretraining, for what it costs.
    resolution: pixels of the published run.
    metric: accuracy (top-1), accuracy_5shot (linear) and mean_accuracy (over the tasks of VTAB) in
      percent; exaflops, tpu_v3_core_days.
    value: as published.
    spread: '', a standard deviation, or '83.22 to 83.33', the range of several runs.
    source: the paper and its table, or the repository and its file.
    command: that reproduces it, joined by ' && '; '' for what cannot be reproduced here.
    note: how the command differs from what was published.
  """

  id: str
  model: str
  pretraining: str
  epochs: str
  target: str
  resolution: str
  metric: str
  value: float
  spread: str
  source: str
  command: str
  note: str

  @property
  def noise(self) -> float:
    """The difference from `value` that another run may have, in the unit of the value.

    Three standard deviations, or the width of the range of several runs, but at least half a unit
    of the second decimal, to which accuracies are rounded; `DEFAULT_NOISE` without a spread.
    """
    if not self.spread:
      return DEFAULT_NOISE
    bounds = [float(bound) for bound in self.spread.split(' to ')]
    return max(bounds[1] - bounds[0] if len(bounds) == 2 else 3 * bounds[0], 0.005)

  @property
  def summary(self) -> str:
    """'ViT-L/16, imagenet21k, cifar10, 384 px: accuracy 99.16 (arXiv …)' on one line."""
    pixels = [f'{self.resolution} px'] if self.resolution else []
    names = ', '.join((self.model, self.pretraining, self.target, *pixels))
    return f'{names}: {self.metric} {self.value:g} ({self.source})'


def default_path() -> Path:
  """results/published.csv of the current folder, or the one that comes with this module."""
  package = Path(__file__).resolve().parent.parent
  paths = [folder / 'results' / 'published.csv' for folder in (Path(), package.parent, package)]
  return next((path for path in paths if path.exists()), paths[0])


def read_rows(path: epath.PathLike) -> list[Row]:
  """Reads the table.

  Raises:
    UserError: for a file that cannot be read, or that has other columns or a value that is no
      number; the message names the line.
  """
  names = [field.name for field in dataclasses.fields(Row)]
  try:
    reader = csv.DictReader(io.StringIO(read_text(path)), strict=True)
    if reader.fieldnames != names:
      raise ValueError(f'its columns are not {", ".join(names)}')
    rows = []
    for values in reader:
      if None in values or None in values.values():
        raise ValueError(f'line {reader.line_num} does not have {len(names)} columns')
      fields: dict[str, Any] = {**values, 'value': float(values['value'])}
      rows.append(Row(**fields))
      _ = rows[-1].noise  # its spread can be parsed
  except (OSError, ValueError, csv.Error) as error:
    reason = error.strerror if isinstance(error, OSError) else error
    raise UserError(f'{path} cannot be read as the table of published results: {reason}.') from None
  return rows


def find_rows(rows: Sequence[Row], selection: str) -> list[Row]:
  """The row of an id, or those that have all fields of 'ViT-L/16,imagenet21k,cifar10'.

  A field is any of model, pretraining, target, resolution, metric and epochs, in any order, or
  the end of the source, as in 'ViT-L/16,imagenet21k,cifar10,Table 5'. Several rows are of the same
  model, pretraining and target, in the order of the table.

  Raises:
    UserError: for none, or for rows of several results, naming their ids.
  """
  for row in rows:
    if row.id == selection:
      return [row]
  wanted = [part.strip().lower() for part in selection.split(',')]
  matching = [row for row in rows if all(_matches(row, part) for part in wanted)]
  if not matching:
    raise UserError(
      f'{selection!r} is neither a run nor a row of the published results; a row is named by its '
      'id or as ViT-L/16,imagenet21k,cifar10.'
    )
  if len({(row.model, row.pretraining, row.target) for row in matching}) == 1:
    return matching
  ids = [f'{row.id} ({row.value:g})' for row in matching[:_MAX_LISTED]]
  more = len(matching) - len(ids)
  raise UserError(
    f'{selection!r} selects {len(matching)} rows of the published results: {", ".join(ids)}'
    f'{f" and {more} more" if more else ""}; name the id of one.'
  )


def _matches(row: Row, part: str) -> bool:
  fields = (row.model, row.pretraining, row.target, row.resolution, row.metric, row.epochs)
  return part in map(str.lower, fields) or (bool(part) and row.source.lower().endswith(part))
