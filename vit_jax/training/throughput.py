"""How fast a run goes: images per second, share of peak, waiting for data; of all processes."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax.hardware import peak_flops
from vit_jax.training.phases import PhaseTimer, between
from vit_jax.training.program import Program


class ThroughputMeter:
  """The speed of the steps between two measurements, without evaluations and checkpoints."""

  def __init__(self, program: Program, first_step: int, timer: PhaseTimer):
    self._program, self._timer = program, timer
    self._interval_step, self._before = first_step, timer.seconds()

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
    seconds = self._timer.seconds()
    spent = between(self._before, seconds)
    waiting = spent.get('data_wait', 0.0)
    elapsed = max(spent.get('step', 0.0) + waiting, 1e-9)
    share = np.float32(waiting / elapsed)
    num_images = (step - self._interval_step) * self._program.step.batch_size
    waits, bad_reads = map(
      np.ravel, multihost_utils.process_allgather((share, np.int32(num_bad_reads)))
    )
    self._interval_step, self._before = step, seconds
    metrics = {'train/images_per_second': num_images / elapsed}
    mesh = self._program.mesh
    if (peak := peak_flops(mesh.devices.flat[0].device_kind, mesh.size)) is not None:
      flops = self._program.train_flops * num_images / self._program.step.batch_size
      metrics['train/model_flops_utilization'] = flops / elapsed / peak
    metrics['train/data_wait/mean'] = float(np.mean(waits))
    metrics['train/data_wait/max'] = float(np.max(waits))
    metrics['train/data_wait/slowest_process'] = int(np.argmax(waits))
    if np.sum(bad_reads):
      metrics['train/bad_examples'] = int(np.sum(bad_reads))
    memory = jax.local_devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in memory:
      metrics['train/device_memory_peak'] = memory['peak_bytes_in_use']
    return metrics
