"""tfds:name and array_record:/path: data sets in TFDS's format, read without TensorFlow.

A folder of features.json, dataset_info.json and ArrayRecord shards. Opening reads the two small
files and looks at the sizes of the shards; a shard is opened when its first record is read.
"""

import bisect
import dataclasses
import itertools
import json
import resource
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from vit_jax.data.sources import tf_example
from vit_jax.data.sources.source import QUICKSTART, Source, multi_hot
from vit_jax.errors import BadExampleError, UserError, first_line

# What prepare_data leaves: a folder while it is at work, and a file at the very end.
UNFINISHED = '.unfinished'
CARD = 'dataset.json'
_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
_KEYS = ('label', 'labels')


class _Shards:
  """The records of a split, opened shard by shard as they are needed; safe for threads.

  Records are read by `seek`: ArrayRecord's way to read a list of indices goes over the index of
  the whole shard each time, a millisecond for a million records.
  """

  def __init__(self, files: list[epath.Path], lengths: list[int]):
    self.files = files
    self._ends = list(itertools.accumulate(lengths))
    self._readers: list[ArrayRecordReader | None] = [None] * len(files)
    self._locks = [threading.Lock() for _ in files]

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def locate(self, i: int) -> tuple[int, int]:
    """The shard of record `i`, and its place there."""
    shard = bisect.bisect_right(self._ends, i)
    return shard, i - (self._ends[shard - 1] if shard else 0)

  def __getitem__(self, i: int) -> bytes:
    shard, place = self.locate(i)
    with self._locks[shard]:
      if self._readers[shard] is None:
        self._readers[shard] = ArrayRecordReader(
          str(self.files[shard]), options='readahead_buffer_size:0,max_parallelism:0'
        )
      try:
        self._readers[shard].seek(place)
        return self._readers[shard].read()
      except Exception:
        self._readers[shard] = None  # after a damaged record it would repeat its error for others
        raise


