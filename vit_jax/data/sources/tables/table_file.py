"""Reads the rows of a table as text, one at a time: CSV and its variants, JSONL, Parquet.

The suffix tells which: .csv, .tsv and .txt (the first line shows whether ',', ';', '|' or a tab
separates the cells, in .txt also spaces), .jsonl and .ndjson, .parquet and .pq (by pyarrow).
"""

import csv
import dataclasses
import importlib
import itertools
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from vit_jax.errors import MissingDataError, UserError, first_line
from vit_jax.files import is_remote, open_to_read, parse_json
from vit_jax.text import plural

_CSV, _JSONL, _PARQUET = ('.csv', '.tsv', '.txt'), ('.jsonl', '.ndjson'), ('.parquet', '.pq')
_DELIMITERS = (',', ';', '\t', '|')
_MAX_LINE = 2**24  # characters
_SEPARATOR_LINE = re.compile(r'sep=.\r?\n')  # Excel reads and writes it above the header
_SAMPLE = 100  # objects of a JSONL file whose keys are its columns

Cell = str | tuple[str, ...]  # a tuple for a list in JSONL or Parquet; empty for null


@dataclasses.dataclass(frozen=True)
class Table:
  """A table; opening it read its header only.

  Attributes:
    path: its file.
    columns: their names; '' for those without.
    rows: reads the cells of some columns, row by row. Raises `UserError` for a damaged file.
  """

  path: str
  columns: tuple[str, ...]
  rows: Callable[[Sequence[str]], Iterator[tuple[Cell, ...]]]


def _lines(path: str) -> Iterator[str]:
  """The lines of a text file, with their ends; a byte order mark is dropped."""
  try:
    with open(open_to_read(path), encoding='utf-8-sig', newline='') as file:
      while line := file.readline(_MAX_LINE):
        if _SEPARATOR_LINE.fullmatch(line):
          continue
        if len(line) == _MAX_LINE:
          raise UserError(f'{path} has a line of more than {_MAX_LINE:,} characters.')
        yield line
  except UnicodeDecodeError:
    raise UserError(f'{path} is not UTF-8 text; save it with that encoding.') from None
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from None


def _sniff_delimiter(line: str, path: str) -> str:
  """The delimiter of a line; ' ' stands for any number of spaces, and lines of comments."""
  unquoted = re.sub(r'"[^"]*"', '', line)
  delimiter = max(_DELIMITERS, key=unquoted.count)
  is_list = path.lower().endswith('.txt') and delimiter not in unquoted and ' ' in unquoted.strip()
  return ' ' if is_list else delimiter


def _without_comments(lines: Iterable[str]) -> Iterator[str]:
  return (' '.join(line.split()) + '\n' for line in lines if not line.startswith('#'))


def _csv_rows(path: str, delimiter: str, width: int) -> Iterator[list[str]]:
  """Yields the header and the rows of `width` cells (0: any number); skips empty ones."""
  lines = _without_comments(_lines(path)) if delimiter == ' ' else _lines(path)
  reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
  try:
    for cells in filter(any, reader):
      if width in (0, len(cells)):
        yield cells
      else:
        raise UserError(
          f'{path}, line {reader.line_num:,} has {plural(len(cells), "cell")}, but the first line '
          f'has {width}; quote cells that contain {delimiter!r}.'
        )
  except csv.Error as error:
    raise UserError(f'{path}, line {reader.line_num:,} is not valid CSV ({error}).') from None


def _open_csv(path: str, names: Sequence[str]) -> Table:
  first = next((line for line in _lines(path) if line.strip()), '')
  delimiter = _sniff_delimiter(first, path)
  header = next(_csv_rows(path, delimiter, 0), [])
  if len(names) > len(header):
    raise UserError(
      f'{path} has {plural(len(header), "cell")} in its first line, too few for the columns '
      f'{", ".join(names)}.'
    )
  unnamed = [''] * (len(header) - len(names))
  columns = tuple(name.strip() for name in ([*names, *unnamed] if names else header))

  def rows(wanted: Sequence[str]) -> Iterator[tuple[str, ...]]:
    positions = [columns.index(name) for name in wanted]
    first = 0 if names else 1
    all_rows = itertools.islice(_csv_rows(path, delimiter, len(columns)), first, None)
    if len(positions) == 1:
      return ((cells[positions[0]],) for cells in all_rows)
    return map(operator.itemgetter(*positions), all_rows)

  return Table(path, columns, rows)


