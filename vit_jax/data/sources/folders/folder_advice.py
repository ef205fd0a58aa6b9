"""What a user may type instead of a folder whose images have no class folders."""

import os
import re
from collections.abc import Sequence

from vit_jax.data.sources.tables import table
from vit_jax.data.sources.tables.table_columns import split_in_name
from vit_jax.errors import UserError
from vit_jax.text import printable

# Where the class may be in the names of files, and how a user writes it.
_NAMES = (
  r'(\w+)\.\d+',  # cat.1.jpg
  r'(.+)_\d+',
  r'(.+)-\d+',
  r'(.+?) ?\(\d+\)',  # cat (1).jpg
  r'([^\d.]+)\d',  # cat1.jpg
  r'\d+[_-]([^\d.]+)\.',  # 1_cat.jpg
)
TABLES = ('.csv', '.tsv', '.jsonl', '.parquet')
LISTS = ('.txt',)  # of names and labels, without a header
_MAX_TRIES = 5  # of tables


def with_pattern(spec: str, pattern: str) -> str:
  """A source with another ?pattern=, quoted for the shell."""
  return f"'{spec}{'&' if '?' in spec else '?'}pattern={pattern}'"


def _is_of_test(file: str) -> tuple[bool, ...]:
  """Whether a table is called after a split for testing, and whether its folder is."""
  folder, name = os.path.splitext(file)[0].split(os.sep)[-2:]
  return tuple(split_in_name(each) in ('test', 'val') for each in (name, folder))


def find_table(
  tables: Sequence[str],
  images: str,
  suffixes: tuple[str, ...] = TABLES,
  class_names: Sequence[str] = (),
) -> str:
  """Returns the source of the first table that has labels of images, or ''.

  Args:
    tables: paths of files.
    images: the folder of the images.
    suffixes: of the tables to try.
    class_names: that it should have; empty: any.
  """
  files = [
    file
    for file in tables
    if file.lower().endswith(suffixes) and 'submission' not in os.path.basename(file).lower()
  ]
  for file in sorted(files, key=_is_of_test)[:_MAX_TRIES]:
    root = os.path.relpath(images, os.path.dirname(file))
    columns = ['columns=image,label'] if file.lower().endswith(LISTS) else []
    for options in (columns, [*columns, f'root={root}']):
      source = '?'.join(filter(None, (file, '&'.join(options))))
      try:
        found = table.open_split(source, 'all')
      except UserError:
        continue
      fits = not class_names or found.class_names == tuple(class_names)
      if fits and found.describe(0).startswith(os.path.join(images, '')):
        return f'table:{source}'
  return ''


def _find_pattern(images: Sequence[str]) -> str:
  """The regular expression that finds the class in all names, of at least two images; or ''."""
  names = [os.path.basename(file) for file in images]
  for pattern in _NAMES:
    regex = re.compile(pattern)
    matches = [match[1] for name in names if (match := regex.search(name))]
    classes = set(matches)
    are_words = all(re.search(r'[^\W\d_]', name) for name in classes)
    if len(matches) == len(names) >= 2 * len(classes) > 2 and are_words:
      return pattern
  return ''


def _may_have_classes(images: Sequence[str]) -> bool:
  """Whether a part of the names, such as the '0' of 25_0_2017.jpg, is that of several images."""
  parts = [re.split(r'[\W_]+', os.path.basename(file)) for file in images]
  return any(1 < len(set(column)) < len(images) for column in zip(*parts, strict=False))


def suggest_classes(spec: str, folder: str, tables: Sequence[str], images: Sequence[str]) -> str:
  """Returns the smallest change that gives images without class folders a class.

  Args:
    spec: the source whose files may have the class in their names.
    folder: of the images.
    tables: paths of the files that may have labels.
    images: relative to the folder.
  """
  source = find_table(tables, folder)
  pattern = '' if source else _find_pattern(images)
  if pattern:
    example = printable(os.path.basename(images[0]))
    return f'if names such as {example} have their class, use {with_pattern(spec, pattern)}'
  if source := source or find_table(tables, folder, LISTS):
    file = os.path.basename(source.partition('?')[0])
    return f"if {file} has their labels, use '{source}'"
  advice = (
    'move the images of each class into a sub-folder of its name, or write a table with the '
    'columns image,label and use table:/path/labels.csv'
  )
  if _may_have_classes(images):
    example, pattern = printable(os.path.basename(images[0])), with_pattern(spec, r'^\d+_(\d+)_')
    advice += f'; or name the class in names such as {example} by a pattern, as {pattern}'
  return advice
