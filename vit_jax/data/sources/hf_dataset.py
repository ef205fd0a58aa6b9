"""hf:name: data sets of Hugging Face, by their name on the hub or from files on disk.

  hf:cifar10, hf:user/name           downloaded by `datasets` at the first time, then kept
  hf:/path                           what save_to_disk has written; a folder of .arrow files; a
                                     folder of .parquet files such as data/train-00000-of-00002
                                     .parquet, or a clone of a data set; a single file
  hf:name?config=…&revision=…&image=…&label=…

`config` and `revision` are the hub's. `image` and `label` name columns; without them these are
'image' or 'img', or the only column of images, and the first of 'label', 'labels' and 'fine_label'.

Arrow files are read where they lie, mapped into memory; parquet has no random access, so that
`datasets` first copies it into Arrow files in its own cache (`HF_HOME`).
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data.sources.hf_dataset_files import load_splits
from vit_jax.data.sources.source import Source, Stored, fingerprint, multi_hot
from vit_jax.data.sources.splits import concatenate
from vit_jax.errors import BadExampleError, UserError

_IMAGES = ('image', 'img')
_LABELS = ('label', 'labels', 'fine_label')
_MOST_CLASSES = 1_000_000  # a column of larger numbers holds no classes


@dataclasses.dataclass(frozen=True)
class _Labels:
  """How to read a column of labels: its class names, the number of each, if there are several."""

  column: str
  names: tuple[str, ...]
  numbers: dict[str, int] | None
  several: bool

  def read(self, value: Any) -> np.ndarray:
    """A label as a source gives it."""
    values = value if self.several else [value]
    if self.numbers is not None:
      values = [self.numbers[value] for value in values]
    if not self.several:
      return np.int32(values[0])
    return multi_hot(values, len(self.names))


def _column(features: Any, given: str | None, usual: Sequence[str], what: str, spec: str) -> str:
  """The name of the column of images or labels."""
  if given in features:
    return given
  found = [name for name in usual if name in features] if given is None else []
  if not found and given is None and what == 'image':
    found = [name for name in features if type(features[name]).__name__ == 'Image']
    found = found if len(found) == 1 else []
  if not found:
    wanted = repr(given) if given else ' or '.join(map(repr, usual))
    raise UserError(
      f'{spec} has the columns {", ".join(features)}, none is {wanted}; name the column as '
      f'hf:name?{what}=….'
    )
  return found[0]


def _values(dataset: Any, column: str, several: bool) -> Any:
  """The labels of a split as one Arrow array, lists laid flat."""
  import pyarrow.compute as pc

  values = dataset.data.column(column)
  return pc.list_flatten(values) if several else values


def _labels(splits: dict[str, Any], column: str, spec: str) -> _Labels:
  """How to read the labels; their classes are those of all splits, whichever is opened."""
  import pyarrow as pa
  import pyarrow.compute as pc

  feature = next(iter(splits.values())).features[column]
  several = isinstance(feature, list) or getattr(feature, 'feature', None) is not None
  inner = feature[0] if isinstance(feature, list) else getattr(feature, 'feature', feature)
  if names := getattr(inner, 'names', None):
    return _Labels(column, tuple(names), None, several)
  values = [_values(dataset, column, several) for dataset in splits.values()]
  if all(pa.types.is_integer(value.type) for value in values):
    highest = max((pc.max(value).as_py() or 0 for value in values), default=0)
    if highest >= _MOST_CLASSES:
      raise UserError(f'{spec}: its column {column} goes up to {highest:,}; these are no classes.')
    return _Labels(column, tuple(map(str, range(highest + 1))), None, several)
  if all(value.type in (pa.string(), pa.large_string()) for value in values):
    names = sorted({name for value in values for name in pc.unique(value).to_pylist()} - {None})
    return _Labels(column, tuple(names), {name: i for i, name in enumerate(names)}, several)
  raise UserError(f'{spec}: its column {column} holds {values[0].type}, no classes.')


def _check_labels(dataset: Any, labels: _Labels, spec: str) -> None:
  """Raises `UserError` for images without a label, such as the -1 of many test sets."""
  import pyarrow.compute as pc

  if not len(dataset):
    raise UserError(f'{spec} holds nothing.')
  values = _values(dataset, labels.column, labels.several)
  missing = dataset.data.column(labels.column).null_count
  if labels.numbers is None and len(values):
    lowest, highest = pc.min(values).as_py(), pc.max(values).as_py()
    missing += pc.sum(pc.less(values, 0)).as_py() if lowest is not None and lowest < 0 else 0
    if highest is not None and highest >= len(labels.names):
      raise UserError(f'{spec} has the label {highest}, but {len(labels.names)} classes.')
  if missing:
    raise UserError(f'{spec} has {missing:,} images without a label ({labels.column}).')


def _from_split(dataset: Any, image: str, labels: _Labels, spec: str, split: str) -> Source:
  """One split as a source; images stay as they are stored."""
  import datasets

  _check_labels(dataset, labels, f'{spec} ({split})')
  dataset = dataset.with_format(None).select_columns([image, labels.column])
  if isinstance(dataset.features[image], datasets.Image):
    dataset = dataset.cast_column(image, datasets.Image(decode=False))
  files = [pathlib.Path(file['filename']) for file in dataset.cache_files]

  def where(i: int) -> str:
    return f'{spec} ({split}), row {i}'

  def read(i: int) -> Stored:
    row = dataset[int(i)]
    stored = row[image]
    if isinstance(stored, dict):
      stored, path = stored.get('bytes'), stored.get('path')
      if stored is None and path:
        try:
          stored = pathlib.Path(path).read_bytes()
        except OSError as error:
          raise BadExampleError(f'{where(i)}: {path} cannot be read: {error.strerror}.') from None
    if not isinstance(stored, bytes):
      raise BadExampleError(f'{where(i)} holds no bytes of an image in its column {image}.')
    return stored, labels.read(row[labels.column])

  listing = repr([(file.name, os.path.getsize(file)) for file in files] + [len(dataset)])
  return Source(
    f'{spec} ({split})',
    len(dataset),
    read,
    labels.names,
    labels.several,
    where,
    fingerprint(listing),
  )


def split_names(path: str) -> tuple[str, ...]:
  """The splits of a data set."""
  return tuple(load_splits(path)[0])


def open_hugging_face(path: str, split: str) -> Source:
  """A split of a data set, or 'all' of them one after the other."""
  splits, options = load_splits(path)
  spec = f'hf:{path}'
  if split != 'all' and split not in splits:
    raise UserError(f'{spec} has the splits {", ".join(splits)}, not {split!r}.')
  features = next(iter(splits.values())).features
  image = _column(features, options.get('image'), _IMAGES, 'image', spec)
  labels = _labels(splits, _column(features, options.get('label'), _LABELS, 'label', spec), spec)
  if split in splits:
    return _from_split(splits[split], image, labels, spec, split)
  sources = [_from_split(dataset, image, labels, spec, name) for name, dataset in splits.items()]
  return concatenate(sources, f'{spec} (all)')
