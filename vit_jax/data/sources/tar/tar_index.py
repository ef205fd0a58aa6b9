"""The index of a tar shard: where its images are, and their labels; read once, then cached.

Members that share a name up to the first dot of their base name are one example, as in the
`webdataset` package: '0017.jpg' and '0017.cls'. The label is the first of these that exists:

  .cls    a number or a name, as text
  .json   {"label": …}: a number, a name, or a list of either

Indexing reads only headers and labels. A cached index is ignored once the size or the modification
time of its tar file differs.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import tarfile
from collections.abc import Iterator

import numpy as np
from etils import epath

from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.data.sources.source import MAX_CLASSES, is_held_out
from vit_jax.data.sources.tar.tar_members import members, read_range
from vit_jax.errors import UserError
from vit_jax.files import MAX_IMAGE, cache_folder, open_to_read, parse_json, write_atomically

_VERSION = 2  # of the format of cached indices
_MAX_PADDING = 1 << 20  # bytes of zeros at the end of a tar file; 10,240 are usual
_MAX_LABEL = 2**24  # bytes of a .cls or .json
_COMPRESSED = (b'\x1f\x8b', b'\x28\xb5\x2f\xfd', b'\xfd7zXZ\0', b'BZh91AY&SY')
_ARRAYS = ('offsets', 'sizes', 'held_out', 'ends', 'labels')


@dataclasses.dataclass(frozen=True)
class ShardIndex:
  """The N examples of one tar file."""

  stamp: tuple[int, int]  # size and modification time (ns) of the file
  names: tuple[str, ...]  # classes in order of appearance, if labels are names
  multi_label: bool  # whether an example has a list of labels
  offsets: np.ndarray  # (N,) int64: position of each image
  sizes: np.ndarray  # (N,) uint32: bytes of each image
  held_out: np.ndarray  # (N,) bool: the test split of unsplit data, by a hash of the name
  ends: np.ndarray  # (N,) uint32: end of the labels of each example in `labels`
  labels: np.ndarray  # int32: the labels of all examples; they index `names` if not empty


@dataclasses.dataclass
class _Members:
  """The members of one example."""

  key: str
  image: tuple[int, int] | None = None  # offset and size
  cls: bytes | None = None
  json: bytes | None = None


def file_stamp(status: os.stat_result) -> tuple[int, int]:
  """Returns the size and modification time (ns) of a file, to notice that it has changed."""
  return status.st_size, status.st_mtime_ns


def _group_members(path: pathlib.Path, descriptor: int) -> Iterator[_Members]:
  """Groups neighboring members of the same name."""
  example = None
  for name, offset, size in members(str(path)):
    folder, _, base = name.rpartition('/')
    stem, _, suffix = base.partition('.')
    if not stem:
      continue  # hidden files
    key, suffix = f'{folder}/{stem}' if folder else stem, suffix.lower()
    if example is None or key != example.key:
      if example is not None:
        yield example
      example = _Members(key)
    if f'.{suffix}' in SUFFIXES:
      if size > MAX_IMAGE:
        raise UserError(f'{path}: {name} has {size:,} bytes; the limit is {MAX_IMAGE:,}.')
      example.image = example.image or (offset, size)
    elif suffix in ('cls', 'json'):
      setattr(example, suffix, os.pread(descriptor, min(size, _MAX_LABEL), offset))
  if example is not None:
    yield example


def _parse_label(example: _Members, path: pathlib.Path) -> int | str | list[int] | list[str]:
  content = 'no .cls or .json with its label'
  with contextlib.suppress(ValueError, KeyError, TypeError):  # ValueError includes bad JSON
    if example.cls is not None:
      content = f'the .cls {example.cls[:40]!r}'
      text = example.cls.decode().strip()
      return text if re.search('[^0-9-]', text) else int(text)
    if example.json is not None:
      content = f'the .json {example.json[:40]!r}'
      label = parse_json(example.json)['label']
      values = label if isinstance(label, list) else [label]
      types = {type(value) for value in values}
      if types <= {int} or types <= {str}:
        return label
  advice = 'a class number or name is needed'
  if example.cls is None and example.json is None:
    advice = 'add it, or, if folders in the tar are the classes, unpack it and use folder:'
  raise UserError(f'{path}: {example.key} has {content}; {advice}.')


def _check_format(path: pathlib.Path, descriptor: int) -> None:
  """Raises `UserError` for a compressed file, or one whose end was never written."""
  if os.pread(descriptor, 10, 0).startswith(_COMPRESSED):
    raise UserError(
      f'{path} is compressed, which prevents random access; decompress it to a .tar file.'
    )
  size = os.fstat(descriptor).st_size
  if size > _MAX_PADDING and not any(os.pread(descriptor, _MAX_PADDING, size - _MAX_PADDING)):
    raise UserError(f'{path} is not a complete tar file (zeros at its end); copy it again.')


def _read(path: pathlib.Path) -> ShardIndex:
  names: dict[str, int] = {}
  labels: list[int] = []
  rows: list[tuple[int, int, bool, int]] = []
  multi_label = False
  with open(open_to_read(path), 'rb') as file:
    stamp = file_stamp(os.fstat(file.fileno()))
    _check_format(path, file.fileno())
    for example in _group_members(path, file.fileno()):
      if example.image is None:
        continue
      label = _parse_label(example, path)
      multi_label |= isinstance(label, list)
      for value in label if isinstance(label, list) else [label]:
        if labels and isinstance(value, str) != bool(names):
          raise UserError(
            f'{path}: {example.key} has the label {value!r}, unlike the examples before it; use '
            'only numbers or only names.'
          )
        if isinstance(value, str):
          labels.append(names.setdefault(value, len(names)))
        elif 0 <= value < MAX_CLASSES:
          labels.append(value)
        else:
          raise UserError(
            f'{path}: {example.key} has the label {value}; classes are 0 to {MAX_CLASSES - 1:,}.'
          )
      rows.append((*example.image, is_held_out(example.key), len(labels)))
  columns = zip(*rows, strict=True) if rows else ((),) * 4
  arrays = map(np.array, (*columns, labels), (np.int64, np.uint32, np.bool, np.uint32, np.int32))
  return ShardIndex(stamp, tuple(names), multi_label, *arrays)


def _load(cached: epath.Path, stamp: tuple[int, int]) -> ShardIndex | None:
  """Loads a cached index; None without a valid one for the tar file as it is now."""
  try:
    with open(cached, 'rb') as file:
      metadata = json.loads(np.load(file).tobytes())
      if metadata['version'] != _VERSION or tuple(metadata['stamp']) != stamp:
        return None
      arrays = {name: np.load(file) for name in _ARRAYS}
  except (OSError, ValueError, KeyError, TypeError, EOFError):
    return None
  return ShardIndex(stamp, tuple(metadata['names']), metadata['several'], **arrays)


def _save(index: ShardIndex, cached: epath.Path) -> None:
  """Writes an index to the cache; does nothing if the cache is not writable."""
  metadata = {'version': _VERSION, 'stamp': index.stamp, 'names': index.names}
  metadata['several'] = index.multi_label

  def write(part: epath.Path) -> None:
    with open(part, 'wb') as file:
      np.save(file, np.frombuffer(json.dumps(metadata).encode(), np.uint8))
      for name in _ARRAYS:
        np.save(file, getattr(index, name))

  with contextlib.suppress(OSError):
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cached, write)


def index_shard(path: pathlib.Path) -> ShardIndex:
  """Returns the index of a tar file, from the cache if it is up to date."""
  try:
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    cached = cache_folder() / 'webdataset' / f'{name}.index'
    index = _load(cached, file_stamp(os.stat(path)))
    if index is None:
      index = _read(path)
      _save(index, cached)
    return index
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from None


def member_name(path: pathlib.Path, offset: int) -> str:
  """Returns the name of the member whose content is at `offset`; its offset if unreadable."""
  try:
    header = read_range(str(path), offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
    return tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name
  except (OSError, tarfile.TarError):
    return f'the member at byte {offset:,}'
