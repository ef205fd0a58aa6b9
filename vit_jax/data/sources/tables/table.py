"""table:/path/labels.csv: images whose labels are in a table: CSV, TSV, JSONL or Parquet.

  table:/path/labels.csv                         columns are found by their names and values
  table:/path/labels.csv?image=file&label=breed  or named

  image       column of file names, with or without ending, relative to `root`
  label       column of labels: names or numbers; or columns of zeros (or blanks) and ones, 'a,b,c'
  sep         what separates several labels in one cell; '|' and ';' do by themselves
  split       column of split names; without one, an example in five is held out as test
  columns     names of the columns, 'image,label', of a table without a header
  group       column, or regular expression for file names: images of one group are on one side of
              the hold-out
  fold        '2/5': the second of five parts is held out
  root        folder of the images, relative to that of the table (the default)
  incomplete  'skip' leaves out rows without an image file or label

Values are percent-encoded where they contain '&' or '%': sep=%26. Images that are not where
their names say are looked for in the folders of the root: train/, images/, …; if they all are in
folders such as train/ and test/, these are the splits.
"""

import array
import dataclasses
import functools
import os
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data.sources.source import Example, Source, fingerprint
from vit_jax.data.sources.splitting.split_aliases import choose_split, split_of
from vit_jax.data.sources.tables.table_columns import Columns, choose_columns
from vit_jax.data.sources.tables.table_file import Table, open_table
from vit_jax.data.sources.tables.table_folders import folder_stamp
from vit_jax.data.sources.tables.table_images import find_images
from vit_jax.data.sources.tables.table_labels import Labels, read_labels
from vit_jax.data.sources.tables.table_rows import drop_duplicates, keep_complete
from vit_jax.data.sources.tables.table_splits import (
  SPLITS,
  hold_out,
  named_splits,
  splits_by_folders,
)
from vit_jax.errors import BadExampleError, UserError
from vit_jax.files import read_bytes

_OPTIONS = ('image', 'label', 'sep', 'split', 'columns', 'group', 'fold', 'root', 'incomplete')


