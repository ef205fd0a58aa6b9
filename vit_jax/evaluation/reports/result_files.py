"""The files that an evaluation writes on request: tables of classes and examples, a picture."""

import csv
import dataclasses
import importlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vit_jax.errors import UserError
from vit_jax.evaluation import classification
from vit_jax.evaluation.reports import confusion_picture
from vit_jax.evaluation.suite import Evaluation, Outcome
from vit_jax.files import is_remote, is_special, open_new, scratch_path, user_path, write_atomically

CLASS_COLUMNS = ('class', 'examples', 'correct', 'accuracy', 'top_wrong_class', 'top_wrong_count')
EXAMPLE_COLUMNS = ('image', 'label', 'top_class', 'probability', 'correct')
# How a file of each kind begins: only such a file is replaced.
_STARTS = {'.csv': b'', '.parquet': b'PAR1', '.png': b'\x89PNG'}


@dataclasses.dataclass(frozen=True)
class ResultFiles:
  """What to write, each '' for nothing.

  Attributes:
    per_class: X.csv, a row for each class.
    predictions: X.csv or X.parquet, a row for each example that could be read, in their order.
    confusion: X.png, the confusion matrix.
  """

  per_class: str = ''
  predictions: str = ''
  confusion: str = ''

  def _requests(self) -> Iterator[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    """Yields (flag, path, endings, kinds of evaluations that can write it) of what is wanted."""
    requests = (
      ('--per_class', self.per_class, ('.csv',), ('classification',)),
      ('--predictions', self.predictions, ('.csv', '.parquet'), ('classification', 'real')),
      ('--confusion', self.confusion, ('.png',), ('classification',)),
    )
    return (request for request in requests if request[1])

  def check_flags(self, kinds: Iterable[str]) -> None:
    """Raises `UserError` for a file that these kinds of evaluations cannot write, or of no name."""
    paths = []
    for flag, path, endings, needed in self._requests():
      if not set(needed) & set(kinds):
        raise UserError(f'{flag} needs --eval={" or ".join(needed)}, not {",".join(kinds)}.')
      if user_path(path).suffix not in endings:
        raise UserError(f'{flag}={path} must end in {" or ".join(endings)}.')
      paths.append(path)
    if len(set(paths)) < len(paths):
      raise UserError(f'{paths[0]} is named for two different files; choose another name for one.')

  def check_paths(self) -> None:
    """Raises `UserError` for a path that cannot be written, or that is another kind of file."""
    for flag, path, _, _ in self._requests():
      columns = CLASS_COLUMNS if flag == '--per_class' else EXAMPLE_COLUMNS
      _check_path(flag, user_path(path), ','.join(columns))

  def check_data(self, evaluations: Iterable[Evaluation]) -> None:
    """Raises `UserError` for data whose results cannot be written."""
    for each in evaluations:
      for flag, _, _, kinds in self._requests():
        if each.name not in kinds:
          continue
        (stream,) = each.streams.values()
        source = stream.reader.source
        if flag != '--predictions' and source.multi_label:
          raise UserError(f'{source.name} has several labels per image, and {flag} needs one.')
        if flag == '--predictions' and not classification.keeps_labels(source):
          raise UserError(f'{source.name} has too many labels for --predictions.')
        if flag == '--confusion' and source.num_classes > confusion_picture.MAX_CLASSES:
          raise UserError(
            f'{source.name} has {source.num_classes:,} classes, and --confusion draws up to '
            f'{confusion_picture.MAX_CLASSES:,}; use --per_class.'
          )

  def write(self, outcomes: Mapping[str, Outcome]) -> None:
    """Writes the files, each completely or not at all; raises `UserError` if that fails."""
    for flag, path, _, kinds in self._requests():
      outcome = next(outcome for name, outcome in outcomes.items() if name in kinds)
      if flag == '--per_class':
        content = _csv(CLASS_COLUMNS, _class_rows(outcome))
      elif flag == '--confusion':
        content = _png(outcome)
      elif path.endswith('.csv'):
        content = _csv(EXAMPLE_COLUMNS, zip(*_example_columns(outcome), strict=True))
      else:
        content = _parquet(_example_columns(outcome))
      try:
        write_atomically(user_path(path), lambda scratch, x=content: scratch.write_bytes(x))
      except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror or error}.') from None


