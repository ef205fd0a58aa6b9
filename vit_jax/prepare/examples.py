"""The examples of one split: random access, and slices that can be sent to a worker process."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vit_jax.data.sources import Source, open_source
from vit_jax.data.sources.source import Example
from vit_jax.data.sources.tar import tar_members
from vit_jax.errors import BadExampleError


class Examples(Protocol):
  """Random access to the examples of one split."""

  def __len__(self) -> int: ...

  def read(self, i: int) -> Example:
    """Returns (image, label) as `Source.read` does; raises `BadExampleError`."""
    ...

  def name(self, i: int) -> str:
    """Returns the name of an example within its data set, such as its file."""
    ...

  def slice(self, start: int, stop: int) -> 'Examples':
    """Returns the examples [start, stop)."""
    ...


@dataclasses.dataclass(frozen=True)
class FileExamples:
  """Image files below a folder."""

  root: str
  names: Sequence[str]
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.names)

  def read(self, i: int) -> Example:
    try:
      with open(os.path.join(self.root, self.names[i]), 'rb') as file:
        return file.read(), self.labels[i]
    except OSError as error:
      raise BadExampleError(f'{self.names[i]} cannot be read: {error.strerror}.') from None

  def name(self, i: int) -> str:
    return self.names[i]

  def slice(self, start: int, stop: int) -> 'FileExamples':
    return FileExamples(self.root, self.names[start:stop], self.labels[start:stop])


@dataclasses.dataclass(frozen=True)
class TarExamples:
  """Files in tars.

  Attributes:
    tars: paths of the tars.
    tar: (N,) index in `tars` for each example.
    offsets, sizes: (N,) first byte in the tar and number of bytes.
    labels: (N,) int32.
  """

  tars: tuple[str, ...]
  tar: np.ndarray
  offsets: np.ndarray
  sizes: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.offsets)

  def _read_range(self, i: int, offset: int, size: int) -> bytes:
    """Reads `size` bytes, starting `offset` bytes after the start of an example."""
    file = self.tars[self.tar[i]]
    try:
      return tar_members.read_range(file, int(self.offsets[i]) + offset, size)
    except OSError as error:
      raise BadExampleError(f'{file} cannot be read: {error.strerror}.') from None

  def read(self, i: int) -> Example:
    return self._read_range(i, 0, int(self.sizes[i])), self.labels[i]

  def name(self, i: int) -> str:
    header = self._read_range(i, -512, 100)  # it begins with the name
    return header.split(b'\0')[0].decode('utf-8', 'surrogateescape')

  def slice(self, start: int, stop: int) -> 'TarExamples':
    columns = (self.tar, self.offsets, self.sizes, self.labels)
    return TarExamples(self.tars, *(column[start:stop] for column in columns))


@dataclasses.dataclass(frozen=True)
class OpenSourceExamples:
  """Examples [start, stop) of an open source; they cannot be sent to another process."""

  source: Source
  start: int
  stop: int

  def __len__(self) -> int:
    return self.stop - self.start

  def read(self, i: int) -> Example:
    return self.source.read(self.start + i)

  def name(self, i: int) -> str:
    return self.source.describe(self.start + i)

  def slice(self, start: int, stop: int) -> 'OpenSourceExamples':
    return dataclasses.replace(self, start=self.start + start, stop=self.start + stop)


@functools.lru_cache(maxsize=8)
def open_source_once(spec: str, split: str) -> Source:
  """`open_source`, once in each process."""
  return open_source(spec, split)


@dataclasses.dataclass(frozen=True)
class SourceExamples:
  """Examples [start, stop) of a data source, which each process opens once."""

  spec: str
  split: str
  start: int
  stop: int

  def __len__(self) -> int:
    return self.stop - self.start

  def _open(self) -> OpenSourceExamples:
    return OpenSourceExamples(open_source_once(self.spec, self.split), self.start, self.stop)

  def read(self, i: int) -> Example:
    return self._open().read(i)

  def name(self, i: int) -> str:
    return self._open().name(i)

  def slice(self, start: int, stop: int) -> 'SourceExamples':
    return dataclasses.replace(self, start=self.start + start, stop=self.start + stop)
