"""Memory for batches that worker processes write into and devices read from.

A slot holds this process's part of a global batch. The slots of workers lie in an anonymous file
that has no name and vanishes with its last process, however that ends.
"""

import math
import mmap
import os
import tempfile
from collections.abc import Mapping

import numpy as np

Shapes = Mapping[str, tuple[tuple[int, ...], type]]
_ALIGNMENT = 4096  # bytes


def anonymous_file(size: int) -> int:
  """A file in memory without a name: its descriptor, to be inherited by workers."""
  if hasattr(os, 'memfd_create'):
    file = os.memfd_create('batches')
  else:
    with tempfile.TemporaryFile() as named:
      file = os.dup(named.fileno())
  os.ftruncate(file, size)
  return file


def slot_bytes(shapes: Shapes, rows: int) -> int:
  """Bytes of one slot: each array begins at a page."""
  return sum(
    -(-rows * math.prod(shape) * np.dtype(dtype).itemsize // _ALIGNMENT) * _ALIGNMENT
    for shape, dtype in shapes.values()
  )


def slots_in(
  file: int, shapes: Shapes, rows: int, count: int, offset: int = 0
) -> list[dict[str, np.ndarray]]:
  """`count` slots of `rows` rows in a file, from `offset` (bytes): {'image': (rows, …), …}."""
  memory = mmap.mmap(file, offset + count * slot_bytes(shapes, rows))
  slots = []
  for _ in range(count):
    slot = {}
    for name, (shape, dtype) in shapes.items():
      flat = np.frombuffer(memory, dtype, rows * math.prod(shape), offset)
      slot[name] = flat.reshape(rows, *shape)
      offset += -(-flat.nbytes // _ALIGNMENT) * _ALIGNMENT
    slots.append(slot)
  return slots
