"""Which rows of a table are examples: those with an image and a label, each image once."""

from collections.abc import Sequence

import numpy as np

from vit_jax.data.sources.tables.table_images import search_folder
from vit_jax.data.sources.tables.table_labels import Labels
from vit_jax.errors import UserError
from vit_jax.text import plural


def keep_complete(
  files: Sequence[str | None],
  names: Sequence[str],
  labels: Labels,
  root: str,
  path: str,
  skip: bool,
) -> tuple[np.ndarray, list[str]]:
  """Returns (N,) bool: rows with an image file and a label, and notes; the others are an error."""
  has_file = np.array([file is not None for file in files], bool)
  if not has_file.any() or (has_file.mean() < 0.5 and not skip):
    name = names[int(has_file.argmin())]
    folder = search_folder(root, names)
    advice = f'name their folder as ?root={folder or "…"}'
    if not folder:
      advice += ', or their column as ?image=…'
    raise UserError(
      f'{(~has_file).sum():,} of {plural(len(files), "image")} of {path}, such as {name!r}, are '
      f'missing in {root} and its folders; {advice}.'
    )
  notes = []
  advice = 'rows without them are skipped' if skip else 'leave out such rows with ?incomplete=skip'
  for bad, what in ((~has_file, f'no image file in {root}'), (labels.is_missing, 'no label')):
    if count := int(bad.sum()):
      example = names[int(bad.argmax())]
      notes.append(
        f'{path} has {plural(count, "row")} of {len(files):,} with {what}, such as {example!r}'
      )
      if not skip:
        raise UserError(f'{notes[-1]}; {advice}.')
  return has_file & ~labels.is_missing, [f'{note}; {advice}' for note in notes]


def drop_duplicates(
  files: Sequence[str], labels: Labels, splits: np.ndarray, path: str
) -> tuple[np.ndarray, list[str]]:
  """Returns the first row of each image, and notes; rows that contradict it are an error."""
  if len(set(files)) == len(files):
    return np.arange(len(files)), []
  first: dict[str, int] = {}
  repeated = []
  for row, file in enumerate(files):
    earlier = first.setdefault(file, row)
    if earlier == row:
      continue
    repeated.append(row)
    values = [labels.classes[labels.codes[i]] for i in (earlier, row)]
    if values[0] != values[1]:
      texts = [' and '.join(labels.class_names[k] for k in each or ()) or 'none' for each in values]
      raise UserError(
        f'{path} has two rows for {file} with different labels, {texts[0]} and {texts[1]}; keep '
        'one of them, or write several labels into one row, as in a|b.'
      )
    if splits[earlier] != splits[row]:
      raise UserError(
        f'{path} has {file} in two splits, {splits[earlier]} and {splits[row]}; keep one.'
      )
  count, example = plural(len(repeated), 'row'), files[repeated[0]]
  note = f'{path} repeats {count} of the same image and label, such as {example}; each counts once'
  return np.delete(np.arange(len(files)), repeated), [note]
