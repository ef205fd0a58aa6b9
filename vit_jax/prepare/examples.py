"""The examples of one split: how to read each, and how to send a part of them to a process."""

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


def shown(name: str) -> str:
  """A file's name on one line, in characters that any terminal and page takes."""
  return name if name.isprintable() else ascii(name)[1:-1]


class Examples(Protocol):
  """Examples of one split; `read` raises `BadExampleError`."""

  def __len__(self) -> int: ...

  def read(self, i: int) -> Example: ...

  def name(self, i: int) -> str:
    """What the example is called within its data set."""

  def part(self, start: int, stop: int) -> 'Examples': ...


@dataclasses.dataclass(frozen=True)
class Files:
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

  def part(self, start: int, stop: int) -> 'Files':
    return Files(self.root, self.names[start:stop], self.labels[start:stop])


@dataclasses.dataclass(frozen=True)
class Members:
  """Files in tar files: which tar, where in it, how long."""

  tars: tuple[str, ...]
  tar: np.ndarray
  offsets: np.ndarray
  sizes: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.offsets)

  def _range(self, i: int, before: int, size: int) -> bytes:
    file = self.tars[self.tar[i]]
    try:
      return tar_members.read_range(file, int(self.offsets[i]) - before, size)
    except OSError as error:
      raise BadExampleError(f'{file} cannot be read: {error.strerror}.') from None

  def read(self, i: int) -> Example:
    return self._range(i, 0, int(self.sizes[i])), self.labels[i]

  def name(self, i: int) -> str:
    header = self._range(i, 512, 100)  # which begins with the name
    return header.split(b'\0')[0].decode('utf-8', 'surrogateescape')

  def part(self, start: int, stop: int) -> 'Members':
    cut = (a[start:stop] for a in (self.tar, self.offsets, self.sizes, self.labels))
    return Members(self.tars, *cut)


@functools.lru_cache(maxsize=8)
def opened(spec: str, split: str) -> Source:
  return open_source(spec, split)


@dataclasses.dataclass(frozen=True)
class OfSource:
  """Examples of a source that is open; they stay in this process."""

  source: Source
  start: int
  stop: int

  def __len__(self) -> int:
    return self.stop - self.start

  def read(self, i: int) -> Example:
    return self.source.read(self.start + i)

  def name(self, i: int) -> str:
    return self.source.describe(self.start + i)

  def part(self, start: int, stop: int) -> 'OfSource':
    return dataclasses.replace(self, start=self.start + start, stop=self.start + stop)


@dataclasses.dataclass(frozen=True)
class Opened:
  """Examples of a data source; each process opens it once."""

  spec: str
  split: str
  start: int
  stop: int

  def __len__(self) -> int:
    return self.stop - self.start

  def _here(self) -> OfSource:
    return OfSource(opened(self.spec, self.split), self.start, self.stop)

  def read(self, i: int) -> Example:
    return self._here().read(i)

  def name(self, i: int) -> str:
    return self._here().name(i)

  def part(self, start: int, stop: int) -> 'Opened':
    return dataclasses.replace(self, start=self.start + start, stop=self.start + stop)
