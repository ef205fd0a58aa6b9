"""Which split each row of a table is in: by a column, or a part is held out."""

from collections.abc import Mapping, Sequence

import numpy as np

from vit_jax.data.sources.splitting import holdout
from vit_jax.data.sources.tables.table_columns import split_of
from vit_jax.data.sources.tables.table_labels import Labels
from vit_jax.errors import UserError

SPLITS = ('train', 'val', 'test')
_TRAIN, _TEST = SPLITS.index('train'), SPLITS.index('test')


def named_splits(cells: Mapping[str, int], codes: np.ndarray, column: str, path: str) -> np.ndarray:
  """The splits of rows: (N,) int8 indices into `SPLITS`.

  Args:
    cells: the different cells of the column of splits -> their codes, 0, 1, ….
    codes: (N,) which of these each row has.
    column: the name of the column.
    path: of the table.

  Raises:
    UserError: for a cell that is not the name of a split.
  """
  for cell in cells:
    if not split_of(cell):
      raise UserError(
        f'{path} has {cell!r} in its column of splits, {column!r}; train, val or test is needed.'
      )
  return np.array([SPLITS.index(split_of(cell)) for cell in cells], np.int8)[codes]


def splits_by_folders(files: Sequence[str | None]) -> np.ndarray | None:
  """The splits of files in train/, test/, …: (N,) int8; None unless these have all files."""
  folders = ['train' if file is None else file.partition('/')[0] for file in files]
  splits = {folder: split_of(folder) for folder in set(folders)}
  if not all(splits.values()) or not {'train'} < set(splits.values()):
    return None
  return np.array([SPLITS.index(splits[folder]) for folder in folders], np.int8)


def hold_out(
  names: Sequence[str], labels: Labels, groups: Sequence[str], options: Mapping[str, str], path: str
) -> np.ndarray:
  """The splits of rows of which a part is held out: (N,) int8, train or test.

  Args:
    names: N, as the table has them.
    labels: of these rows.
    groups: N cells of the column of groups; empty without one.
    options: 'group', a column or else a regular expression that the names match; and 'fold'.
    path: of the table.

  Raises:
    UserError: when all rows are of one group, or for a wrong option.
  """
  group = options.get('group', '')
  if group and not groups:
    groups = holdout.find_groups(group, names)
  elif groups:
    groups = [cell or f'{group}: {name}' for cell, name in zip(groups, names, strict=True)]
    if len(set(groups)) < 2:
      raise UserError(f'{path} has one value in its column {group!r}; nothing can be held out.')
  fold = holdout.parse_fold(options['fold']) if 'fold' in options else None
  classes = [labels.classes[code] or () for code in labels.codes.tolist()]
  mask = holdout.held_out(names, classes, groups or None, fold)
  return np.where(mask, _TEST, _TRAIN).astype(np.int8)
