"""Where examples come from: one string, random access, labels and class names.

  digits                scikit-learn's 1,797 handwritten digits, installed with the package
  folder:/path          {train,val,test}/class/* or class/*
  tfds:name             a prepared TFDS data set (array_record format)
  array_record:/path    the same, by its folder (…/name/config/version)

None of them needs TensorFlow to be read.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from vit_jax.data.images import SUFFIXES, check_image, decode_image
from vit_jax.errors import UserError, first_line

QUICKSTART = 'to try things without any data, run --config=configs/quickstart.py'

# A folder of more images is not read through before a run; a damaged one then ends it later.
_CHECK_AT_MOST = 100_000


@dataclasses.dataclass(frozen=True)
class Source:
  """Examples with random access.

  Attributes:
    name: the string it was opened with, and the split.
    size: the number of examples.
    read: index in [0, size) -> (image, label); (H, W, 3) uint8 RGB, and an int32 class or, for
      multi-label data, a (C,) uint8 vector of zeros and ones.
    class_names: one name a class, in label order.
    multi_label: whether labels are such vectors.
  """

  name: str
  size: int
  read: Callable[[int], tuple[np.ndarray, np.ndarray]]
  class_names: tuple[str, ...]
  multi_label: bool = False

  @property
  def num_classes(self) -> int:
    return len(self.class_names)


def _digits(path: str, split: str) -> Source:
  """The fixed, stratified 80/20 split of scikit-learn's digits: 1,437 train and 360 test."""
  from sklearn import datasets, model_selection

  del path
  digits = datasets.load_digits()
  train, test = model_selection.train_test_split(
      np.arange(len(digits.target)), test_size=0.2, random_state=0, stratify=digits.target
  )
  if split not in ('train', 'test', 'all'):
    raise UserError(f'digits has the splits train, test and all, not {split!r}.')
  indices = {'train': train, 'test': test, 'all': np.arange(len(digits.target))}[split]
  images = np.rint(digits.images[indices] * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255
  images = np.repeat(images[..., None], 3, axis=-1)
  labels = digits.target[indices].astype(np.int32)
  return Source(
      name=f'digits ({split})',
      size=len(indices),
      read=lambda i: (images[i], labels[i]),
      class_names=tuple(str(name) for name in digits.target_names),
  )


def image_files(folder: epath.Path) -> list[str]:
  """Sorted paths, relative to `folder`, of all images below it; hidden files are left out."""
  def refuse(error: OSError) -> None:
    raise UserError(f'{error.filename} cannot be read: {error.strerror}.')

  found, seen = [], set()
  for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
    if os.path.realpath(parent) in seen:  # a link that leads back
      folders.clear()
      continue
    seen.add(os.path.realpath(parent))
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    found += [
        os.path.relpath(os.path.join(parent, name), folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith('.')
    ]
  return sorted(found)


def _read_bytes(file: epath.Path) -> bytes:
  try:
    return file.read_bytes()
  except OSError as error:
    raise UserError(f'{file} cannot be read: {error.strerror or error}.') from None


def _is_held_out(file: str) -> bool:
  """Whether a file of an unsplit folder belongs to its test split: one in five, by its name."""
  digest = hashlib.sha256(file.replace(os.sep, '/').encode('utf-8', 'surrogateescape')).digest()
  return digest[0] % 5 == 0


def _split_folder(root: epath.Path, split: str) -> tuple[epath.Path, Callable[[str], bool]]:
  """The folder of classes to read for `split`, and which of its files belong to the split."""
  folders = {c.name for c in root.iterdir() if c.is_dir() and not c.name.startswith('.')}
  if unclear := folders & {'training', 'validation', 'valid', 'testing'}:
    raise UserError(
        f'{root} has a folder {min(unclear)}; splits are called train, val and test: rename it.'
    )
  splits = folders & {'train', 'val', 'test'}
  if split not in ('train', 'val', 'test', 'all'):
    raise UserError(f'folder:{root} has the splits train, val, test and all, not {split!r}.')
  if not splits or ('train' not in splits and splits != folders):  # one level: class/*
    if split == 'all':
      return root, lambda file: True
    return root, lambda file: _is_held_out(file) == (split != 'train')
  if split == 'train' and splits == {'train'}:
    return root / 'train', lambda file: not _is_held_out(file)
  for name in {'train': ('train',), 'test': ('test', 'val'), 'val': ('val', 'test')}.get(split, ()):
    if name in splits:
      return root / name, lambda file: True
  if split == 'all' or 'train' not in splits:
    raise UserError(f'folder:{root} is split into {", ".join(sorted(splits))}; name one of them.')
  return root / 'train', _is_held_out


def _folder(path: str, split: str) -> Source:
  """A folder of images, one sub-folder a class.

  With `train/` and `val/` or `test/` in it these are the splits. Otherwise one file in five,
  chosen by a hash of its path, is held out: the same files on every machine.
  """
  root = epath.Path(path).expanduser()
  if not root.is_dir():
    raise UserError(
        f'There is no folder {root}; folder: takes a folder with one sub-folder of images a '
        f'class, or with train/ and test/ of that kind; {QUICKSTART}.'
    )
  folder, belongs = _split_folder(root, split)
  # All classes count, also those without an image in this split: labels must not depend on it.
  classes_in = root / 'train' if folder.parent == root and (root / 'train').is_dir() else folder
  files = image_files(folder)
  names = sorted({file.split(os.sep)[0] for file in image_files(classes_in) if os.sep in file})
  labels = {name: i for i, name in enumerate(names)}
  for name in names:
    if not name.isprintable():
      raise UserError(f'The name of the class folder {folder}/{ascii(name)} is no plain text.')
  if not files:
    raise UserError(f'{folder} holds no image ({", ".join(SUFFIXES)}) in any sub-folder.')
  if len(names) < 2:
    raise UserError(
        f'{folder} holds images of {len(names)} class{"" if names else "es"} '
        f'({", ".join(names) or "all outside of sub-folders"}); classification takes at least 2, '
        'one sub-folder each.'
    )
  files = [file for file in files if os.sep in file and belongs(file)]
  for file in files:
    if file.split(os.sep)[0] not in labels:
      raise UserError(f'{folder / file} is of a class that {classes_in} does not have.')
  if not files:
    raise UserError(f'folder:{root} has no image in its split {split!r}; it has too few images.')

  def check(file: str) -> None:
    check_image(_read_bytes(folder / file), str(folder / file))

  if len(files) <= _CHECK_AT_MOST:
    with ThreadPoolExecutor() as pool:
      list(pool.map(check, files))

  def read(i: int) -> tuple[np.ndarray, np.ndarray]:
    file = folder / files[i]
    return decode_image(_read_bytes(file), str(file)), np.int32(labels[files[i].split(os.sep)[0]])

  return Source(f'folder:{root} ({split})', len(files), read, tuple(names))


def _from_builder(builder: Any, spec: str, split: str) -> Source:
  """A prepared TFDS data set, read through `as_data_source`."""
  import tensorflow_datasets as tfds

  features = builder.info.features
  key = next((key for key in ('label', 'labels') if key in features), None)
  if 'image' not in features or key is None:
    raise UserError(f'{spec} has the features {", ".join(features)}; image and label are needed.')
  try:
    records = builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
  except (ValueError, KeyError) as error:
    splits = ', '.join(builder.info.splits)
    raise UserError(f'{spec} has the splits {splits}, not {split!r} ({error}).') from None
  except NotImplementedError:
    raise UserError(
        f'{spec} is prepared in the format {builder.info.file_format.value}; array_record is '
        "needed: prepare it again with tfds.builder(…, file_format='array_record')."
    ) from None
  label = getattr(features[key], 'feature', features[key])
  if not isinstance(label, tfds.features.ClassLabel):
    raise UserError(f'{spec}: its {key} is no class label but {type(label).__name__}.')
  num_classes = label.num_classes
  names = tuple(label.names) if label.names else tuple(map(str, range(num_classes)))

  def read(i: int) -> tuple[np.ndarray, np.ndarray]:
    try:
      record = records[i]
    except (RuntimeError, ValueError, OSError) as error:  # a shard is missing or damaged
      raise UserError(f'{spec}, example {i} cannot be read: {first_line(error)}.') from None
    image = decode_image(record['image'], f'{spec}, example {i}')
    if key == 'label':
      return image, np.int32(record['label'])
    label = np.zeros(num_classes, np.uint8)
    label[np.asarray(record['labels'], np.int64)] = 1
    return image, label

  return Source(f'{spec} ({split})', len(records), read, names, multi_label=key == 'labels')


def _tfds(name: str, split: str) -> Source:
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
  return _from_builder(builder, f'tfds:{name}', split)


def _array_record(path: str, split: str) -> Source:
  import tensorflow_datasets as tfds

  root = epath.Path(path).expanduser()
  if not (root / 'features.json').exists():
    raise UserError(
        f'There is no prepared data set in {root} (no features.json); array_record: takes the '
        f'folder of a TFDS data set in array_record format, such as …/cifar10/3.0.2; {QUICKSTART}.'
    )
  try:
    builder = tfds.builder_from_directory(root)
  except Exception as error:  # noqa: BLE001 - TFDS, protobuf and json raise a dozen kinds
    raise UserError(f'{root} is not a whole TFDS data set ({first_line(error)}).') from None
  return _from_builder(builder, f'array_record:{root}', split)


_OPENERS: dict[str, Callable[[str, str], Source]] = {
    'digits': _digits,
    'folder': _folder,
    'tfds': _tfds,
    'array_record': _array_record,
}


def open_source(spec: str, split: str) -> Source:
  """Opens 'kind:what', for instance 'folder:/my/images' (see the top of this file).

  Raises:
    UserError: for an unknown kind, data that is not there, or data that cannot be read.
  """
  kind, _, rest = spec.partition(':')
  if kind not in _OPENERS or (not rest) != (kind == 'digits'):
    raise UserError(
        f'{spec!r} is no data source; choose digits, folder:/path, tfds:name or '
        f'array_record:/path; {QUICKSTART}.'
    )
  return _OPENERS[kind](rest, split)


def check_same_classes(expected: Sequence[str], found: Sequence[str], what: str) -> None:
  """Raises `UserError` naming the first classes in which two lists of names differ."""
  if tuple(expected) == tuple(found):
    return
  missing = [name for name in expected if name not in set(found)]
  extra = [name for name in found if name not in set(expected)]
  raise UserError(
      f'{what} has {len(found)} classes, {len(expected)} were expected'
      + (f'; missing: {", ".join(missing[:3])}' if missing else '')
      + (f'; not expected: {", ".join(extra[:3])}' if extra else '')
      + ('; their order differs' if not missing and not extra else '')
      + '.'
  )
