"""array_record:/path: data sets in TFDS's format, read without TensorFlow.

The folder has features.json, dataset_info.json and ArrayRecord shards. Opening it reads these two
small files and checks the sizes of the shards; a shard is opened when its first record is read.
"""

import dataclasses
import importlib
import io
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm
from etils import epath

from vit_jax.data.sources import tf_example
from vit_jax.data.sources.source import Example, Source, encode_label, fingerprint, locate
from vit_jax.data.sources.splitting.split_aliases import choose_split
from vit_jax.errors import BadExampleError, MissingDataError, UserError, first_line
from vit_jax.files import read_json_object, read_text, user_path

try:
  import resource
except ImportError:  # Windows
  resource = None

# Written by prepare_data: a folder while it runs, and a file at the very end.
UNFINISHED = '.unfinished'
CARD = 'dataset.json'
SHUFFLED_SINCE = 2  # version of the settings in the card
_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'
# Beyond this size a worker keeps no index in memory but reads it each time: 8 ns per record of the
# shard, from the page cache, which all workers of a host share.
_MAX_INDEX_BYTES = 2**28
_OFFLOADED = ',index_storage_option:offloaded,footer_prefetch_bytes:0'
_INDEX_BYTES_PER_RECORD = 22
_NUM_SAMPLES = 32  # records whose labels are compared with those of a file
_BAR: Any = {'desc': 'reading labels', 'unit': ' labels', 'leave': False, 'disable': None}
_DAMAGE = (RuntimeError, ValueError, OSError, KeyError, IndexError)  # raised by a damaged record


def import_array_record() -> Any:
  """ArrayRecord's module of readers and writers; `UserError` where it is not installed."""
  try:
    return importlib.import_module('array_record.python.array_record_module')
  except ImportError:
    raise UserError(
      'The package array-record, which reads and writes prepared data, is not installed (there is '
      'none for Windows); folder:, hf: and webdataset: do without it.'
    ) from None


class _Shards:
  """Reads records of a split by index, opening each shard on its first use; thread-safe.

  `seek` finds a record directly; ArrayRecord's `read([indices])` scans the index of the whole
  shard on every call, a millisecond for a million records.
  """

  def __init__(self, files: list[epath.Path], lengths: list[int]):
    self._files = files
    self._ends = list(itertools.accumulate(lengths))
    self._open_reader = import_array_record().ArrayRecordReader
    is_large = _INDEX_BYTES_PER_RECORD * sum(lengths) > _MAX_INDEX_BYTES
    self._options = _OPTIONS + (_OFFLOADED if is_large else '')
    self._readers: list[Any] = [None] * len(files)
    self._locks = [threading.Lock() for _ in files]

  def describe(self, i: int) -> str:
    shard, record = locate(self._ends, i)
    return f'{self._files[shard]}, record {record}'

  def __getitem__(self, i: int) -> bytes:
    shard, position = locate(self._ends, i)
    with self._locks[shard]:
      reader = self._readers[shard]
      if reader is None:
        reader = self._open_reader(str(self._files[shard]), options=self._options)
      # After a damaged record a reader repeats its error for others, so only a healthy one is kept.
      self._readers[shard] = None
      reader.seek(position)
      record = reader.read()
      self._readers[shard] = reader
      return record


def _allow_open_files(count: int) -> None:
  """Raises the soft limit of open files if it is too low for that many shards."""
  if resource is None:
    return
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != resource.RLIM_INFINITY and soft < count + 512:
    limit = count + 512 if hard == resource.RLIM_INFINITY else min(hard, count + 512)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


@dataclasses.dataclass(frozen=True)
class Labels:
  """How the labels of an example are made of the features of its record.

  Attributes:
    inputs: names of these features.
    read: from them, by name, to the classes of the example.
    class_names: one name per class.
    multi_label: whether an example may have any number of classes.
  """

  inputs: tuple[str, ...]
  read: Callable[[Mapping[str, Sequence[Any]]], Sequence[int]]
  class_names: tuple[str, ...]
  multi_label: bool = False