class _Texts(Sequence[str]):
  """A list of strings in one array of bytes, a fifth of the memory."""

  def __init__(self, texts: Sequence[str]):
    encoded = [text.encode('utf-8', 'surrogateescape') for text in texts]
    self._bytes, self._ends = b''.join(encoded), np.cumsum([0, *map(len, encoded)])

  def __len__(self) -> int:
    return len(self._ends) - 1

  def __getitem__(self, i: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
    return self._bytes[self._ends[i] : self._ends[i + 1]].decode('utf-8', 'surrogateescape')


@dataclasses.dataclass(frozen=True)
class _Examples:
  """The N examples of all splits.

  Attributes:
    root: the folder that files are relative to.
    folders: the folders that were listed, with their `folder_stamp`.
    files: of the images.
    labels: of the images.
    splits: (N,) int8: indices into `SPLITS`.
    fingerprint: of files, labels and splits.
    notes: what the user should know, a sentence each.
  """

  root: str
  folders: dict[str, int]
  files: _Texts
  labels: Labels
  splits: np.ndarray
  fingerprint: str
  notes: tuple[str, ...]


def _parse(path: str) -> tuple[str, dict[str, str]]:
  """Splits 'path?key=value&…' into the path and the options."""
  file, _, query = path.partition('?')
  if os.path.exists(os.path.expanduser(path)):
    file, query = path, ''
  options = {}
  for term in filter(None, query.split('&')):
    key, _, value = term.partition('=')
    if key not in _OPTIONS or not value or (key == 'incomplete' and value != 'skip'):
      raise UserError(
        f'table:{path} has the unknown option {term!r}; valid options are {", ".join(_OPTIONS)}, '
        'as in table:/x/labels.csv?image=file&label=breed&sep=|&incomplete=skip.'
      )
    options[key] = urllib.parse.unquote(value)
  return os.path.expanduser(file), options


class _Column:
  """The cells of a column, or of several, each different one stored once."""

  def __init__(self):
    self.cells: dict[Any, int] = {}
    self._codes = array.array('i')

  def append(self, cell: Any) -> None:
    self._codes.append(self.cells.setdefault(cell, len(self.cells)))

  @property
  def codes(self) -> np.ndarray:
    """(N,) int32: which of the different cells each row has."""
    return np.array(self._codes, np.int32)


def _collect(table: Table, columns: Columns) -> tuple[list[str], _Column, _Column, _Column]:
  """Reads names, labels, splits and groups; the last two are empty without such a column."""
  names: list[str] = []
  labels, splits, groups = _Column(), _Column(), _Column()
  width = 1 + len(columns.labels)
  others = [column for column in (columns.split, columns.group) if column]
  for row in table.rows((columns.image, *columns.labels, *others)):
    names.append(str(row[0]).strip())
    labels.append(row[1:width])
    if columns.split:
      splits.append(str(row[width]))
    if columns.group:
      groups.append(str(row[-1]).strip())
  return names, labels, splits, groups


@functools.lru_cache(maxsize=2)
def _read(file: str, options: tuple[tuple[str, str], ...], stamp: tuple[int, int]) -> _Examples:
  """Reads a table; `stamp` (size and time of the file) tells that it is still the same."""
  del stamp
  named = dict(options)
  table = open_table(file, named['columns'].split(',') if 'columns' in named else ())
  columns = choose_columns(table, named)
  names, label_cells, split_cells, group_cells = _collect(table, columns)
  if not names:
    raise UserError(f'{file} has a header but no rows.')
  separator = named.get('sep', '')
  skip = 'incomplete' in named
  labels = read_labels(
    list(label_cells.cells), label_cells.codes, columns.labels, separator, file, skip
  )
  root = os.path.join(os.path.dirname(file), os.path.expanduser(named.get('root', '')))
  root = os.path.normpath(root)
  found, folders, notes = find_images(root, names, file)
  keep, incomplete = keep_complete(found, names, labels, root, file, skip)
  rows = np.flatnonzero(keep)
  if columns.split:
    splits = named_splits(split_cells.cells, split_cells.codes, columns.split, file)
  elif (splits := splits_by_folders(found)) is not None:
    notes.append(f'splits of {file} are the folders of its images')
  else:
    splits = np.zeros(len(names), np.int8)
  files = [found[row] or '' for row in rows.tolist()]
  first, more = drop_duplicates(files, labels.take(rows), np.array(SPLITS)[splits[rows]], file)
  files, rows = [files[i] for i in first.tolist()], rows[first]
  labels, splits = labels.take(rows), splits[rows]
  if not splits.any():  # all are train
    groups = list(group_cells.cells)
    groups = [groups[code] for code in group_cells.codes[rows].tolist()] if groups else []
    splits = hold_out([names[row] for row in rows.tolist()], labels, groups, named, file)
  elif option := next((option for option in ('group', 'fold') if option in named), ''):
    raise UserError(
      f'{file} has the splits of its images in {columns.split or "their folders"}, so nothing is '
      f'held out; leave out {option}=.'
    )
  listing = (*labels.class_names, *files, repr(labels.classes), labels.codes.tobytes().hex())
  return _Examples(
    root,
    folders,
    _Texts(files),
    labels,
    splits,
    fingerprint('\0'.join((*listing, splits.tobytes().hex()))),
    (*columns.notes, *labels.notes, *notes, *incomplete, *more),
  )


def _open(path: str) -> _Examples:
  """Reads a table, unless it and the folders of its images are as they were the last time."""
  file, options = _parse(path)
  try:
    status = os.stat(file)
    stamp = status.st_size, status.st_mtime_ns
  except OSError:
    stamp = 0, 0  # the error comes when the file is opened
  examples = _read(file, tuple(options.items()), stamp)
  if any(folder_stamp(folder) != time for folder, time in examples.folders.items()):
    _read.cache_clear()
    examples = _read(file, tuple(options.items()), stamp)
  return examples


def _names(examples: _Examples) -> tuple[str, ...]:
  """The splits that have examples."""
  return tuple(name for i, name in enumerate(SPLITS) if (examples.splits == i).any())


def split_names(path: str) -> tuple[str, ...]:
  """Lists the splits: those of the column of splits, else train and a held-out test split."""
  names = _names(_open(path))
  return names if names != ('train',) else ('train', 'test')


def _rows(examples: _Examples, split: str, spec: str) -> np.ndarray:
  """The indices of the examples of a split."""
  if split == 'all':
    return np.arange(len(examples.splits))
  names = _names(examples)
  if name := choose_split(names, split):
    return np.flatnonzero(examples.splits == SPLITS.index(name))
  if len(names) == 1 and split_of(split):
    raise UserError(
      f'{spec} has too few images: none is in its split {split!r}; add some, or name '
      'others to test on as --config.data.test.source=….'
    )
  raise UserError(f'{spec} has the splits {", ".join(names)} and all, not {split!r}.')


def open_split(path: str, split: str) -> Source:
  """Opens a split of the images in a table; `split` is train, val, test or all."""
  examples = _open(path)
  spec = f'table:{path}'
  rows = _rows(examples, split, spec)
  labels, files, root = examples.labels, examples.files, examples.root

  def location(i: int) -> str:
    return os.path.join(root, files[rows[i]])

  def read(i: int) -> Example:
    try:
      return read_bytes(location(i)), labels.read(rows[i])
    except OSError as error:
      raise BadExampleError(f'{location(i)} cannot be read: {error.strerror or error}.') from None

  return Source(
    name=f'{spec} ({split})',
    size=len(rows),
    read=read,
    class_names=labels.class_names,
    multi_label=labels.multi_label,
    location=location,
    fingerprint=fingerprint(f'{examples.fingerprint} {split}'),
    files=lambda: [location(i) for i in range(len(rows))],
    labels=None if labels.multi_label else lambda: labels.single(rows),
    notes=examples.notes,
  )
