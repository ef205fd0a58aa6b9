"""Memory for batches that worker processes write and the parent places on the devices.

A slot holds the rows of a global batch that belong to this process. The slots of a stream that
workers share are in an anonymous file, which vanishes with its last process, however that ends.
"""

import math
import mmap
import os
import tempfile
from collections.abc import Mapping

import numpy as np

Shapes = Mapping[str, tuple[tuple[int, ...], type[np.generic]]]  # name -> (shape, dtype) of a row
Slot = dict[str, np.ndarray]  # name -> (rows, …)
_ALIGNMENT = 4096  # bytes


def anonymous_file(size: int) -> int:
  """Creates a file in memory without a name; returns its descriptor, for workers to inherit."""
  if hasattr(os, 'memfd_create'):
    file = os.memfd_create('batches')
  else:
    with tempfile.TemporaryFile() as named:
      file = os.dup(named.fileno())
  os.ftruncate(file, size)
  return file


def slot_bytes(shapes: Shapes, rows: int) -> int:
  """The size of one slot in bytes; each array begins at a page."""
  return sum(
    -(-rows * math.prod(shape) * np.dtype(dtype).itemsize // _ALIGNMENT) * _ALIGNMENT
    for shape, dtype in shapes.values()
  )


def map_slots(file: int, shapes: Shapes, rows: int, count: int) -> list[Slot]:
  """Maps the slots of a file, {'image': (rows, …), …} each; file -1: memory that is not shared."""
  memory, offset, slots = mmap.mmap(file, count * slot_bytes(shapes, rows)), 0, []
  for _ in range(count):
    slot = {}
    for name, (shape, dtype) in shapes.items():
      flat: np.ndarray = np.frombuffer(memory, dtype, rows * math.prod(shape), offset)
      slot[name] = flat.reshape(rows, *shape)
      offset += -(-flat.nbytes // _ALIGNMENT) * _ALIGNMENT
    slots.append(slot)
  return slots