def _read_json(file: epath.Path) -> dict[str, Any]:
  try:
    return read_json_object(file)
  except (OSError, ValueError) as error:
    raise UserError(
      f'{file.parent} is not a complete TFDS data set ({file.name}: {first_line(error)}); copy or '
      'prepare it again.'
    ) from None


def _read_names(file: epath.Path) -> str:
  try:
    return read_text(file)
  except (OSError, ValueError) as error:
    raise UserError(f'{file} cannot be read as a list of class names ({error}).') from None


def _read_labels(root: epath.Path, spec: str) -> Labels:
  """Reads features.json, and the class names beside it."""
  features = _read_json(root / 'features.json').get('featuresDict', {}).get('features', {})
  key = next((key for key in ('label', 'labels') if key in features), None)
  if 'image' not in features or key is None:
    raise UserError(
      f'{spec} has the features {", ".join(sorted(features))}; image and label are needed.'
    )
  feature, multi_label = features[key], False
  if 'sequence' in feature:
    feature, multi_label = feature['sequence']['feature'], True
  if 'classLabel' not in feature:
    type_name = feature.get('pythonClassName', '').rpartition('.')[2] or 'of unknown type'
    raise UserError(f'{spec}: its feature {key} is {type_name}; a ClassLabel is needed.')
  file = root / f'{key}.labels.txt'
  if file.exists():
    class_names = tuple(_read_names(file).rstrip('\n').split('\n'))
  else:
    class_names = tuple(map(str, range(int(feature['classLabel']['numClasses']))))
  return Labels((key,), lambda features: features.get(key, []), class_names, multi_label)


def _file_names(dataset: str, split: dict[str, Any]) -> list[str]:
  """Returns the file names of the shards of a split, by the template in dataset_info.json."""
  template = (split.get('filepathTemplate') or _TEMPLATE).replace('${', '{')
  names, count = [], len(split['shardLengths'])
  digits = max(5, len(str(count)))
  for shard in range(count):
    index, total = f'{shard:0{digits}}', f'{count:0{digits}}'
    values = {'DATASET': dataset, 'SPLIT': split['name'], 'FILEFORMAT': 'array_record'}
    values |= {'SHARD_INDEX': index, 'NUM_SHARDS': total, 'SHARD_X_OF_Y': f'{index}-of-{total}'}
    name = template
    for key, value in values.items():
      name = name.replace(f'{{{key}}}', value)
    names.append(name)
  return names


def _shard_sizes(files: list[epath.Path], card: dict[str, Any]) -> list[int]:
  """Bytes of each; `UserError` for one that is missing or has another size than in the card."""
  splits, sizes = card.get('splits', {}).values(), []
  expected_sizes = {shard['file']: shard['bytes'] for split in splits for shard in split['shards']}
  advice = 'copy or prepare the data again'
  for file in files:
    try:
      size = file.stat().length
    except OSError:
      raise UserError(f'The shard {file} is missing; {advice}.') from None
    expected = expected_sizes.get(file.name, size)
    if size != expected:
      raise UserError(f'The shard {file} has {size:,} bytes of {expected:,}; {advice}.')
    sizes.append(size)
  return sizes


def _read_info(root: epath.Path) -> dict[str, Any]:
  if (root / UNFINISHED).exists() and not (root / CARD).exists():
    raise UserError(
      f'The preparation of {root} is not finished; run the same prepare_data command to resume.'
    )
  if not (root / 'features.json').exists():
    raise MissingDataError(
      f'There is no prepared data set in {root} (no features.json); array_record: takes the '
      f'folder of a TFDS data set in array_record format, such as …/cifar10/3.0.2.'
    )
  info = _read_json(root / 'dataset_info.json')
  if info.get('fileFormat', 'tfrecord') != 'array_record':
    raise UserError(
      f'{root} has the file format {info.get("fileFormat", "tfrecord")}, not array_record; prepare '
      "it again with tfds.builder(…, file_format='array_record')."
    )
  return info


def _is_shuffled(info: dict[str, Any], card: dict[str, Any]) -> bool:
  """Whether examples are in random order, as prepare_data and, by default, TFDS write them."""
  if card:
    return card.get('settings', {}).get('version', 0) >= SHUFFLED_SINCE
  return not info.get('disableShuffling', False)


