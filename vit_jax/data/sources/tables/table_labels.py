"""From the cells of a table to classes: names or numbers, one or several for each image."""

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

from vit_jax.data.sources.source import MAX_CLASSES, encode_label
from vit_jax.data.sources.tables.table_columns import BINARY
from vit_jax.data.sources.tables.table_file import Cell
from vit_jax.errors import UserError
from vit_jax.text import plural

_NONE = ('', 'nan', 'NaN')  # what is written where there is no label
_SEPARATORS = ('|', ';')  # that names of classes hardly contain
_MAX_CLASSES_PER_ROW = 0.8  # more are captions, or boxes
_MIN_ROWS = 20  # fewer may well have a class each
_LIST = re.compile(r'\s*\[(.*)\]\s*')  # as Python writes a list

Cells = tuple[Cell, ...]  # of the columns of labels in one row


@dataclasses.dataclass(frozen=True)
class Labels:
  """The labels of N rows, of which many are equal.

  Attributes:
    class_names: unique names, in label order.
    multi_label: whether an image has any number of labels.
    classes: the K different labels: the class indices of each; None for no label.
    codes: (N,) int32: which of these each row has.
    notes: what the user should know, a sentence each.
  """

  class_names: tuple[str, ...]
  multi_label: bool
  classes: Sequence[tuple[int, ...] | None]
  codes: np.ndarray
  notes: tuple[str, ...] = ()

  def read(self, row: int) -> np.int32 | np.ndarray:
    """The label of a row, as `Source.read` gives it."""
    classes = self.classes[self.codes[row]] or ()
    return encode_label(classes, len(self.class_names), self.multi_label)

  def take(self, rows: np.ndarray) -> 'Labels':
    """The labels of some rows."""
    return dataclasses.replace(self, codes=self.codes[rows])

  def single(self, rows: np.ndarray) -> np.ndarray:
    """(N,) int32: the classes of rows, which have one each."""
    first = [classes[0] if classes else -1 for classes in self.classes]
    return np.array(first, np.int32)[self.codes[rows]]

  @property
  def is_missing(self) -> np.ndarray:
    """(N,) bool: whether a row has no label."""
    return np.array([classes is None for classes in self.classes], bool)[self.codes]


def _whole(name: str) -> str:
  """'3.0', as a column of numbers with gaps is written, is '3'."""
  return re.sub(r'^(-?\d+)\.0*$', r'\1', name)


def _split_cell(cell: Cell, separator: str) -> list[str]:
  parts = cell if isinstance(cell, tuple) else cell.split(separator) if separator else [cell]
  names = (_whole(part.strip()) for part in parts)
  return [name for name in names if name not in _NONE]


def _parse_list(cell: Cell) -> Cell:
  """A cell such as "['cat', 'dog']" as a tuple; any other as it is."""
  match = _LIST.fullmatch(cell) if isinstance(cell, str) else None
  return tuple(part.strip(' \'"') for part in match[1].split(',')) if match else cell


def _sort(names: set[str], path: str) -> tuple[str, ...]:
  """Sorts class names; integers by their values."""
  if all(re.fullmatch(r'-?\d+', name) for name in names):
    return tuple(sorted(names, key=lambda name: (int(name), name)))
  if all(re.fullmatch(r'[-+]?[\d.]+(e[-+]?\d+)?', name) for name in names):
    fraction = min(name for name in names if not name.isdigit())
    raise UserError(
      f'The labels of {path} are numbers such as {fraction}, not classes; name another column as '
      '?label=….'
    )
  if objects := sorted(name for name in names if name.startswith('{')):
    raise UserError(
      f'The labels of {path} are objects such as {objects[0][:40]!r}; export it as CSV, with the '
      'columns image and label.'
    )
  if unprintable := sorted(name for name in names if not name.isprintable()):
    raise UserError(
      f'{path} has the label {unprintable[0]!r}, with unprintable characters; rename it.'
    )
  return tuple(sorted(names))


def _hidden_separator(names: set[str]) -> str:
  """A comma or space that joins labels which also appear alone; else ''."""
  for separator in (',', ' '):
    joined = [name for name in names if separator in name]
    alone = names.difference(joined)
    parts = {part.strip() for name in joined for part in name.split(separator)}
    if parts and parts <= alone:
      return separator
  return ''


