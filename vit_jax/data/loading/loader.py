"""The order of examples, batches, and their way to the devices.

Promise: which example, with which augmentation, sits at which place of which global batch is a
pure function of (seed, step). The training data is one endless sequence of positions; the batch
at step t holds the positions [t * batch_size, (t + 1) * batch_size). So there is no iterator
state to save, and the numbers of processes, devices, workers and threads change nothing.
"""

import collections
import concurrent.futures
import dataclasses
import os
import queue
from collections.abc import Iterator, Mapping
from typing import Any

import grain.python as grain
import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax.config import DataConfig
from vit_jax.data.loading import shared_memory
from vit_jax.data.loading.reader import ReadConfig, Reader, make_reader
from vit_jax.data.loading.workers import Shared, Worker
from vit_jax.data.sources import Source
from vit_jax.distributed import sharding
from vit_jax.errors import UserError
from vit_jax.hardware import num_cores

Batch = dict[str, jax.Array]

# More threads wait for the interpreter's lock: on 16 cores an earlier pipeline read 828 images/s
# with 1 thread, 1,149 with 2, 1,140 with 3, 934 with 4, 873 with 16. Workers do not.
_MOST_THREADS = 3
_MAX_WORKERS = 16  # by default: a host may run several processes that each start as many
_CHUNK = 32  # rows of one task: short enough to share a batch out evenly
_ON_DEVICES = 2  # batches that are placed ahead of the consumer
_AHEAD = 3  # batches that are being read meanwhile
_JUDGED_FROM = 1000  # examples; before that a share of bad ones says little


def example_order(source: Source, seed: int) -> grain.MapDataset:
  """Position in the endless sequence -> index of an example; each epoch is a new permutation.

  Grain computes the permutation index by index (a Feistel network), so its memory does not grow
  with the data. A weighted mixture draws from the permutations of its parts in fixed proportion.
  """
  if not source.weights:
    return grain.MapDataset.range(source.size).seed(seed).shuffle().repeat()
  ends = np.cumsum(source.component_sizes)
  parts = [
    grain.MapDataset.range(int(end) - size, int(end)).seed(seed + 2**16 * i).shuffle().repeat()
    for i, (size, end) in enumerate(zip(source.component_sizes, ends, strict=True))
  ]
  total = sum(source.weights)
  return grain.MapDataset.mix(parts, [weight / total for weight in source.weights])


