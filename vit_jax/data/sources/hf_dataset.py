"""hf:name: Hugging Face data sets, by their name on the hub or from files on disk.

  hf:cifar10, hf:user/name           downloaded by `datasets` on first use, then cached
  hf:/path                           the output of save_to_disk; a folder of .arrow files; a folder
                                     of .parquet files such as data/train-00000-of-00002.parquet,
                                     or a clone of a data set; a single file
  hf:name?config=…&revision=…&image=…&label=…

`config` and `revision` are the hub's. `image` and `label` name columns. The defaults are 'image' or
'img', or the only column of images, and the first of 'label', 'labels' and 'fine_label'.

Arrow files are memory-mapped in place. Parquet has no random access, so `datasets` first converts
it to Arrow files in its own cache (`HF_HOME`).
"""

import dataclasses
import importlib
import os
import pathlib
from typing import Any

import numpy as np

from vit_jax.data.sources.hf_dataset_files import load_splits
from vit_jax.data.sources.source import MAX_CLASSES, Example, Source, encode_label, fingerprint
from vit_jax.data.sources.splitting.split_aliases import choose_split
from vit_jax.data.sources.splitting.splits import concatenate
from vit_jax.errors import BadExampleError, UserError, first_line
from vit_jax.files import read_bytes
from vit_jax.text import plural

_DEFAULT_COLUMNS = {'image': ('image', 'img'), 'label': ('label', 'labels', 'fine_label')}


@dataclasses.dataclass(frozen=True)
class _Labels:
  """The column of labels, and how to read it."""

  column: str
  class_names: tuple[str, ...]
  indices: dict[str, int] | None  # class name -> label; None for a column of integers
  multi_label: bool

  def read(self, value: Any) -> np.int32 | np.ndarray:
    """Converts the value of a row to a label; raises `ValueError` for what is not one."""
    values = value if self.multi_label else [value]
    if self.indices is not None:
      values = [self.indices[value] for value in values]
    return encode_label(values, len(self.class_names), self.multi_label)


def _choose_column(features: Any, role: str, options: dict[str, str], spec: str) -> str:
  """Returns the name of the column of images or labels; `role` is 'image' or 'label'."""
  wanted = (options[role],) if role in options else _DEFAULT_COLUMNS[role]
  columns = [name for name in wanted if name in features]
  if not columns and role == 'image' and role not in options:
    images = [name for name in features if type(features[name]).__name__ == 'Image']
    columns = images if len(images) == 1 else []
  if not columns:
    raise UserError(
      f'{spec} has the columns {", ".join(features)}, none is {" or ".join(map(repr, wanted))}; '
      f'name the column as hf:name?{role}=….'
    )
  return columns[0]


def _arrow_compute() -> Any:
  return importlib.import_module('pyarrow.compute')  # lazy, and without types


def _label_values(dataset: Any, column: str, multi_label: bool) -> Any:
  """Returns all labels of a split as one flat Arrow array."""
  values = dataset.data.column(column)
  return _arrow_compute().list_flatten(values) if multi_label else values


def _not_classes(reason: str) -> UserError:
  advice = 'name another column as hf:name?label=….'
  return UserError(f'{reason}, so its values are not classes; {advice}')


def _find_labels(splits: dict[str, Any], column: str, spec: str) -> _Labels:
  """Inspects the column of labels; its classes are those of all splits."""
  import pyarrow as pa

  pc = _arrow_compute()
  feature = next(iter(splits.values())).features[column]
  multi_label = isinstance(feature, list) or getattr(feature, 'feature', None) is not None
  element = feature[0] if isinstance(feature, list) else getattr(feature, 'feature', feature)
  if class_names := getattr(element, 'names', None):
    return _Labels(column, tuple(class_names), None, multi_label)
  arrays = [_label_values(dataset, column, multi_label) for dataset in splits.values()]
  if all(pa.types.is_integer(array.type) for array in arrays):
    highest = max((pc.max(array).as_py() or 0 for array in arrays), default=0)
    if highest >= MAX_CLASSES:
      raise _not_classes(f'{spec}: its column {column} goes up to {highest:,}')
    return _Labels(column, tuple(map(str, range(highest + 1))), None, multi_label)
  if all(array.type in (pa.string(), pa.large_string()) for array in arrays):
    names = {name for array in arrays for name in pc.unique(array).to_pylist()} - {None}
    indices = {name: i for i, name in enumerate(sorted(names))}
    return _Labels(column, tuple(indices), indices, multi_label)
  raise _not_classes(f'{spec}: its column {column} has the type {arrays[0].type}')


