"""Which columns of a table hold the images, the labels and the splits."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.data.sources.splitting import split_aliases
from vit_jax.data.sources.tables.table_file import Cell, Table
from vit_jax.errors import UserError

# Names of columns as `_normalize` gives them, the preferred ones first.
_IMAGE = (
  'image imagename imagefile imagefilename imagepath imageid imageindex imagekey img imgname '
  'imgfile imgpath imgid file filename fname filepath path photo photoid photoname picture id '
  'idcode key name'
).split()
_LABEL = (
  'label labels class classes classname category categories breed species target targets tag '
  'tags labelname categoryname labelid classid categoryid diagnosis dx findinglabels level y'
).split()
_LABEL_ENDINGS = ('label', 'class', 'category', 'species', 'breed', 'diagnosis')
_SPLIT = 'split datasplit set subset partition phase fold usage dataset'.split()
# Whose images are alike, or of one person.
_GROUP = (
  'patient patientid patientname lesionid subject subjectid person personid caseid studyid '
  'individual individualid sequence sequenceid video videoid scene sceneid'
).split()
_SAMPLE = 1000  # rows that are read to find the columns
BINARY = {'0': 0, '1': 1, '0.0': 0, '1.0': 1, 'false': 0, 'true': 1, '-1': -1, '-1.0': -1}


@dataclasses.dataclass(frozen=True)
class Columns:
  """The columns to read.

  Attributes:
    image: file names of images.
    labels: one column of labels, or one of zeros and ones for each class.
    split: names of splits; '' without such a column.
    group: what may not be divided between splits; '' without such a column.
    notes: what the user should know about the choice, a sentence each.
  """

  image: str
  labels: tuple[str, ...]
  split: str = ''
  group: str = ''
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
  normalized = {column: _normalize(column) for column in columns}
  known = [column for column, name in normalized.items() if name in names]
  if normalized.keys() & {'y]', 'Y]'} or 'x' in normalized.values():  # y is a coordinate
    known = [column for column in known if normalized[column] != 'y']
  return sorted(known, key=lambda column: names.index(_normalize(column)))


def _is_image(cell: Cell) -> bool:
  return isinstance(cell, str) and cell.strip().lower().endswith(SUFFIXES)


def _find_image(table: Table, sample: Mapping[str, Sequence[Cell]]) -> str:
  if any(map(_is_image, table.columns)):
    header = ','.join(table.columns)[:80]
    if len(table.columns) == 1:
      raise UserError(
        f'{table.path} lists images without labels; if their folders or names have the class, use '
        'folder:/path instead.'
      )
    position = list(map(_is_image, table.columns)).index(True)
    names = 'image,label' if position == 0 else ',' * (position - 1) + 'label,image'
    raise UserError(
      f'{table.path} has no header, its first line is {header!r}; name its columns as '
      f'?columns={names}.'
    )
  files = [column for column, cells in sample.items() if cells and all(map(_is_image, cells))]
  candidates = _by_name(files, _IMAGE) + files + _by_name(sample, _IMAGE)
  if not files and any(re.fullmatch(r'pixels?\d*', _normalize(name)) for name in sample):
    raise UserError(
      f'{table.path} has the pixels of images, not their files; save each as a file, such as '
      '1.png, and write a table with the columns image and label.'
    )
  if not candidates:
    columns = ', '.join(table.columns)[:200]
    raise UserError(
      f'{table.path} has no column of image files among {columns}; name it as ?image=…, or, if '
      'this line is no header, name the columns in their order as ?columns=image,label.'
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


def _names_the_numbers(names: Sequence[Cell], numbers: Sequence[Cell]) -> bool:
  """Whether one column has the names of the classes whose numbers are in the other."""
  are_numbers = all(str(cell).strip().isdecimal() for cell in numbers)
  are_names = not any(str(cell).strip().isdecimal() for cell in names)
  pairs = len(set(zip(names, numbers, strict=True)))
  return are_numbers and are_names and pairs == len(set(numbers)) == len(set(names)) > 1


def _find_labels(
  table: Table, others: Sequence[str], sample: Mapping[str, Sequence[Cell]]
) -> tuple[tuple[str, ...], str]:
  """Returns the columns of labels among `others`, and a note or ''."""
  endings = [name for name in others if _normalize(name).endswith(_LABEL_ENDINGS)]
  if known := _by_name(others, _LABEL) or endings:
    numbers = sample[known[0]]
    known = sorted(known, key=lambda name: not _names_the_numbers(sample[name], numbers))
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
    options: 'image', 'label', 'split' and 'group', if the user names these columns; several of
      zeros and ones are separated by commas. A group with '(' may be a regular expression instead.

  Raises:
    UserError: when a column cannot be found; names the option that would help.
  """
  named_columns = [name for name in table.columns if not _is_index(name)]
  if repeated := {name for name in named_columns if named_columns.count(name) > 1}:
    raise UserError(
      f'{table.path} has two columns called {min(repeated)!r}; rename one of them, or, if its '
      'first line is no header, name the columns in their order as ?columns=image,label.'
    )
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
  group = options.get('group', '')
  is_pattern = '(' in group and group not in table.columns
  group = _named(table, 'group', group) if group and not is_pattern else ''
  taken = (image, *labels, *filter(None, [group]))
  split, unused = _find_split(table, options.get('split', ''), taken, sample)
  notes = [
    f'the column {name} of {table.path} is not used: its values, such as {sample[name][0]}, are '
    'not train, val or test'
    for name in unused
    if sample[name]
  ]
  if not group:
    notes += [
      f'images of one {name} may be on both sides of what is held out; ?group={name} prevents it'
      for name in _by_name(sample, _GROUP)
      if not split and name not in taken and 1 < len(set(sample[name])) < len(sample[name])
    ]
  if not labels:
    others = [name for name in named_columns if name not in (image, split, group)]
    others = [name for name in others if name not in unused] or others
    labels, note = _find_labels(table, others, sample)
    notes += [note] if note else []
  return Columns(image, labels, split, group, tuple(notes))
