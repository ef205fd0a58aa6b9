"""table:/path/labels.csv: images whose labels are in a table: CSV, TSV, JSONL or Parquet.

  table:/path/labels.csv                         columns are found by their names and values
  table:/path/labels.csv?image=file&label=breed  or named

  image       column of file names, with or without ending, relative to `root`
  label       column of labels: names or numbers; or columns of zeros and ones, 'a,b,c', one a class
  sep         what separates several labels in one cell; '|' and ';' do by themselves
  split       column of split names; without one, an example in five is held out as test
  root        folder of the images, relative to that of the table (the default)
  incomplete  'skip' leaves out rows without an image file or label

Values are percent-encoded where they contain '&', '+' or '%': sep=%26. Images that are not where
their names say are looked for in the folders of the root: train/, images/, …
"""

import array
import dataclasses
import functools
import itertools
import os
import urllib.parse
from collections.abc import Mapping, Sequence

import numpy as np

from vit_jax.data.sources.source import Example, Source, fingerprint, is_held_out
from vit_jax.data.sources.split_aliases import choose_split
from vit_jax.data.sources.table_columns import choose_columns, split_of
from vit_jax.data.sources.table_file import open_table
from vit_jax.data.sources.table_images import find_images, folder_stamp
from vit_jax.data.sources.table_labels import Cells, Labels, read_labels
from vit_jax.data.sources.table_rows import drop_duplicates, keep_complete
from vit_jax.errors import BadExampleError, UserError
from vit_jax.files import read_bytes

_OPTIONS = ('image', 'label', 'sep', 'split', 'root', 'incomplete')
_SPLITS = ('train', 'val', 'test')


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
    splits: (N,) int8: indices into `_SPLITS`.
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


def _hold_out(names: Sequence[str]) -> np.ndarray:
  """(N,) int8: test for one name in five, train for the others; the same on every machine."""
  held_out = np.fromiter(map(is_held_out, names), bool, len(names))
  return np.where(held_out, _SPLITS.index('test'), _SPLITS.index('train')).astype(np.int8)


def _named_splits(
  cells: Mapping[str, int], codes: np.ndarray, column: str, path: str
) -> np.ndarray:
  """(N,) int8: the splits of rows whose cells are `codes` into the different `cells`."""
  for cell in cells:
    if not split_of(cell):
      raise UserError(
        f'{path} has {cell!r} in its column of splits, {column!r}; train, val or test is needed.'
      )
  return np.array([_SPLITS.index(split_of(cell)) for cell in cells], np.int8)[codes]


@functools.lru_cache(maxsize=2)
def _read(file: str, options: tuple[tuple[str, str], ...], stamp: tuple[int, int]) -> _Examples:
  """Reads a table; `stamp` (size and time of the file) tells that it is still the same."""
  del stamp
  named = dict(options)
  table = open_table(file)
  columns = choose_columns(table, named)
  names: list[str] = []
  label_cells: dict[Cells, int] = {}
  split_cells: dict[str, int] = {}
  label_codes, split_codes = array.array('i'), array.array('i')
  width = len(columns.labels)
  for row in table.rows((columns.image, *columns.labels, *filter(None, [columns.split]))):
    names.append(str(row[0]).strip())
    label_codes.append(label_cells.setdefault(row[1 : 1 + width], len(label_cells)))
    if columns.split:
      split_codes.append(split_cells.setdefault(str(row[-1]), len(split_cells)))
  if not names:
    raise UserError(f'{file} has a header but no rows.')
  codes = np.array(label_codes, np.int32)
  labels = read_labels(list(label_cells), codes, columns.labels, named.get('sep', ''), file)
  root = os.path.join(os.path.dirname(file), os.path.expanduser(named.get('root', '')))
  root = os.path.normpath(root)
  found, folders = find_images(root, names, file)
  keep, notes = keep_complete(found, names, labels, root, file, 'incomplete' in named)
  rows = np.flatnonzero(keep)
  files = [path for path in itertools.compress(found, keep) if path is not None]
  labels = dataclasses.replace(labels, codes=codes[rows])
  splits = np.zeros(len(rows), np.int8)
  if columns.split:
    splits = _named_splits(split_cells, np.array(split_codes), columns.split, file)[rows]
  if not splits.any():  # all are train
    splits = _hold_out([names[row] for row in rows])
  first, more = drop_duplicates(files, labels, np.array(_SPLITS)[splits], file)
  files, splits = [files[i] for i in first], splits[first]
  labels = dataclasses.replace(labels, codes=labels.codes[first])
  listing = (*labels.class_names, *files, repr(labels.classes), labels.codes.tobytes().hex())
  return _Examples(
    root,
    folders,
    _Texts(files),
    labels,
    splits,
    fingerprint('\0'.join((*listing, splits.tobytes().hex()))),
    (*columns.notes, *labels.notes, *notes, *more),
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
  return tuple(name for i, name in enumerate(_SPLITS) if (examples.splits == i).any())


def split_names(path: str) -> tuple[str, ...]:
  """Lists the splits: those of the column of splits, else train and a held-out test split."""
  names = _names(_open(path))
  return names if names != ('train',) else ('train', 'test')


def _rows(examples: _Examples, split: str, spec: str) -> np.ndarray:
  """The indices of the examples of a split."""
  split = 'val' if split == 'validation' else split
  names = _names(examples)
  if split not in (*_SPLITS, 'all'):
    raise UserError(f'{spec} has the splits {", ".join(names)} and all, not {split!r}.')
  if split == 'all':
    return np.arange(len(examples.splits))
  if name := choose_split(names, split):
    return np.flatnonzero(examples.splits == _SPLITS.index(name))
  raise UserError(f'{spec} has the splits {", ".join(names)}, not {split!r}.')


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
