"""Reads examples in order, in batches, and places the batches on the devices.

Promise: which example, with which augmentation, is in which row of which global batch is a pure
function of (seed, step). The training data is one endless sequence of positions; batch b holds the
positions [b * batch_size, (b + 1) * batch_size), and step t uses batch t, or a later one where
batches are skipped (skipping.py). So there is no iterator state to save,
and the numbers of processes, devices, workers and threads change nothing.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import os
import queue
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax.config import DataConfig
from vit_jax.data.loading.order import Order, class_balanced_order, example_order
from vit_jax.data.loading.reader import ReadConfig, Reader, make_reader
from vit_jax.data.loading.schedule import NUM_PREFETCHED, make_schedule
from vit_jax.data.loading.shared_memory import Slot, anonymous_file, map_slots, slot_bytes
from vit_jax.data.loading.skipping import Ranges, batch_numbers
from vit_jax.data.loading.workers import TASK_LIMIT, SharedStream, Worker
from vit_jax.data.sources import Source
from vit_jax.distributed import sharding
from vit_jax.errors import UserError
from vit_jax.hardware import num_cores

Batch = dict[str, jax.Array]

# More threads contend for the interpreter's lock: on 16 cores an earlier pipeline read 828 images/s
# with 1 thread, 1,149 with 2, 1,140 with 3, 934 with 4, 873 with 16. Worker processes do not.
_MAX_THREADS = 3
_MAX_WORKERS = 128  # by default
_LOOKUP = 4096  # positions whose examples are looked up at once, which is faster than one by one
_END_SECONDS = 1  # for the tasks of all workers to end
_MIN_EXAMPLES_TO_CHECK = 1000  # of fewer examples the share of bad ones says little


@dataclasses.dataclass(frozen=True)
class Stream:
  """A sequence of batches that a `DataLoader` can read."""

  reader: Reader  # of single examples
  batch_size: int  # global
  order: Order | None = None  # positions -> indices; None: every example once, in order
  config: ReadConfig | None = None  # of `reader`; worker processes need it
  max_bad_fraction: float = 1.0  # a larger share of bad examples ends the run
  rows: tuple[int, ...] | None = None  # without an order: only these examples; None: all
  skipped: Ranges = ()  # batches that are left out

  @property
  def size(self) -> int:
    """The number of examples in a pass over all of them."""
    return self.reader.source.size if self.rows is None else len(self.rows)

  @property
  def num_batches(self) -> int:
    """The number of batches that hold every example once."""
    return -(-self.size // self.batch_size)

  def example_indices(self, positions: np.ndarray) -> np.ndarray:
    """The (N,) indices of the examples at positions; -1 for the padding of the last test batch."""
    if self.order is not None:
      return self.order(positions)
    indices = positions
    if self.rows is not None:
      indices = np.asarray(self.rows)[np.minimum(positions, self.size - 1)]
    return np.where(positions < self.size, indices, -1)


def open_stream(
  config: ReadConfig,
  batch_size: int,
  source: Source | None = None,
  max_bad_fraction: float = 1.0,
  class_balanced: bool = False,
) -> Stream:
  """Opens a stream for training if the config has augmentation, else for tests.

  `source` is the one that the config names, if it is already open. Raises `UserError` like
  `open_source`, or if its classes cannot be balanced.
  """
  reader, order = make_reader(config, source), None
  if config.augment is not None:
    make_order = class_balanced_order if class_balanced else example_order
    order = make_order(reader.source, config.seed)
  return Stream(reader, batch_size, order, config, max_bad_fraction)


def open_streams(
  config: DataConfig, train: Source, test: Source, batch_size: int, test_batch_size: int, seed: int
) -> dict[str, Stream]:
  """Opens the streams of a run, {'train', 'test'}, from its sources."""
  train_config = ReadConfig(
    config.train.source,
    config.train.split,
    config.height_width,
    seed,
    config.channels,
    config.augment,
    config.test.preprocessing,
    config.on_bad_example,
  )
  test_config = dataclasses.replace(
    train_config, source=config.test_source, split=config.test.split, augment=None
  )
  train_stream = open_stream(
    train_config, batch_size, train, config.max_bad_fraction, config.class_balanced
  )
  return {
    'train': dataclasses.replace(train_stream, skipped=config.skip_batches),
    'test': open_stream(test_config, test_batch_size, test, config.max_bad_fraction),
  }


def num_workers(config: DataConfig) -> int:
  """The number of worker processes: by default one a core, none for data in memory."""
  if config.workers >= 0:
    return config.workers
  is_in_memory = config.train.source == 'digits'
  return 0 if is_in_memory or os.name != 'posix' else min(num_cores(), _MAX_WORKERS)


class DataLoader:
  """Reads streams with threads or worker processes and places their batches on the devices.

  A context manager that ends its threads and processes.

  Attributes:
    bad_examples: {stream: {index: error message}} of the examples that could not be read.
    bad_reads: {stream: how often such an example was read}.
    num_workers: worker processes.
  """

  def __init__(
    self,
    streams: Mapping[str, Stream],
    mesh: Mesh,
    workers: int = 0,
    threads: int = 0,
    task_limit: float = TASK_LIMIT,
  ):
    """Starts `workers` processes; if 0, `threads` threads (0: one a core, at most three).

    A process that ends, or takes more than `task_limit` seconds for a task of at most 32 examples,
    is replaced once.
    """
    self._streams, self._mesh = streams, mesh
    self._rows = {
      name: sharding.local_rows(mesh, stream.batch_size) for name, stream in streams.items()
    }
    self.bad_examples: dict[str, dict[int, str]] = {name: {} for name in streams}
    self.bad_reads = dict.fromkeys(streams, 0)
    self.num_workers = workers
    self._workers: list[Worker] = []
    self._idle_workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    threads = workers or threads or min(num_cores(), _MAX_THREADS)
    self._schedules = {name: make_schedule(len(rows), threads) for name, rows in self._rows.items()}
    self._files = contextlib.ExitStack()  # of the slots, which a replaced worker opens again
    self._slots = self._make_slots(task_limit)
    self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix='data')

  def _make_slots(self, task_limit: float) -> dict[str, list[Slot]]:
    """Allocates the slots and starts the worker processes, which share them."""
    slots, shared = {}, []
    for name, stream in self._streams.items():
      shapes, rows, file = stream.reader.shapes, len(self._rows[name]), -1
      num_slots = self._schedules[name].num_slots
      if self.num_workers:
        file = anonymous_file(num_slots * slot_bytes(shapes, rows))
        self._files.callback(os.close, file)
        if stream.config is None:
          raise ValueError(f'The stream {name!r} needs a ReadConfig for worker processes.')
        fingerprint = stream.reader.source.fingerprint
        shared.append(SharedStream(stream.config, fingerprint, rows, num_slots, file))
      slots[name] = map_slots(file, shapes, rows, num_slots)
    sources = [stream.reader.source for stream in self._streams.values()]
    for number in range(self.num_workers):
      self._workers.append(Worker(number, shared, sources, task_limit))
      self._idle_workers.put(self._workers[-1])
    return slots

  def __enter__(self) -> 'DataLoader':
    return self

  def __exit__(self, *unused: Any) -> None:
    self.close()

  def close(self) -> None:
    """Ends all threads and processes; discards what is being read."""
    self._pool.shutdown(wait=False, cancel_futures=True)
    for worker in self._workers:
      worker.stop()
    deadline = time.monotonic() + _END_SECONDS
    for worker in self._workers:
      worker.close(max(deadline - time.monotonic(), 0))
    self._pool.shutdown(wait=True)
    self._files.close()
    self._slots = {}  # frees the shared memory

  def batches(
    self, name: str, first_step: int = 0, last_step: int | None = None
  ) -> Iterator[Batch]:
    """Yields the global batches of the steps [first_step, last_step) of a stream, on the devices.

    Without `last_step`, every example is read once (tests). Only one pass over a stream may run at
    a time: its slots are shared by all passes.

    Yields:
      {'image': (B, H, W, C) uint8, 'label': (B,) int32 or (B, num_classes) uint8}; in tests also
      'mask' (B,) bool, False for padding and bad examples.

    Raises:
      UserError: for an example that cannot be read, or too many of them.
    """
    stop = self._streams[name].num_batches if last_step is None else last_step
    free_slots = collections.deque(range(len(self._slots[name])))
    with contextlib.closing(self._read(name, range(first_step, stop), free_slots)) as slots:
      yield from self._prefetch(name, self._check_bad_fraction(name, slots), free_slots)

  def _read(
    self, name: str, steps: range, free_slots: collections.deque[int]
  ) -> Generator[int, None, None]:
    """Reads a batch into every free slot; yields the slots in order, each once it is complete."""
    remaining = self._look_up(name, steps)
    chunk, num_rows = self._schedules[name].chunk, len(self._rows[name])
    reading: collections.deque[tuple[int, list[concurrent.futures.Future]]] = collections.deque()
    try:
      while True:
        while free_slots and (batch := next(remaining, None)) is not None:
          slot, tasks = free_slots.popleft(), []
          for i in range(0, num_rows, chunk):
            indices, positions = (values[i : i + chunk].tolist() for values in batch)
            tasks.append(self._pool.submit(self._read_chunk, name, slot, indices, positions, i))
          reading.append((slot, tasks))
        if not reading:
          return
        slot, tasks = reading.popleft()
        for task in tasks:
          bad = task.result()
          self.bad_examples[name] |= bad
          self.bad_reads[name] += len(bad)
        yield slot
    finally:
      for _, tasks in reading:
        for task in tasks:
          task.cancel()

  def _look_up(self, name: str, steps: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the indices and positions, (rows,) each, of this process's examples of each step."""
    stream, rows = self._streams[name], self._rows[name]
    steps_at_once = max(_LOOKUP // max(len(rows), 1), 1)
    for first in range(0, len(steps), steps_at_once):
      block = np.array(steps[first : first + steps_at_once], np.int64)
      positions = batch_numbers(block, stream.skipped)[:, None] * stream.batch_size + rows
      indices = stream.example_indices(positions.ravel()).reshape(positions.shape)
      yield from zip(indices, positions, strict=True)

  def _read_chunk(
    self, name: str, slot: int, indices: list[int], positions: list[int], first_row: int
  ) -> dict[int, str]:
    """Reads a chunk of this process's rows, in this thread or a worker; returns bad examples."""
    if not self._workers:
      reader, batch = self._streams[name].reader, self._slots[name][slot]
      return reader.read_rows(indices, positions, first_row, batch)
    worker = self._idle_workers.get()
    try:
      return worker.read(list(self._streams).index(name), slot, indices, positions, first_row)
    finally:
      self._idle_workers.put(worker)

  def _check_bad_fraction(self, name: str, slots: Iterable[int]) -> Iterator[int]:
    """Passes slots on, until too many of the examples of this pass are bad."""
    stream, bad_reads_before = self._streams[name], self.bad_reads[name]
    size, limit = stream.reader.source.size, stream.max_bad_fraction
    for num_batches, slot in enumerate(slots, start=1):
      num_read = num_batches * len(self._rows[name])
      num_bad = self.bad_reads[name] - bad_reads_before
      if num_bad / num_read > limit and num_read >= min(size, _MIN_EXAMPLES_TO_CHECK):
        raise UserError(
          f'{num_bad:,} of {num_read:,} examples of {stream.reader.source.name} cannot be read: '
          f'{num_bad / num_read:.1%}, more than --config.data.max_bad_fraction={limit:g}; the '
          f'first one: {next(iter(self.bad_examples[name].values()))}'
        )
      yield slot

  def _prefetch(
    self, name: str, slots: Iterable[int], free_slots: collections.deque[int]
  ) -> Iterator[Batch]:
    """Places batches on the devices, `NUM_PREFETCHED` ahead of the consumer; frees their slots."""
    placed: collections.deque[tuple[int, Batch]] = collections.deque()

    def pop() -> Batch:
      slot, batch = placed.popleft()
      jax.block_until_ready(batch)  # until then its slot must not be overwritten
      free_slots.append(slot)
      return batch

    for slot in slots:
      placed.append((slot, self._place(name, slot)))
      if len(placed) > NUM_PREFETCHED:
        yield pop()
    while placed:
      yield pop()

  def _place(self, name: str, slot: int) -> Batch:
    stream = self._streams[name]
    local_batch = dict(self._slots[name][slot])
    if stream.order is not None:
      del local_batch['mask']
    return sharding.place_batch(local_batch, self._mesh, stream.batch_size, self._rows[name])