@dataclasses.dataclass(frozen=True)
class Stream:
  """Batches to be read: of which examples, in which order.

  Attributes:
    reader: of single examples.
    batch_size: global.
    order: position -> index, for training; None reads every example once, in order (tests).
    recipe: what `reader` was made from, if it is to be read by worker processes.
    max_bad_fraction: the share of bad examples from which on the run is ended.
  """

  reader: Reader
  batch_size: int
  order: grain.MapDataset | None = None
  recipe: ReadConfig | None = None
  max_bad_fraction: float = 1.0

  @property
  def steps(self) -> int:
    """Of tests: how many batches hold every example."""
    return -(-self.reader.source.size // self.batch_size)

  def index(self, position: int) -> int:
    """The example at a position; -1 for the padding of the last test batch."""
    if self.order is not None:
      return self.order[position]
    return position if position < self.reader.source.size else -1


def open_stream(
  recipe: ReadConfig, batch_size: int, source: Source | None = None, max_bad_fraction: float = 1.0
) -> Stream:
  """The stream of a recipe, for training or tests as the recipe is; see `Stream`."""
  reader = make_reader(recipe, source)
  training = recipe.augment is not None
  order = example_order(reader.source, recipe.seed) if training else None
  return Stream(reader, batch_size, order, recipe, max_bad_fraction)


def open_streams(
  config: DataConfig,
  train: Source,
  test: Source,
  *,
  batch_size: int,
  test_batch_size: int,
  seed: int,
) -> dict[str, Stream]:
  """The streams of a run: {'train', 'test'}, of sources that are open already."""
  reads = ReadConfig(
    config.train.source,
    config.train.split,
    config.height_width,
    seed=seed,
    channels=config.channels,
    augment=config.augment,
    on_bad_example=config.on_bad_example,
  )
  test_reads = dataclasses.replace(
    reads,
    source=config.test.source,
    split=config.test.split,
    augment=None,
    crop_fraction=config.crop_fraction,
  )
  return {
    'train': open_stream(reads, batch_size, train, config.max_bad_fraction),
    'test': open_stream(test_reads, test_batch_size, test, config.max_bad_fraction),
  }


def num_workers(config: DataConfig) -> int:
  """How many processes read the data: by default one a core, none for data in memory."""
  if config.workers >= 0:
    return config.workers
  is_in_memory = config.train.source == 'digits'
  return 0 if is_in_memory or os.name != 'posix' else min(num_cores(), _MAX_WORKERS)


class DataLoader:
  """Threads, or worker processes, that read streams and place their batches on the devices.

  Close it (`with DataLoader(…) as feed:`): it ends what it has started.
  """

  def __init__(self, streams: Mapping[str, Stream], mesh: Mesh, workers: int = 0, threads: int = 0):
    """Starts `workers` processes, or `threads` threads (0: one a core, at most three)."""
    self._streams, self._mesh = streams, mesh
    self._rows = {
      name: sharding.local_rows(mesh, stream.batch_size) for name, stream in streams.items()
    }
    self.bad: dict[str, dict[int, str]] = {name: {} for name in streams}  # index -> message
    self.bad_reads = dict.fromkeys(streams, 0)  # how often one came up
    self.num_workers = workers
    self._workers: list[Worker] = []
    self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    self._slots = self._start_workers(workers) if workers else self._own_slots()
    threads = workers or threads or min(num_cores(), _MOST_THREADS)
    self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix='data')

  def _own_slots(self) -> dict[str, list[dict[str, np.ndarray]]]:
    return {
      name: [
        {
          key: np.empty((len(self._rows[name]), *shape), dtype)
          for key, (shape, dtype) in stream.reader.shapes.items()
        }
        for _ in range(_AHEAD + _ON_DEVICES + 1)
      ]
      for name, stream in self._streams.items()
    }

  def _start_workers(self, count: int) -> dict[str, list[dict[str, np.ndarray]]]:
    shared, offset = [], 0
    for name, stream in self._streams.items():
      part = Shared(
        stream.recipe,
        stream.reader.source.fingerprint,
        len(self._rows[name]),
        _AHEAD + _ON_DEVICES + 1,
        offset,
      )
      shared.append(part)
      offset += part.count * shared_memory.slot_bytes(stream.reader.shapes, part.rows)
    file = shared_memory.anonymous_file(offset)
    try:
      for _ in range(count):
        self._workers.append(Worker(shared, file))
        self._idle.put(self._workers[-1])
      return {
        name: shared_memory.slots_in(file, stream.reader.shapes, part.rows, part.count, part.offset)
        for (name, stream), part in zip(self._streams.items(), shared, strict=True)
      }
    finally:
      os.close(file)  # the mappings keep it

  def __enter__(self) -> 'DataLoader':
    return self

  def __exit__(self, *unused: Any) -> None:
    self.close()

  def close(self) -> None:
    """Ends all threads and processes; what is being read is given up."""
    self._pool.shutdown(wait=False, cancel_futures=True)
    for worker in self._workers:
      worker.stop()
    for worker in self._workers:
      worker.close()
    self._pool.shutdown(wait=True)
    self._slots = {}  # gives the shared memory back

  def _read(self, name: str, step: int, slot: int, first: int) -> dict[int, str]:
    """Reads the rows of one chunk, here or in a worker; returns the bad examples met."""
    stream, rows = self._streams[name], self._rows[name][first : first + _CHUNK]
    positions = [step * stream.batch_size + int(row) for row in rows]
    indices = [int(stream.index(position)) for position in positions]
    if not self._workers:
      return stream.reader.read_rows(indices, positions, first, self._slots[name][slot])
    worker = self._idle.get()
    try:
      return worker.read(
        {
          'recipe': list(self._streams).index(name),
          'slot': slot,
          'first': first,
          'indices': indices,
          'positions': positions,
        }
      )
    finally:
      self._idle.put(worker)

  def _start(self, name: str, step: int, slot: int) -> list[concurrent.futures.Future]:
    """Begins to read this process's part of a batch into a slot."""
    return [
      self._pool.submit(self._read, name, step, slot, first)
      for first in range(0, len(self._rows[name]), _CHUNK)
    ]

  def batches(
    self, name: str, first_step: int = 0, last_step: int | None = None
  ) -> Iterator[Batch]:
    """Global batches of the steps [first_step, last_step); of tests, all by default.

    One pass of a stream at a time: both would write into the same slots.

    Yields:
      {'image': (B, H, W, C) uint8, 'label': (B,) int32 or (B, C) uint8}; in tests also 'mask'
      (B,) bool, False for padding.

    Raises:
      UserError: for an example that cannot be read, or too many of them.
    """
    stream, slots = self._streams[name], self._slots[name]
    steps = iter(range(first_step, stream.steps if last_step is None else last_step))
    free = collections.deque(range(len(slots)))
    reading: collections.deque[tuple[int, list[concurrent.futures.Future]]] = collections.deque()
    placed: collections.deque[tuple[int, Batch]] = collections.deque()
    seen, bad_before = 0, self.bad_reads[name]
    try:
      while True:
        while free and (step := next(steps, None)) is not None:
          slot = free.popleft()
          reading.append((slot, self._start(name, step, slot)))
        if reading:
          slot, tasks = reading.popleft()
          for task in tasks:
            self.bad[name] |= (found := task.result())
            self.bad_reads[name] += len(found)
          seen += len(self._rows[name])
          self._judge(name, self.bad_reads[name] - bad_before, seen)
          placed.append((slot, self._place(name, slot)))
        if len(placed) > _ON_DEVICES or (placed and not reading):
          slot, batch = placed.popleft()
          jax.block_until_ready(batch)  # then its slot may be written again
          free.append(slot)
          yield batch
        elif not reading:
          return
    finally:
      for _, tasks in reading:
        for task in tasks:
          task.cancel()

  def _place(self, name: str, slot: int) -> Batch:
    stream = self._streams[name]
    local = dict(self._slots[name][slot])
    if stream.order is not None:
      del local['mask']
    return sharding.place_batch(local, self._mesh, stream.batch_size, self._rows[name])

  def _judge(self, name: str, bad: int, seen: int) -> None:
    """Ends the run when too many of the examples of this pass are bad."""
    stream, share = self._streams[name], bad / seen
    if share > stream.max_bad_fraction and seen >= min(stream.reader.source.size, _JUDGED_FROM):
      raise UserError(
        f'{bad} of {seen:,} examples read from {stream.reader.source.name} cannot be read '
        f'({share:.1%}, at most config.data.max_bad_fraction={stream.max_bad_fraction:.1%} may be); the first '
        f'one: {next(iter(self.bad[name].values()))}'
      )
