"""The order of examples, batches, and their way to the devices.

Promise: which example, with which augmentation, sits at which place of which global batch is a
pure function of (seed, step). The training data is one endless sequence of positions; the batch
at step t holds the positions [t * batch_size, (t + 1) * batch_size). So there is no iterator
state to save, and the numbers of processes, devices and threads change nothing.
"""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import grain.python as grain
import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax.data.images import open_image
from vit_jax.data.sources import Source
from vit_jax.parallel import mesh as mesh_lib

Batch = dict[str, jax.Array]

# More threads wait for the interpreter's lock and slow each other down: on 16 cores, CIFAR-10 to
# 224 px, images/s were 828 with 1 thread, 1,149 with 2, 1,140 with 3, 934 with 4, 873 with 16.
_MOST_THREADS = 3


def example_order(size: int, seed: int) -> grain.MapDataset:
  """Position in the endless sequence -> index of an example; each epoch is a new permutation.

  Grain computes the permutation index by index, so its memory does not grow with the data.
  """
  return grain.MapDataset.range(size).seed(seed).shuffle().repeat()


@dataclasses.dataclass(frozen=True)
class _TrainExamples:
  """This process's rows of all global batches, one after the other (a Grain source)."""

  source: Source
  order: grain.MapDataset
  transform: Callable[[np.ndarray, np.random.Generator], np.ndarray]
  seed: int
  batch_size: int
  rows: np.ndarray
  total_steps: int

  def __len__(self) -> int:
    return self.total_steps * len(self.rows)

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    step, row = divmod(int(i), len(self.rows))
    position = step * self.batch_size + int(self.rows[row])
    index = self.order[position]
    stored, label = self.source.read(index)
    image = open_image(stored, self.source.describe(index)).pixels(None)
    rng = np.random.Generator(np.random.Philox(key=[self.seed, position]))
    return {'image': self.transform(image, rng), 'label': label}


@dataclasses.dataclass(frozen=True)
class _TestExamples:
  """This process's rows of all test batches; rows past the end are masked (a Grain source)."""

  source: Source
  transform: Callable[[np.ndarray], np.ndarray]
  batch_size: int
  rows: np.ndarray

  def __len__(self) -> int:
    return -(-self.source.size // self.batch_size) * len(self.rows)

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    batch, row = divmod(int(i), len(self.rows))
    index = batch * self.batch_size + int(self.rows[row])
    mask = index < self.source.size
    stored, label = self.source.read(index if mask else 0)
    image = open_image(stored, self.source.describe(index)).pixels(None)
    return {'image': self.transform(image), 'label': label, 'mask': np.bool_(mask)}


def _batches(
    examples: Any, first: int, mesh: Mesh, batch_size: int, rows: np.ndarray, threads: int
) -> Iterator[Batch]:
  """Reads on threads, keeps two batches on their way to the devices ahead of the consumer."""
  threads = threads or min(os.cpu_count() or 1, _MOST_THREADS)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(64, 4 * threads))
  dataset = grain.MapDataset.source(examples)[first:]
  dataset = dataset.to_iter_dataset(options).batch(len(rows), drop_remainder=True)
  ahead: collections.deque[Batch] = collections.deque()
  for local in dataset:
    ahead.append(mesh_lib.place_batch(local, mesh, batch_size, rows))
    if len(ahead) > 2:
      yield ahead.popleft()
  yield from ahead


def train_batches(
    source: Source,
    transform: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    mesh: Mesh,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    total_steps: int,
    threads: int = 0,
) -> Iterator[Batch]:
  """Global batches of the steps [first_step, total_steps).

  Args:
    source: the examples.
    transform: (image, rng) -> (H, W, 3) uint8; all its randomness must come from the rng.
    mesh: the devices.
    seed: of order and augmentation.
    batch_size: global.
    first_step, total_steps: the steps to read for.
    threads: that read and transform; 0 means one a core, at most three.

  Yields:
    {'image': (B, H, W, 3) uint8, 'label': (B,) int32 or (B, C) uint8}
  """
  rows = mesh_lib.local_rows(mesh, batch_size)
  order = example_order(source.size, seed)
  examples = _TrainExamples(source, order, transform, seed, batch_size, rows, total_steps)
  return _batches(examples, first_step * len(rows), mesh, batch_size, rows, threads)


def test_batches(
    source: Source,
    transform: Callable[[np.ndarray], np.ndarray],
    mesh: Mesh,
    *,
    batch_size: int,
    threads: int = 0,
) -> Iterator[Batch]:
  """All examples once, in order; the last batch is padded and 'mask' (B,) bool says with what."""
  rows = mesh_lib.local_rows(mesh, batch_size)
  examples = _TestExamples(source, transform, batch_size, rows)
  return _batches(examples, 0, mesh, batch_size, rows, threads)
