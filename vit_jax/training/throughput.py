"""How fast a run goes: images per second, share of peak, waiting for data; of all processes."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax.hardware import peak_flops
from vit_jax.models.flops import train_flops
from vit_jax.training.program import Program


class ThroughputMeter:
  """Times the steps between two measurements."""

  def __init__(self, program: Program, first_step: int):
    self._program = program
    self._interval_start, self._interval_step = time.monotonic(), first_step
    self._waiting_seconds = 0.0

  def restart(self) -> None:
    """Starts the interval anew, as after compiling."""
    self._interval_start, self._waiting_seconds = time.monotonic(), 0.0

  def time_waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; the time until each is ready counts as waiting for data."""
    while True:
      start = time.monotonic()
      batch = next(batches, None)
      self._waiting_seconds += time.monotonic() - start
      if batch is None:
        return
      yield batch

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves evaluations and checkpoints out of the measurement."""
    start, waiting_seconds = time.monotonic(), self._waiting_seconds
    yield
    self._interval_start += time.monotonic() - start
    self._waiting_seconds = waiting_seconds

  def measure(self, step: int, num_bad_reads: int) -> dict[str, float]:
    """The metrics of the interval that ends at `step`; all processes must call it together.

    Returns:
      train/images_per_second; train/model_flops_utilization, the share of the devices' peak that
      the model's own arithmetic takes (where their peak is known); train/data_wait/mean and max,
      the share of time that the processes waited for data, and slowest_process, the index of the
      one that waited longest; train/bad_examples, how often an
      unreadable example came up since the start of this run; train/device_memory_peak, bytes of
      this process's first device (where it tells).
    """
    now = time.monotonic()
    elapsed = max(now - self._interval_start, 1e-9)
    num_images = (step - self._interval_step) * self._program.step.batch_size
    waiting = np.float32(min(self._waiting_seconds / elapsed, 1))
    waits, bad_reads = map(
      np.ravel, multihost_utils.process_allgather((waiting, np.int32(num_bad_reads)))
    )
    self._interval_start, self._interval_step, self._waiting_seconds = now, step, 0.0
    metrics = {'train/images_per_second': num_images / elapsed}
    mesh = self._program.mesh
    if (peak := peak_flops(mesh.devices.flat[0].device_kind, mesh.size)) is not None:
      flops = train_flops(self._program.model, self._program.image_shape[:2])
      flops *= self._program.step.gradients_per_step
      metrics['train/model_flops_utilization'] = num_images / elapsed * flops / peak
    metrics['train/data_wait/mean'] = float(np.mean(waits))
    metrics['train/data_wait/max'] = float(np.max(waits))
    metrics['train/data_wait/slowest_process'] = int(np.argmax(waits))
    if np.sum(bad_reads):
      metrics['train/bad_examples'] = int(np.sum(bad_reads))
    memory = jax.local_devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in memory:
      metrics['train/device_memory_peak'] = memory['peak_bytes_in_use']
    return metrics
