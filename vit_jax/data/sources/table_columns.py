"""Which columns of a table hold the images, the labels and the splits."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.data.sources import split_aliases
from vit_jax.data.sources.table_file import Cell, Table
from vit_jax.errors import UserError

# Names of columns as `_normalize` gives them, the preferred ones first.
_IMAGE = (
  'image imagename imagefile imagefilename imagepath imageid imageindex imagekey img imgname '
  'imgfile imgpath imgid file filename fname filepath path photo photoid photoname picture id '
  'idcode key name'
).split()
_LABEL = (
  'label labels class classes classname category categories breed species target targets tag '
  'tags labelname categoryname labelid classid categoryid y diagnosis dx findinglabels level'
).split()
_LABEL_ENDINGS = ('label', 'class', 'category', 'species', 'breed', 'diagnosis')
_SPLIT = 'split datasplit set subset partition phase fold usage dataset'.split()
_SAMPLE = 1000  # rows that are read to find the columns
BINARY = {'0': 0, '1': 1, '0.0': 0, '1.0': 1, 'false': 0, 'true': 1, '-1': -1, '-1.0': -1}


@dataclasses.dataclass(frozen=True)
class Columns:
  """The columns to read.

  Attributes:
    image: file names of images.
    labels: one column of labels, or one of zeros and ones for each class.
    split: names of splits; '' without such a column.
    notes: what the user should know about the choice, a sentence each.
  """

  image: str
  labels: tuple[str, ...]
  split: str = ''
  notes: tuple[str, ...] = ()


def split_of(text: Cell) -> str:
  """Returns train, val or test if a text is one of their names in any case, else ''."""
  return split_aliases.split_of(str(text).strip()) or ''


def split_in_name(text: str) -> str:
  """The first split that is a word of a file name, such as train in 'trainLabels', or ''."""
  words = re.findall(r'[A-Z]?[a-z]+|[A-Z]+', text)
  return next(filter(None, map(split_of, words)), '')


def _normalize(column: str) -> str:
  return re.sub(r'[^a-z0-9]', '', column.lower())


def _is_index(column: str) -> bool:
  """Whether it is the numbering of the rows that pandas writes."""
  return not column or column.startswith('Unnamed:')


def _named(table: Table, role: str, name: str) -> str:
  """The column that the user names; an equal name in another case will do."""
  close = [column for column in table.columns if column.lower() == name.lower()]
  if name in table.columns:
    return name
  if len(close) != 1:
    columns = ', '.join(table.columns)
    raise UserError(f'{table.path} has no column {name!r} for ?{role}; its columns are {columns}.')
  return close[0]


def _by_name(columns: Iterable[str], names: Sequence[str]) -> list[str]:
  """The columns with one of these names, the preferred ones first."""
  known = [column for column in columns if _normalize(column) in names]
  return sorted(known, key=lambda column: names.index(_normalize(column)))


def _is_image(cell: Cell) -> bool:
  return isinstance(cell, str) and cell.strip().lower().endswith(SUFFIXES)


def _find_image(table: Table, sample: Mapping[str, Sequence[Cell]]) -> str:
  if any(map(_is_image, table.columns)):
    header = ','.join(table.columns)[:80]
    raise UserError(
      f'{table.path} has no header, its first line is {header!r}; put a line such as image,label '
      'above it.'
    )
  files = [column for column, cells in sample.items() if cells and all(map(_is_image, cells))]
  candidates = _by_name(files, _IMAGE) + files + _by_name(sample, _IMAGE)
  if not candidates:
    columns = ', '.join(table.columns)
    raise UserError(
      f'{table.path} has no column of images among {columns}; name it as ?image=…, or, if this is '
      'no header, put a line such as image,label above it.'
    )
  return candidates[0]


def _find_split(
  table: Table, name: str, taken: Sequence[str], sample: Mapping[str, Sequence[Cell]]
) -> tuple[str, list[str]]:
  """Returns the column of splits, or '', and others that are called so but hold none."""
  if name:
    return _named(table, 'split', name), []
  unused = []
  for column in _by_name(sample, _SPLIT):
    if column in taken:
      continue
    if any(map(split_of, sample[column])):
      return column, unused
    unused.append(column)
  return '', unused


def _is_binary(cells: Sequence[Cell]) -> bool:
  return {str(cell).strip().lower() for cell in cells} <= BINARY.keys()


def _find_labels(
  table: Table, others: Sequence[str], sample: Mapping[str, Sequence[Cell]]
) -> tuple[tuple[str, ...], str]:
  """Returns the columns of labels among `others`, and a note or ''."""
  endings = [name for name in others if _normalize(name).endswith(_LABEL_ENDINGS)]
  if known := _by_name(others, _LABEL) or endings:
    unused = [column for column in known[1:] if sample[column] != sample[known[0]]]
    note = f'labels of {table.path} are those in its column {known[0]}, not {", ".join(unused)}'
    return (known[0],), note if unused else ''
  if len(others) == 1 or (others and all(_is_binary(sample[column]) for column in others)):
    return tuple(others), ''
  columns = ', '.join(table.columns)[:200]
  if not others or len({cell for column in others for cell in sample[column]}) == 1:
    raise UserError(
      f'{table.path} has images but no labels (columns: {columns}), as the template of a '
      'submission; name a table with labels.'
    )
  raise UserError(
    f'{table.path} has no column called label, class or category among {columns}; name it as '
    '?label=…, or columns of zeros and ones as ?label=a,b,c.'
  )


def choose_columns(table: Table, options: Mapping[str, str]) -> Columns:
  """Chooses the columns of a table by their names and values.

  Args:
    table: the table.
    options: 'image', 'label' and 'split', if the user names these columns; several of zeros and
      ones are separated by commas.

  Raises:
    UserError: when a column cannot be found; names the option that would help.
  """
  named_columns = [name for name in table.columns if not _is_index(name)]
  if repeated := {name for name in named_columns if named_columns.count(name) > 1}:
    raise UserError(f'{table.path} has two columns called {min(repeated)!r}; rename one of them.')
  rows = list(itertools.islice(table.rows(named_columns), _SAMPLE)) if named_columns else []
  sample = {name: [row[i] for row in rows] for i, name in enumerate(named_columns)}
  label = options.get('label', '')
  named = [label] if label in table.columns else label.split(',')
  labels = tuple(_named(table, 'label', name.strip()) for name in named if name)
  free = {name: cells for name, cells in sample.items() if name not in labels}
  if 'image' in options:
    image = _named(table, 'image', options['image'])
  else:
    image = _find_image(table, free)
  split, unused = _find_split(table, options.get('split', ''), (image, *labels), sample)
  notes = [
    f'the column {name} of {table.path} is not used: its values, such as {sample[name][0]}, are '
    'not train, val or test'
    for name in unused
    if sample[name]
  ]
  if not labels:
    others = [name for name in named_columns if name not in (image, split)]
    others = [name for name in others if name not in unused] or others
    labels, note = _find_labels(table, others, sample)
    notes += [note] if note else []
  return Columns(image, labels, split, tuple(notes))