def _check_path(flag: str, path: epath.Path, header: str) -> None:
  if path.suffix == '.parquet':
    _import_pyarrow('pyarrow')
  try:
    if is_special(path) or path.is_dir():
      raise UserError(f'{path} is not a file; choose another one for {flag}.')
    if not is_remote(path) and not path.parent.is_dir():
      raise UserError(f'{path} is in no existing folder; make it, or choose another for {flag}.')
    start = _STARTS[path.suffix] or header.encode()
    if path.exists():
      with path.open('rb') as file:
        old = file.read(len(start))
      if old and old != start:
        raise UserError(f'{path} exists and is none of {flag}; choose another one.')
    if not is_remote(path):
      scratch = scratch_path(path)
      os.close(open_new(scratch))
      scratch.unlink()
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror or error}.') from None


def _import_pyarrow(module: str) -> Any:
  try:
    return importlib.import_module(module)  # lazy, and without types
  except ImportError:
    raise UserError(
      "A Parquet file needs the package pyarrow; run pip install 'vit_jax[parquet]', or write .csv."
    ) from None


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
  table = io.StringIO(newline='')
  writer = csv.writer(table)
  writer.writerow(columns)
  writer.writerows(rows)
  return table.getvalue().encode('utf-8', 'backslashreplace')


def _class_rows(outcome: Outcome) -> Iterator[tuple[Any, ...]]:
  """The rows of all classes, also those without examples."""
  assert outcome.result is not None
  wrong: dict[int, tuple[str, int]] = {}
  for label, other, count, _ in outcome.result.confusions():
    wrong.setdefault(label, (outcome.class_names[other], count))
  scores = outcome.result.class_scores
  for label, name in enumerate(outcome.class_names):
    correct, examples = scores.get(label, (0, 0))
    accuracy = f'{correct / examples:.6g}' if examples else ''
    yield name, examples, correct, accuracy, *wrong.get(label, ('', ''))


def _example_columns(outcome: Outcome) -> list[list[str]]:
  """The columns of EXAMPLE_COLUMNS; several labels are joined by ' | '."""
  rows, source, names = outcome.rows, outcome.source, outcome.class_names
  assert rows is not None and source is not None
  if rows.label is not None:
    labels = [names[label] for label in rows.label.tolist()]
  else:
    assert rows.labels is not None
    labels = [' | '.join(names[i] for i in np.flatnonzero(vector)) for vector in rows.labels]
  return [
    [source.describe(i) for i in rows.index.tolist()],
    labels,
    [names[top] for top in rows.top_class.tolist()],
    [f'{probability:.9g}' for probability in rows.confidence.tolist()],  # exact, in float32
    ['true' if correct else 'false' for correct in rows.correct.tolist()],
  ]


def _parquet(columns: list[list[str]]) -> bytes:
  arrow, parquet = _import_pyarrow('pyarrow'), _import_pyarrow('pyarrow.parquet')
  *texts, probabilities, correct = columns
  texts = [[x.encode('utf-8', 'backslashreplace').decode() for x in column] for column in texts]
  values = [
    *texts,
    arrow.array(map(float, probabilities), arrow.float32()),
    [each == 'true' for each in correct],
  ]
  file = io.BytesIO()
  parquet.write_table(arrow.table(dict(zip(EXAMPLE_COLUMNS, values, strict=True))), file)
  return file.getvalue()


def _png(outcome: Outcome) -> bytes:
  assert outcome.result is not None
  matrix = outcome.result.confusion_array(len(outcome.class_names))
  file = io.BytesIO()
  confusion_picture.draw(matrix, outcome.class_names).save(file, 'PNG')
  return file.getvalue()