def _read_names(
  cells: Sequence[Cell], codes: np.ndarray, separator: str, path: str
) -> tuple[Labels, set[str]]:
  """Reads different cells of one column; the set has the names before any are dropped."""
  notes = []
  parsed = [cell if separator else _parse_list(cell) for cell in cells]
  if all(isinstance(new, tuple) for new, cell in zip(parsed, cells, strict=True) if cell):
    cells = parsed
  texts = [cell for cell in cells if isinstance(cell, str)]
  if not separator and len(texts) == len(cells):
    separator = next((s for s in _SEPARATORS if any(s in text for text in texts)), '')
    notes += [f'labels of {path} are separated at each {separator!r}'] if separator else []
  multi_label = bool(separator) or len(texts) < len(cells)
  rows = [_split_cell(cell, separator) for cell in cells]
  names = {name for row in rows for name in row}
  known = names
  if not multi_label and len(names) != 2:  # -1 stands for no label, but beside 1 for the other one
    known = {name for name in names if not re.fullmatch(r'-\d+', name)}
  class_names = _sort(known, path)
  if not multi_label and (hint := _hidden_separator(names)):
    option = '%20' if hint == ' ' else hint
    notes.append(
      f'labels of {path} with {hint!r} in them look like several; ?sep={option} separates them'
    )
  indices = {name: i for i, name in enumerate(class_names)}
  folded: dict[str, str] = {}
  for name in class_names:
    other = folded.setdefault(name.casefold(), name)
    if other != name:
      notes.append(f'{path} has the classes {other} and {name}, which differ in case only')
      break
  classes: list[tuple[int, ...] | None] = [
    tuple(sorted({indices[name] for name in row if name in indices})) for row in rows
  ]
  if not multi_label:
    classes = [each or None for each in classes]
  return Labels(class_names, multi_label, classes, codes, tuple(notes)), names


def _read_columns(
  cells: Sequence[Cells], codes: np.ndarray, names: tuple[str, ...], path: str, skip: bool
) -> Labels:
  """Reads different rows of columns of zeros and ones, one for each class.

  Blank cells are zeros. Where all values are 1 and -1, -1 means "not this class"; where there are
  zeros, too, -1 means "uncertain", and such rows are refused unless `skip`.
  """
  texts = [[str(cell).strip() for cell in row] for row in cells]
  values = [[0 if text in _NONE else BINARY.get(text.lower()) for text in row] for row in texts]
  different = {value for row in values for value in row}
  is_uncertain = {-1, 0} <= different
  for value, text in zip(itertools.chain(*values), itertools.chain(*texts), strict=True):
    if value is None or (value == -1 and is_uncertain and None not in different and not skip):
      advice = ''
      if value == -1:
        advice = ': replace it, or leave out the rows that have it with ?incomplete=skip'
      raise UserError(
        f'{path} has {text!r} in its columns of classes ({", ".join(names)[:80]}); 0 or 1 is '
        f'needed{advice}.'
      )
  notes = []
  if any(text in _NONE for row in texts for text in row):
    notes.append(f'blank cells in the columns of classes of {path} count as 0')
  classes = [
    None if is_uncertain and -1 in row else tuple(i for i, value in enumerate(row) if value == 1)
    for row in values
  ]
  multi_label = any(each is not None and len(each) != 1 for each in classes)
  if not multi_label:
    notes.append(f'{path} has one column per class and one class per image: it is not multi-label')
  return Labels(names, multi_label, classes, codes, tuple(notes))


def _note_on_amounts(labels: Labels, path: str) -> list[str]:
  """A note on many numbers with gaps, which may be ages or counts."""
  names = labels.class_names
  if len(names) < _MIN_ROWS or not all(re.fullmatch(r'-?\d+', name) for name in names):
    return []
  if int(names[-1]) - int(names[0]) < len(names):
    return []
  return [
    f'labels of {path} are {len(names):,} numbers from {names[0]} to {names[-1]}; each is a class, '
    'not an amount'
  ]


def read_labels(
  cells: Sequence[Cells],
  codes: np.ndarray,
  columns: tuple[str, ...],
  separator: str,
  path: str,
  skip: bool = False,
) -> Labels:
  """Reads the labels of a table.

  Args:
    cells: the different cells that rows have in the columns of labels.
    codes: (N,) int32: which of these each row has.
    columns: the names of these columns.
    separator: of several labels in one cell; '' if '|' and ';' separate them where they appear.
    path: of the table.
    skip: whether rows without a label will be left out, also those with -1 in columns of classes.

  Raises:
    UserError: for values that are not classes, or fewer than two classes.
  """
  column, *others = columns
  if others:
    labels = _read_columns(cells, codes, columns, path, skip)
    names = {labels.class_names[i] for each in labels.classes for i in each or ()}
  else:
    labels, names = _read_names([cell for (cell,) in cells], codes, separator, path)
  count = len(labels.class_names)
  if not names or (not others and count < 2):
    value = f'only {min(names)!r}' if names else 'nothing'
    raise UserError(
      f'{path} has {value} in {"its columns of classes" if others else f"{column!r}"}: '
      'at least 2 classes are needed, and the template of a submission has none; name another '
      'table, or its column as ?label=….'
    )
  too_many = count > _MAX_CLASSES_PER_ROW * len(codes) and len(codes) > _MIN_ROWS
  if count > MAX_CLASSES or (too_many and not labels.multi_label):
    raise UserError(
      f'{path} has {plural(count, "class")} in {plural(len(codes), "row")} of its column '
      f'{column!r}; name the column of classes as ?label=….'
    )
  return dataclasses.replace(labels, notes=(*labels.notes, *_note_on_amounts(labels, path)))
