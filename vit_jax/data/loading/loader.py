"""Reads examples in order, in batches, and places the batches on the devices.

Promise: which example, with which augmentation, is in which row of which global batch is a pure
function of (seed, step). The training data is one endless sequence of positions; the batch of step
t holds the positions [t * batch_size, (t + 1) * batch_size). So there is no iterator state to save,
and the numbers of processes, devices, workers and threads change nothing.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import queue
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain.python as grain
import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax.config import DataConfig
from vit_jax.data.loading.reader import ReadConfig, Reader, make_reader
from vit_jax.data.loading.shared_memory import Slot, anonymous_file, map_slots, slot_bytes
from vit_jax.data.loading.workers import SharedStream, Worker
from vit_jax.data.sources import Source
from vit_jax.distributed import sharding
from vit_jax.errors import UserError
from vit_jax.hardware import num_cores

Batch = dict[str, jax.Array]

# More threads contend for the interpreter's lock: on 16 cores an earlier pipeline read 828 images/s
# with 1 thread, 1,149 with 2, 1,140 with 3, 934 with 4, 873 with 16. Worker processes do not.
_MAX_THREADS = 3
_MAX_WORKERS = 16  # by default: a host may run several processes that each start as many
_CHUNK = 32  # rows of one task: small enough to balance a batch over the workers
_NUM_PREFETCHED = 2  # batches placed on the devices ahead of the consumer
_NUM_READING = 3  # batches being read meanwhile
_NUM_SLOTS = _NUM_READING + _NUM_PREFETCHED + 1  # and the one handed to the consumer
_WINDOW = 1024  # positions within which the sources of a mixture are shuffled
_MIN_EXAMPLES_TO_CHECK = 1000  # of fewer examples the share of bad ones says little


def shuffle_components(
  indices: np.ndarray, component_sizes: Sequence[int], seed: int, window: int
) -> np.ndarray:
  """Shuffles from which source of a mixture each position of a window draws.

  Sources that take turns would never have two of their examples side by side if they are the
  rarer one, and Mixup combines neighbors. Each source keeps the order of its examples.

  Args:
    indices: (N,) of the examples at the positions of the window, of all sources in turn.
    component_sizes: of the sources, in the order of their indices.
    seed: of the run.
    window: number of the window.

  Returns:
    (N,) the same indices in another order.
  """
  components = np.searchsorted(np.cumsum(component_sizes), indices, side='right')
  random = np.random.Philox(key=[seed, window]).random_raw(len(indices))
  shuffled = components[np.argsort(random, kind='stable')]
  result = np.empty_like(indices)
  result[np.argsort(shuffled, kind='stable')] = indices[np.argsort(components, kind='stable')]
  return result


class _MixtureOrder:
  """Maps positions to indices of a mixture: exact proportions in each window of positions."""

  def __init__(self, in_turn: grain.MapDataset, source: Source, seed: int):
    self._in_turn, self._sizes, self._seed = in_turn, source.component_sizes, seed
    self._window = functools.lru_cache(16)(self._shuffle_window)

  def _shuffle_window(self, window: int) -> np.ndarray:
    first = window * _WINDOW
    indices = np.array([self._in_turn[i] for i in range(first, first + _WINDOW)])
    return shuffle_components(indices, self._sizes, self._seed, window)

  def __getitem__(self, position: int) -> int:
    window, place = divmod(position, _WINDOW)
    return int(self._window(window)[place])


def example_order(source: Source, seed: int) -> grain.MapDataset | _MixtureOrder:
  """Maps positions in the endless sequence to indices of examples; each epoch is a permutation.

  Grain computes the permutation index by index (a Feistel network), so its memory does not grow
  with the data. A weighted mixture interleaves the permutations of its sources at random, but in
  exact proportion in each 1,024 positions.
  """
  if not source.weights:
    return grain.MapDataset.range(source.size).seed(seed).shuffle().repeat()
  stops = np.cumsum(source.component_sizes)
  orders = [
    grain.MapDataset.range(int(stop) - size, int(stop)).seed(seed + 2**16 * i).shuffle().repeat()
    for i, (size, stop) in enumerate(zip(source.component_sizes, stops, strict=True))
  ]
  total = sum(source.weights)
  in_turn = grain.MapDataset.mix(orders, [weight / total for weight in source.weights])
  return _MixtureOrder(in_turn, source, seed)


@dataclasses.dataclass(frozen=True)
class Stream:
  """A sequence of batches that a `DataLoader` can read."""

  reader: Reader  # of single examples
  batch_size: int  # global
  order: grain.MapDataset | _MixtureOrder | None = (
    None  # position -> index; None: every example once, in order
  )
  config: ReadConfig | None = None  # of `reader`; worker processes need it
  max_bad_fraction: float = 1.0  # a larger share of bad examples ends the run

  @property
  def num_batches(self) -> int:
    """The number of batches that hold every example once."""
    return -(-self.reader.source.size // self.batch_size)

  def example_index(self, position: int) -> int:
    """The index of the example at a position; -1 for the padding of the last test batch."""
    if self.order is None:
      return position if position < self.reader.source.size else -1
    index = self.order[position]
    assert index is not None  # no filters
    return int(index)


def open_stream(
  config: ReadConfig, batch_size: int, source: Source | None = None, max_bad_fraction: float = 1.0
) -> Stream:
  """Opens a stream for training if the config has augmentation, else for tests.

  `source` is the one that the config names, if it is already open. Raises `UserError` like
  `open_source`.
  """
  reader = make_reader(config, source)
  order = example_order(reader.source, config.seed) if config.augment is not None else None
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
  return {
    'train': open_stream(train_config, batch_size, train, config.max_bad_fraction),
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

  def __init__(self, streams: Mapping[str, Stream], mesh: Mesh, workers: int = 0, threads: int = 0):
    """Starts `workers` processes; if 0, `threads` threads (0: one a core, at most three)."""
    self._streams, self._mesh = streams, mesh
    self._rows = {
      name: sharding.local_rows(mesh, stream.batch_size) for name, stream in streams.items()
    }
    self.bad_examples: dict[str, dict[int, str]] = {name: {} for name in streams}
    self.bad_reads = dict.fromkeys(streams, 0)
    self.num_workers = workers
    self._workers: list[Worker] = []
    self._idle_workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    self._slots = self._make_slots()
    threads = workers or threads or min(num_cores(), _MAX_THREADS)
    self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix='data')

  def _make_slots(self) -> dict[str, list[Slot]]:
    """Allocates the slots and starts the worker processes, which share them."""
    slots, shared = {}, []
    with contextlib.ExitStack() as files:
      for name, stream in self._streams.items():
        shapes, rows, file = stream.reader.shapes, len(self._rows[name]), -1
        if self.num_workers:
          file = anonymous_file(_NUM_SLOTS * slot_bytes(shapes, rows))
          files.callback(os.close, file)  # the mappings keep it open
          if stream.config is None:
            raise ValueError(f'The stream {name!r} needs a ReadConfig for worker processes.')
          fingerprint = stream.reader.source.fingerprint
          shared.append(SharedStream(stream.config, fingerprint, rows, _NUM_SLOTS, file))
        slots[name] = map_slots(file, shapes, rows, _NUM_SLOTS)
      for _ in range(self.num_workers):
        self._workers.append(Worker(shared))
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
    for worker in self._workers:
      worker.close()
    self._pool.shutdown(wait=True)
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
    self, name: str, steps: Iterable[int], free_slots: collections.deque[int]
  ) -> Generator[int, None, None]:
    """Reads a batch into every free slot; yields the slots in order, each once it is complete."""
    remaining_steps = iter(steps)
    reading: collections.deque[tuple[int, list[concurrent.futures.Future]]] = collections.deque()
    try:
      while True:
        while free_slots and (step := next(remaining_steps, None)) is not None:
          slot, first_rows = free_slots.popleft(), range(0, len(self._rows[name]), _CHUNK)
          tasks = [self._pool.submit(self._read_chunk, name, step, slot, i) for i in first_rows]
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

  def _read_chunk(self, name: str, step: int, slot: int, first_row: int) -> dict[int, str]:
    """Reads a chunk of this process's rows, in this thread or a worker; returns bad examples."""
    stream, rows = self._streams[name], self._rows[name][first_row : first_row + _CHUNK]
    positions = [step * stream.batch_size + int(row) for row in rows]
    indices = [stream.example_index(position) for position in positions]
    if not self._workers:
      return stream.reader.read_rows(indices, positions, first_row, self._slots[name][slot])
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
          f'{num_bad / num_read:.1%}, more than max_bad_fraction={limit:.1%}; the first one: '
          f'{next(iter(self.bad_examples[name].values()))}'
        )
      yield slot

  def _prefetch(
    self, name: str, slots: Iterable[int], free_slots: collections.deque[int]
  ) -> Iterator[Batch]:
    """Places batches on the devices, `_NUM_PREFETCHED` ahead of the consumer; frees their slots."""
    placed: collections.deque[tuple[int, Batch]] = collections.deque()

    def pop() -> Batch:
      slot, batch = placed.popleft()
      jax.block_until_ready(batch)  # until then its slot must not be overwritten
      free_slots.append(slot)
      return batch

    for slot in slots:
      placed.append((slot, self._place(name, slot)))
      if len(placed) > _NUM_PREFETCHED:
        yield pop()
    while placed:
      yield pop()

  def _place(self, name: str, slot: int) -> Batch:
    stream = self._streams[name]
    local_batch = dict(self._slots[name][slot])
    if stream.order is not None:
      del local_batch['mask']
    return sharding.place_batch(local_batch, self._mesh, stream.batch_size, self._rows[name])