def split_names(path: str) -> tuple[str, ...]:
  """Lists the splits that are not empty."""
  splits = _read_info(user_path(path)).get('splits', [])
  return tuple(split['name'] for split in splits if split.get('shardLengths'))


def _read_all_labels(
  file: epath.Path, size: int, num_classes: int, read_label: Callable[[int], int]
) -> np.ndarray:
  """Reads the labels from a file as prepare_data writes it, or else record by record.

  A file in which one of a few records has another label belongs to other data, and is ignored.

  Args:
    file: beside the shards; need not exist.
    size: number of records.
    num_classes: other labels become -1.
    read_label: index of a record -> its label, or -1.

  Returns:
    (size,) int32.
  """
  sample = np.unique(np.linspace(0, size - 1, _NUM_SAMPLES).astype(int)).tolist()
  try:
    values = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
    if values.shape == (size,) and values.dtype == np.int32:
      values = np.where((values >= 0) & (values < num_classes), values, -1)
      if all(values[i] == read_label(i) for i in sample):
        return values
  except (OSError, ValueError):
    pass
  return np.array([read_label(i) for i in tqdm.trange(size, **_BAR)], np.int32)


def open_split(path: str, split: str, spec: str = '', labels: Labels | None = None) -> Source:
  """Opens a split of a data set that prepare_data or TFDS has written.

  Args:
    path: its folder.
    split: name of the split.
    spec: what messages call it; '': array_record:PATH.
    labels: how labels are made; None: they are the feature label or labels.

  Raises:
    UserError: for data that is missing, incomplete or of another kind.
  """
  root = user_path(path)
  spec = spec or f'array_record:{root}'
  info = _read_info(root)
  rule = labels or _read_labels(root, spec)
  splits = {entry['name']: entry for entry in info.get('splits', [])}
  chosen = choose_split(splits, split)
  if chosen is None:
    raise UserError(f'{spec} has the splits {", ".join(splits)}, not {split!r}.')
  split = chosen
  lengths = [int(length) for length in splits[split].get('shardLengths', [])]
  files = [root / name for name in _file_names(info['name'], splits[split])] if lengths else []
  card = _read_json(root / CARD) if (root / CARD).exists() else {}
  listing = list(
    zip([file.name for file in files], lengths, _shard_sizes(files, card), strict=True)
  )
  _allow_open_files(len(files))
  shards = _Shards(files, lengths)

  def location(i: int) -> str:
    try:
      record = tf_example.decode(shards[i], ('file_name',))
      return f'{shards.describe(i)} ({ascii(record["file_name"][0].decode())[1:-1]})'
    except _DAMAGE:
      return shards.describe(i)

  def read(i: int) -> Example:
    try:
      record = tf_example.decode(shards[i], ('image', *rule.inputs))
      (image,) = record['image']
      if not isinstance(image, bytes):
        raise ValueError('its image is not the bytes of a file')
      return image, encode_label(rule.read(record), len(rule.class_names), rule.multi_label)
    except _DAMAGE as error:
      raise BadExampleError(f'{shards.describe(i)} cannot be read: {first_line(error)}.') from None

  def read_label(i: int) -> int:
    try:
      values = rule.read(tf_example.decode(shards[i], rule.inputs))
      return int(encode_label(values, len(rule.class_names), False))
    except _DAMAGE:
      return -1

  def read_labels() -> np.ndarray:
    file = root / f'{info["name"]}-{split}.labels.npy'
    return _read_all_labels(file, sum(lengths), len(rule.class_names), read_label)

  return Source(
    name=f'{spec} ({split})',
    size=sum(lengths),
    read=read,
    class_names=rule.class_names,
    multi_label=rule.multi_label,
    location=location,
    fingerprint=fingerprint(repr(listing)),
    files=lambda: list(map(str, files)),
    labels=None if rule.multi_label else read_labels,
    shuffled=_is_shuffled(info, card),
    notes=tuple(card.get('warnings', ())),
  )
