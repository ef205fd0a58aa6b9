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
import hashlib
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vit_jax.data.sources.base import QUICKSTART, Source, Stored
from vit_jax.data.sources.splits import concatenate
from vit_jax.errors import BadExampleError, UserError, first_line

_OPTIONS = ('config', 'revision', 'image', 'label')
_IMAGES = ('image', 'img')
_LABELS = ('label', 'labels', 'fine_label')
_HUB_NAME = re.compile(r'[\w-][\w.-]*(/[\w.-]+)?')
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
    label = np.zeros(len(self.names), np.uint8)
    label[np.asarray(values, np.int64)] = 1
    return label


def _parse(path: str) -> tuple[str, dict[str, str]]:
  """The name or path, and the options after '?'."""
  name, _, query = path.partition('?')
  options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
  if unknown := set(options) - set(_OPTIONS) or (query and not options):
    raise UserError(
        f'hf:{path} has the option {"".join(sorted(unknown)[:1]) if options else query}; there '
        f'are {", ".join(_OPTIONS)}, as in hf:name?image=img&label=fine_label.'
    )
  return name, options


def _arrow_splits(files: Iterable[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
  """Arrow files by split: 'cifar10-train-00000-of-00002.arrow', 'test.arrow'; 'data' is train."""
  splits: dict[str, list[pathlib.Path]] = {}
  for file in sorted(files):
    if not file.name.startswith(('cache-', 'indices-', 'tmp', '.')):
      split = re.sub(r'-\d+-of-\d+$', '', file.stem).rpartition('-')[2]
      splits.setdefault('train' if split == 'data' else split, []).append(file)
  return splits


def _open_arrow(datasets: Any, file: pathlib.Path) -> Any:
  try:
    return datasets.Dataset.from_file(str(file))
  except Exception as error:  # noqa: BLE001 - Arrow and datasets raise a dozen kinds
    raise UserError(f'{file} is no whole Arrow file ({first_line(error)}).') from None


def _check_parquet(file: pathlib.Path) -> None:
  """Reads the end of a file, which is where parquet keeps what it holds."""
  import pyarrow.parquet

  try:
    pyarrow.parquet.read_metadata(file)
  except (pyarrow.ArrowException, OSError) as error:
    raise UserError(f'{file} is no whole parquet file ({first_line(error)}).') from None


def _snapshot(root: pathlib.Path) -> pathlib.Path:
  """The files of a folder of the hub's cache, `datasets--user--name`; else the folder itself."""
  main = root / 'refs' / 'main'
  return root / 'snapshots' / main.read_text().strip() if main.is_file() else root


def _load_files(datasets: Any, root: pathlib.Path, config: str | None) -> Any:
  """All splits of files on disk."""
  root = _snapshot(root)
  saved = [root] if (root / 'state.json').exists() else []
  if (root / 'dataset_dict.json').exists():
    saved = [state.parent for state in sorted(root.glob('*/state.json'))]
  arrow = [file for folder in saved or [root] for file in folder.glob('*.arrow')]
  arrow += [root] * (root.suffix == '.arrow')
  if saved:
    for file in arrow:
      _open_arrow(datasets, file)  # its error names the file
    return datasets.load_from_disk(str(root))
  if arrow:
    return {
        split: datasets.concatenate_datasets([_open_arrow(datasets, file) for file in files])
        for split, files in _arrow_splits(arrow).items()
    }
  for file in [root] if root.is_file() else root.rglob('*.parquet'):
    _check_parquet(file)
  if root.suffix == '.parquet':
    return datasets.load_dataset('parquet', data_files=str(root))
  return datasets.load_dataset(str(root), config)


def _load(path: str) -> tuple[dict[str, Any], dict[str, str]]:
  """All splits by name, and the options."""
  try:
    import datasets
  except ImportError:
    raise UserError(
        f"hf:{path} is read by the package datasets: pip install 'vit_jax[hf]'."
    ) from None
  name, options = _parse(path)
  root = pathlib.Path(name).expanduser()
  config = options.get('config')
  if not root.exists() and not _HUB_NAME.fullmatch(name):
    raise UserError(f'There is no {root}; hf: takes a name on the hub or a path; {QUICKSTART}.')
  try:
    if root.exists():
      found = _load_files(datasets, root, config)
    else:
      found = datasets.load_dataset(name, config, revision=options.get('revision'))
  except UserError:
    raise
  except Exception as error:  # noqa: BLE001 - every data set raises errors of its own
    raise UserError(
        f'hf:{path} cannot be opened ({first_line(error.__cause__ or error)}); '
        + ('look at its files.' if root.exists() else (
            'check its name and the connection, or download it elsewhere and name its folder as '
            f'hf:/path; {QUICKSTART}.'
        ))
    ) from None
  if isinstance(found, datasets.Dataset):
    found = {str(found.split or 'train'): found}
  return dict(found), options


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
  if all(pa.types.is_string(value.type) for value in values):
    names = sorted({name for value in values for name in pc.unique(value).to_pylist() if name})
    return _Labels(column, tuple(names), {name: i for i, name in enumerate(names)}, several)
  raise UserError(f'{spec}: its column {column} holds {values[0].type}, no classes.')


def _check_labels(dataset: Any, labels: _Labels, spec: str) -> None:
  """Raises `UserError` for images without a label, such as the -1 of many test sets."""
  import pyarrow.compute as pc

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
      hashlib.sha256(listing.encode('utf-8', 'surrogateescape')).hexdigest(),
  )


def split_names(path: str) -> tuple[str, ...]:
  """The splits of a data set."""
  return tuple(_load(path)[0])


def open_hugging_face(path: str, split: str) -> Source:
  """A split of a data set, or 'all' of them one after the other."""
  splits, options = _load(path)
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
