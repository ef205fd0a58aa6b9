"""How a batch is divided into tasks, and how many batches are read at once."""

import dataclasses

_MAX_CHUNK = 32  # more rows make no task cheaper, but leave readers idle at the end of a batch
_MIN_CHUNK = 8  # fewer cost the parent too much: it spends 0.1 ms on each task
_TASKS_PER_READER = 6  # one that is read; the others while batches wait for a slow image
_MIN_READING = 3
NUM_PREFETCHED = 2  # batches placed on the devices ahead of the consumer


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How the batches of a stream are read.

  Attributes:
    chunk: rows of one task.
    num_reading: batches that are read at once.
  """

  chunk: int
  num_reading: int

  @property
  def num_slots(self) -> int:
    """Batches in memory: read, placed on the devices, and the one handed to the consumer."""
    return self.num_reading + NUM_PREFETCHED + 1


def make_schedule(rows: int, readers: int) -> Schedule:
  """Chooses a schedule that keeps all readers busy.

  The slots hold at most 5 * rows + max(3 * rows, 48 * readers) rows: at 224 px (150,528 bytes a
  row) 128 readers of batches of 32 rows take 0.9 GB, of batches of 4,096 rows at most 4.9 GB.

  Args:
    rows: of a batch, in this process.
    readers: worker processes or threads.
  """
  chunk = min(max(rows // (2 * readers), _MIN_CHUNK), _MAX_CHUNK, max(rows, 1))
  chunks_per_batch = -(-max(rows, 1) // chunk)
  num_reading = 1 + -(-_TASKS_PER_READER * readers // chunks_per_batch)  # one is the last to end
  return Schedule(chunk, max(num_reading, _MIN_READING))