def _check_labels(dataset: Any, labels: _Labels, spec: str) -> None:
  """Raises `UserError` for images without a label, such as the -1 of many test sets."""
  pc = _arrow_compute()
  if not len(dataset):
    raise UserError(f'{spec} is empty; choose another split.')
  values = _label_values(dataset, labels.column, labels.multi_label)
  missing = dataset.data.column(labels.column).null_count
  if labels.indices is None and len(values):
    missing += pc.sum(pc.less(values, 0)).as_py() or 0
    highest = pc.max(values).as_py() or 0
    if highest >= len(labels.class_names):
      count = plural(len(labels.class_names), 'class')
      raise UserError(f'{spec} has the label {highest}, but only {count}.')
  if missing:
    raise UserError(
      f'{spec} has {plural(missing, "image")} without a label in its column {labels.column}; '
      'choose another split or column.'
    )


def _open(dataset: Any, image: str, labels: _Labels, name: str) -> Source:
  """Opens one split; images stay encoded. `image` is the name of their column."""
  import datasets

  _check_labels(dataset, labels, name)
  dataset = dataset.with_format(None).select_columns([image, labels.column])
  if isinstance(dataset.features[image], datasets.Image):
    dataset = dataset.cast_column(image, datasets.Image(decode=False))
  files = [pathlib.Path(file['filename']) for file in dataset.cache_files]

  def location(i: int) -> str:
    return f'{name}, row {i}'

  def read(i: int) -> Example:
    row = dataset[int(i)]
    stored = row[image]
    if isinstance(stored, dict):
      stored, path = stored.get('bytes'), stored.get('path')
      if stored is None and path:
        try:
          stored = read_bytes(path)
        except OSError as error:
          reason = f'{path} cannot be read: {error.strerror}'
          raise BadExampleError(f'{location(i)}: {reason}.') from None
    if not isinstance(stored, bytes):
      raise BadExampleError(f'{location(i)} has no encoded image in its column {image}.')
    try:
      return stored, labels.read(row[labels.column])
    except (ValueError, KeyError, TypeError) as error:
      raise BadExampleError(f'{location(i)} cannot be read: {first_line(error)}.') from None

  def read_labels() -> np.ndarray:
    return np.array([labels.read(value) for value in dataset[labels.column][:]], np.int32)

  listing = repr([(file.name, os.path.getsize(file)) for file in files] + [len(dataset)])
  return Source(
    name=name,
    size=len(dataset),
    read=read,
    class_names=labels.class_names,
    multi_label=labels.multi_label,
    location=location,
    fingerprint=fingerprint(listing),
    files=lambda: list(map(str, files)),
    labels=None if labels.multi_label else read_labels,
  )


def split_names(path: str) -> tuple[str, ...]:
  return tuple(load_splits(path)[0])


def open_split(path: str, split: str) -> Source:
  """Opens a split of a data set, or 'all' of them one after the other."""
  splits, options = load_splits(path)
  spec = f'hf:{path}'
  chosen = split if split == 'all' else choose_split(splits, split)
  if chosen is None:
    raise UserError(
      f'{spec} has the splits {", ".join(splits)}, not {split!r}; take one of them, or parts of '
      f"one, such as '{next(iter(splits))}[:80%]' and '{next(iter(splits))}[80%:]'."
    )
  features = next(iter(splits.values())).features
  image = _choose_column(features, 'image', options, spec)
  labels = _find_labels(splits, _choose_column(features, 'label', options, spec), spec)
  if chosen in splits:
    return _open(splits[chosen], image, labels, f'{spec} ({chosen})')
  sources = [_open(dataset, image, labels, f'{spec} ({name})') for name, dataset in splits.items()]
  return concatenate(sources, f'{spec} (all)')
