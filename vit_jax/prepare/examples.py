"""The examples of one split: random access, and parts that can be sent to a worker process."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from vit_jax.data.sources import Source
from vit_jax.data.sources.source import Example
from vit_jax.data.sources.tar import tar_members
from vit_jax.errors import BadExampleError
from vit_jax.files import read_bytes

Indices = range | np.ndarray


class Examples(Protocol):
  """Random access to the examples of one split."""

  def __len__(self) -> int: ...

  def read(self, i: int) -> Example:
    """Returns (image, label) as `Source.read` does; raises `BadExampleError`."""
    ...

  def name(self, i: int) -> str:
    """Returns the name of an example within its data set, such as its file."""
    ...

  def take(self, indices: Indices) -> 'Examples':
    """Returns the examples of these indices, in their order."""
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
      return read_bytes(os.path.join(self.root, self.names[i])), self.labels[i]
    except OSError as error:
      raise BadExampleError(f'{self.names[i]} cannot be read: {error.strerror}.') from None

  def name(self, i: int) -> str:
    return self.names[i]

  def take(self, indices: Indices) -> 'FileExamples':
    return FileExamples(self.root, [self.names[i] for i in indices], self.labels[indices])


@dataclasses.dataclass(frozen=True)
class TarExamples:
  """Files in tars.

  Attributes:
    tars: their paths.
    members: (N, 4) int64: for each file the index of its tar, its first byte there, its size in
      bytes, and its label.
  """

  tars: Sequence[str]
  members: np.ndarray

  def __len__(self) -> int:
    return len(self.members)

  def _read_range(self, tar: int, offset: int, size: int) -> bytes:
    try:
      return tar_members.read_range(self.tars[tar], offset, size)
    except OSError as error:
      raise BadExampleError(f'{self.tars[tar]} cannot be read: {error.strerror}.') from None

  def read(self, i: int) -> Example:
    tar, offset, size, label = self.members[i].tolist()
    return self._read_range(tar, offset, size), np.int32(label)

  def name(self, i: int) -> str:
    tar, offset, _, _ = self.members[i].tolist()
    header = self._read_range(tar, offset - 512, 100)  # it begins with the name
    return header.split(b'\0')[0].decode('utf-8', 'surrogateescape')

  def take(self, indices: Indices) -> 'TarExamples':
    return TarExamples(self.tars, self.members[indices])


@dataclasses.dataclass(frozen=True)
class SourceExamples:
  """Some examples of a data source.

  Attributes:
    open_source: returns it; workers call it, too, if the examples are sent to them.
    indices: of the examples there.
  """

  open_source: Callable[[], Source]
  indices: Indices

  def __len__(self) -> int:
    return len(self.indices)

  def read(self, i: int) -> Example:
    return self.open_source().read(int(self.indices[i]))

  def name(self, i: int) -> str:
    return self.open_source().describe(int(self.indices[i]))

  def take(self, indices: Indices) -> 'SourceExamples':
    return SourceExamples(self.open_source, np.asarray(self.indices)[indices])