def _allow_open_files(count: int) -> None:
  """Raises the soft limit of open files where it is too low for that many shards."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != resource.RLIM_INFINITY and soft < count + 512:
    most = count + 512 if hard == resource.RLIM_INFINITY else min(hard, count + 512)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


@dataclasses.dataclass(frozen=True)
class _Labels:
  """The feature that holds the class: its name, and the names of the classes."""

  key: str
  class_names: tuple[str, ...]
  multi_label: bool


def _read_json(file: epath.Path, root: epath.Path) -> dict[str, Any]:
  try:
    return json.loads(file.read_text())
  except (OSError, ValueError) as error:
    raise UserError(
      f'{root} is not a whole TFDS data set ({file.name}: {first_line(error)}).'
    ) from None


def _class_of(feature: dict[str, Any]) -> str:
  return feature.get('pythonClassName', '').rpartition('.')[2]


def _labels(root: epath.Path, spec: str) -> _Labels:
  features = _read_json(root / 'features.json', root)
  features = features.get('featuresDict', {}).get('features', {})
  key = next((key for key in _KEYS if key in features), None)
  if 'image' not in features or key is None:
    raise UserError(
      f'{spec} has the features {", ".join(sorted(features))}; image and label are needed.'
    )
  label, multi_label = features[key], False
  if 'sequence' in label:
    label, multi_label = label['sequence']['feature'], True
  if 'classLabel' not in label:
    raise UserError(f'{spec}: its {key} is no class label but {_class_of(label) or "unknown"}.')
  names = root / f'{key}.labels.txt'
  if names.exists():
    class_names = tuple(names.read_text().rstrip('\n').split('\n'))
  else:
    class_names = tuple(map(str, range(int(label['classLabel']['numClasses']))))
  return _Labels(key, class_names, multi_label)


def _file_names(info: dict[str, Any], split: dict[str, Any]) -> list[str]:
  count = len(split['shardLengths'])
  digits = max(5, len(str(count)))
  names = []
  for shard in range(count):
    name = (split.get('filepathTemplate') or _TEMPLATE).replace('${', '{')
    values = {
      'DATASET': info['name'],
      'SPLIT': split['name'],
      'FILEFORMAT': 'array_record',
      'SHARD_INDEX': f'{shard:0{digits}}',
      'NUM_SHARDS': f'{count:0{digits}}',
      'SHARD_X_OF_Y': f'{shard:0{digits}}-of-{count:0{digits}}',
    }
    for key, value in values.items():
      name = name.replace(f'{{{key}}}', value)
    names.append(name)
  return names


def _check_shards(files: list[epath.Path], card: dict[str, Any]) -> None:
  """Raises `UserError` for a shard that is not there, or not of the size that it was written."""
  splits = card.get('splits', {}).values()
  sizes = {shard['file']: shard['bytes'] for split in splits for shard in split['shards']}
  for file in files:
    try:
      found = file.stat().length
    except OSError:
      raise UserError(f'The shard {file} is missing; copy or prepare the data again.') from None
    if found != sizes.get(file.name, found):
      raise UserError(
        f'The shard {file} has {found:,} bytes of {sizes[file.name]:,}; copy or prepare the '
        'data again.'
      )


def _is_unfinished(root: epath.Path) -> bool:
  return (root / UNFINISHED).exists() and not (root / CARD).exists()


def _info(root: epath.Path) -> dict[str, Any]:
  if _is_unfinished(root):
    raise UserError(
      f'The preparation of {root} was not finished; run the same prepare_data command again.'
    )
  if not (root / 'features.json').exists():
    raise UserError(
      f'There is no prepared data set in {root} (no features.json); array_record: takes the '
      f'folder of a TFDS data set in array_record format, such as …/cifar10/3.0.2; {QUICKSTART}.'
    )
  info = _read_json(root / 'dataset_info.json', root)
  if info.get('fileFormat', 'tfrecord') != 'array_record':
    raise UserError(
      f'{root} is prepared in the format {info.get("fileFormat", "tfrecord")}; array_record is '
      "needed: prepare it again with tfds.builder(…, file_format='array_record')."
    )
  return info


def array_record_splits(path: str) -> tuple[str, ...]:
  """The splits of a prepared data set that hold anything."""
  splits = _info(epath.Path(path).expanduser()).get('splits', [])
  return tuple(split['name'] for split in splits if split.get('shardLengths'))


def _reader(shards: _Shards, labels: _Labels, where: Callable[[int], str]) -> Callable:
  num_classes = len(labels.class_names)

  def read(i: int) -> tuple[bytes, np.ndarray]:
    try:
      record = tf_example.decode(shards[i], ('image', labels.key))
      (image,), found = record['image'], record.get(labels.key, [])
      if not labels.multi_label:
        (found,) = found
        return image, np.int32(found)
    except (RuntimeError, ValueError, OSError, KeyError, IndexError) as error:
      raise BadExampleError(f'{where(i)} cannot be read: {first_line(error)}.') from None
    return image, multi_hot(found, num_classes)

  return read


def open_array_record(path: str, split: str) -> Source:
  """A data set that prepare_data or TFDS has written, by its folder."""
  root = epath.Path(path).expanduser()
  return _open(root, split, f'array_record:{root}')


def _open(root: epath.Path, split: str, spec: str) -> Source:
  info = _info(root)
  labels = _labels(root, spec)
  splits = {each['name']: each for each in info.get('splits', [])}
  if split not in splits:
    raise UserError(f'{spec} has the splits {", ".join(splits)}, not {split!r}.')
  lengths = [int(length) for length in splits[split].get('shardLengths', [])]
  files = [root / name for name in _file_names(info, splits[split])] if lengths else []
  card = _read_json(root / CARD, root) if (root / CARD).exists() else {}
  _check_shards(files, card)
  _allow_open_files(len(files))
  shards = _Shards(files, lengths)

  def where(i: int) -> str:
    shard, place = shards.locate(i)
    return f'{files[shard]}, record {place}'

  def named(i: int) -> str:
    try:
      record = tf_example.decode(shards[i], ('file_name',))
      return f'{where(i)} ({ascii(record["file_name"][0].decode())[1:-1]})'
    except (RuntimeError, ValueError, OSError, KeyError, IndexError):
      return where(i)

  return Source(
    f'{spec} ({split})',
    len(shards),
    _reader(shards, labels, where),
    labels.class_names,
    multi_label=labels.multi_label,
    where=named,
    fingerprint=f'{len(shards)} in {len(files)}',
    notes=tuple(card.get('warnings', ())),
  )


def _tfds_folder(name: str) -> epath.Path:
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, try_gcs=False, file_format='array_record')
    prepared = builder.info.splits
  except Exception as error:  # noqa: BLE001 - TFDS raises a dozen kinds for an unknown name
    raise UserError(f'TFDS cannot open {name!r} ({first_line(error)}); {QUICKSTART}.') from None
  if not prepared:
    raise UserError(
      f'The TFDS data set {name!r} is not prepared in {builder.data_path}; prepare it with '
      f"pip install -e '.[prepare]', then python -c \"import tensorflow_datasets as tfds; "
      f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()\", "
      f'or name a folder of images as folder:/path; {QUICKSTART}.'
    )
  return epath.Path(builder.data_path)


def tfds_splits(name: str) -> tuple[str, ...]:
  return array_record_splits(str(_tfds_folder(name)))


def open_tfds(name: str, split: str) -> Source:
  """A data set that is prepared where TFDS looks for it."""
  return _open(_tfds_folder(name), split, f'tfds:{name}')
