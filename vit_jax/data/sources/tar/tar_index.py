"""Where the files in a tar file lie, and what their labels are: read once, kept in a cache.

Members that share a name up to the first dot of their base name are one example, as in the
`webdataset` package: '0017.jpg' and '0017.cls'. The label is, of the first that is there:

  .cls    a number or a name, as text
  .json   {"label": …}: a number, a name, or a list of either

Only the headers and the labels are read; the cache, in `$VIT_JAX_CACHE` or ~/.cache/vit_jax, is
left aside once size or time of a tar file differ.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import tarfile
import tempfile
from collections.abc import Iterator

import numpy as np

from vit_jax.data.decoding.images import SUFFIXES
from vit_jax.data.sources.source import is_held_out
from vit_jax.data.sources.tar.tar_members import members
from vit_jax.errors import UserError

_MOST_CLASSES = 1_000_000  # a larger number is no class
_VERSION = 1  # of the cache
_MOST_PADDING = 1 << 20  # bytes of zeros at the end of a tar file; usual are 10,240
_COMPRESSED = (b'\x1f\x8b', b'\x28\xb5\x2f\xfd', b'\xfd7zXZ\0', b'BZh91AY&SY')
_ARRAYS = ('offsets', 'sizes', 'held_out', 'ends', 'labels')


@dataclasses.dataclass(frozen=True)
class ShardIndex:
  """The examples of one tar file.

  Attributes:
    stamp: size and time of change (ns) of the file when it was read.
    names: of classes, in order of appearance, when labels are given by name; else empty.
    several: whether a label is a list.
    offsets, sizes: (N,) int64 and uint32: where the bytes of the images lie.
    held_out: (N,) bool: one in five, by a hash of the name: the test split of unsplit data.
    ends: (N,) uint32: where the labels of each example end.
    labels: int32: the labels of all examples; they count in `names` if there are any.
  """

  stamp: tuple[int, int]
  names: tuple[str, ...]
  several: bool
  offsets: np.ndarray
  sizes: np.ndarray
  held_out: np.ndarray
  ends: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass
class _Example:
  """Members of one name, as they come."""

  key: str
  image: tuple[int, int] | None = None  # offset and size
  cls: bytes | None = None
  json: bytes | None = None


def file_stamp(status: os.stat_result) -> tuple[int, int]:
  """What tells that a file has changed: its size and time of change."""
  return status.st_size, status.st_mtime_ns


def _examples(path: pathlib.Path, descriptor: int) -> Iterator[_Example]:
  """Neighbors of the same name."""
  example = None
  for name, *place in members(str(path)):
    folder, _, base = name.rpartition('/')
    stem, _, suffix = base.partition('.')
    if not stem:
      continue  # hidden files
    key, suffix = f'{folder}/{stem}' if folder else stem, suffix.lower()
    if example is None or key != example.key:
      if example is not None:
        yield example
      example = _Example(key)
    if f'.{suffix}' in SUFFIXES:
      example.image = example.image or tuple(place)
    elif suffix in ('cls', 'json'):
      offset, size = place
      setattr(example, suffix, os.pread(descriptor, size, offset))
  if example is not None:
    yield example


def _label(example: _Example, path: pathlib.Path) -> object:
  """The label as it is written: a number, a name, or a list of either."""
  said = 'no .cls or .json with its label'
  with contextlib.suppress(ValueError, KeyError, TypeError):  # ValueError: of json, too
    if example.cls is not None:
      said = f'the .cls {example.cls[:40]!r}'
      text = example.cls.decode().strip()
      return text if re.search('[^0-9-]', text) else int(text)
    if example.json is not None:
      said = f'the .json {example.json[:40]!r}'
      label = json.loads(example.json)['label']
      values = label if isinstance(label, list) else [label]
      kinds = {type(value) for value in values}
      if kinds <= {int} or kinds <= {str}:
        return label
  raise UserError(f'{path}: {example.key} has {said}; a class number or name is needed.')


def _check_ends(path: pathlib.Path, descriptor: int) -> None:
  """Raises `UserError` for a file that is compressed, or whose end has not been written yet."""
  if os.pread(descriptor, 10, 0).startswith(_COMPRESSED):
    raise UserError(f'{path} is compressed, which rules out random access: unpack it to a .tar.')
  size = os.fstat(descriptor).st_size
  if size > _MOST_PADDING and not any(os.pread(descriptor, _MOST_PADDING, size - _MOST_PADDING)):
    raise UserError(f'{path} is no whole tar file (zeros at its end): copy it again.')


def _read(path: pathlib.Path) -> ShardIndex:
  """Reads the headers and labels of a tar file."""
  names: dict[str, int] = {}
  numbers: list[int] = []
  rows: list[tuple[int, int, bool, int]] = []
  several = False
  with open(path, 'rb') as file:
    stamp = file_stamp(os.fstat(file.fileno()))
    _check_ends(path, file.fileno())
    for example in _examples(path, file.fileno()):
      if example.image is None:
        continue
      label = _label(example, path)
      several |= isinstance(label, list)
      for value in label if isinstance(label, list) else [label]:
        by_name = isinstance(value, str)
        if numbers and by_name != bool(names):
          raise UserError(f'{path}: {example.key} has the label {value!r}, unlike those before it.')
        if not by_name and not 0 <= value < _MOST_CLASSES:
          raise UserError(f'{path}: {example.key} has the label {value}, which is no class.')
        numbers.append(names.setdefault(value, len(names)) if by_name else value)
      rows.append((*example.image, is_held_out(example.key), len(numbers)))
  offsets, sizes, held_out, ends = zip(*rows, strict=True) if rows else ((),) * 4
  return ShardIndex(
    stamp,
    tuple(names),
    several,
    np.array(offsets, np.int64),
    np.array(sizes, np.uint32),
    np.array(held_out, bool),
    np.array(ends, np.uint32),
    np.array(numbers, np.int32),
  )


def _cache_file(path: pathlib.Path) -> pathlib.Path:
  folder = pathlib.Path(os.environ.get('VIT_JAX_CACHE') or '~/.cache/vit_jax').expanduser()
  name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
  return folder / 'webdataset' / f'{name}.index'


def _load(cached: pathlib.Path, stamp: tuple[int, int]) -> ShardIndex | None:
  """An index of the cache; None when there is none for the file as it is."""
  try:
    with open(cached, 'rb') as file:
      about = json.loads(np.load(file).tobytes())
      if about['version'] != _VERSION or tuple(about['stamp']) != stamp:
        return None
      arrays = {name: np.load(file) for name in _ARRAYS}
  except (OSError, ValueError, KeyError, TypeError, EOFError):
    return None
  return ShardIndex(stamp, tuple(about['names']), about['several'], **arrays)


def _save(index: ShardIndex, cached: pathlib.Path) -> None:
  """Keeps an index, whole or not at all; without a place to write there is no cache."""
  about = {'stamp': index.stamp, 'names': index.names, 'several': index.several}
  with contextlib.suppress(OSError):
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as file:
      try:
        np.save(file, np.frombuffer(json.dumps({'version': _VERSION} | about).encode(), np.uint8))
        for name in _ARRAYS:
          np.save(file, getattr(index, name))
        file.close()
        os.replace(file.name, cached)
      except OSError:
        os.unlink(file.name)


def index_shard(path: pathlib.Path) -> ShardIndex:
  """The index of a tar file, from the cache or read from the file and put there.

  Raises:
    UserError: when it is cut short, no tar file, or an image in it has no label.
  """
  try:
    cached = _cache_file(path)
    index = _load(cached, file_stamp(os.stat(path)))
    if index is None:
      index = _read(path)
      _save(index, cached)
    return index
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from None


def member_name(path: pathlib.Path, offset: int) -> str:
  """The name of the member whose content begins at `offset`; its place if that is gone."""
  try:
    with open(path, 'rb') as file:
      file.seek(offset - tarfile.BLOCKSIZE)  # where its header is
      header = file.read(tarfile.BLOCKSIZE)
    return tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name
  except (OSError, tarfile.TarError):
    return f'the member at byte {offset:,}'