def _cell(value: Any) -> Cell:
  """A value of JSON or Arrow as text; raises `TypeError` for anything else."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return ''
  if isinstance(value, str):
    return value
  if isinstance(value, bool):
    return str(int(value))
  if isinstance(value, (int, float)):
    return str(int(value)) if value == value // 1 else str(value)
  if isinstance(value, list):
    return tuple(str(_cell(each)) for each in value)
  if isinstance(value, (dict, bytes)):
    raise TypeError('an object' if isinstance(value, dict) else 'bytes')
  return str(value)


def _cells(path: str, number: int, row: dict[str, Any], wanted: Sequence[str]) -> tuple[Cell, ...]:
  try:
    return tuple(_cell(row.get(name)) for name in wanted)
  except (TypeError, ValueError, OverflowError, RecursionError) as error:
    advice = 'export it as CSV, with the columns image and label'
    if path.lower().endswith(_PARQUET):
      advice = 'a table that contains the images themselves is read as hf:/path'
    raise UserError(
      f'{path}, row {number:,} has {first_line(error)} where a name or a label is needed; {advice}.'
    ) from None


def _json_objects(path: str) -> Iterator[dict[str, Any]]:
  for number, line in enumerate(_lines(path), 1):
    if not line.strip():
      continue
    try:
      row = parse_json(line)
    except ValueError:
      row = None
    if not isinstance(row, dict):
      raise UserError(f'{path}, line {number:,} is not a JSON object; one is needed in each line.')
    yield row


def _columns_rows(path: str, columns: Iterable[str], read: Callable[..., Iterable[Any]]) -> Table:
  """A table whose rows are the mappings that `read` gives for some columns."""

  def rows(wanted: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    for number, row in enumerate(read(wanted), 1):
      yield _cells(path, number, row, wanted)

  return Table(path, tuple(columns), rows)


def _check_unnamed(path: str, names: Sequence[str]) -> None:
  if names:
    raise UserError(f'{path} has names for its columns; leave out columns={",".join(names)}.')


def _open_jsonl(path: str, names: Sequence[str]) -> Table:
  _check_unnamed(path, names)
  sample = itertools.islice(_json_objects(path), _SAMPLE)
  columns = dict.fromkeys(key for row in sample for key in row)
  return _columns_rows(path, columns, lambda wanted: _json_objects(path))


def _open_parquet(path: str, names: Sequence[str]) -> Table:
  _check_unnamed(path, names)
  try:
    parquet = importlib.import_module('pyarrow.parquet')  # lazy, and without types
  except ImportError:
    advice = "run pip install 'vit_jax[parquet]'"
    raise UserError(f'{path} needs the package pyarrow; {advice}.') from None

  def read(wanted: Sequence[str] | None) -> Iterator[Any]:
    try:
      with open(open_to_read(path), 'rb') as file:
        opened = parquet.ParquetFile(file)
        if wanted is None:
          yield from opened.schema_arrow.names
          return
        for batch in opened.iter_batches(columns=list(wanted)):
          yield from batch.to_pylist()
    except OSError as error:
      raise UserError(f'{path} cannot be read: {error.strerror or first_line(error)}.') from None
    except Exception as error:  # noqa: BLE001 - Arrow raises a dozen types
      reason = first_line(error)
      raise UserError(f'{path} is not a complete Parquet file ({reason}); copy it again.') from None

  return _columns_rows(path, read(None), read)


def open_table(path: str, names: Sequence[str] = ()) -> Table:
  """Opens a table.

  Args:
    path: its file.
    names: of its columns, if the first line is no header; more columns may follow.

  Raises:
    MissingDataError: if there is no such file.
    UserError: for a file that cannot be read, or of another kind.
  """
  suffix = os.path.splitext(path)[1].lower()
  if is_remote(path):
    raise UserError(f'{path} is not a local file; table: takes one.')
  if not os.path.exists(path):
    raise MissingDataError(f'There is no table {path}; table: takes a .csv, .jsonl or .parquet.')
  for suffixes, open_kind in ((_CSV, _open_csv), (_JSONL, _open_jsonl), (_PARQUET, _open_parquet)):
    if suffix in suffixes and not os.path.isdir(path):
      table = open_kind(path, names)
      if not table.columns:
        raise UserError(f'{path} is empty; it needs a header such as image,label, and rows.')
      return table
  raise UserError(
    f'{path} is not a table ({", ".join(_CSV + _JSONL + _PARQUET)}); export it as CSV, with the '
    'columns image and label.'
  )
