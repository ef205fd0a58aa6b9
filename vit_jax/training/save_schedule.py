"""When a run saves a checkpoint: by steps, and by time."""

import time

from vit_jax.config import CheckpointConfig
from vit_jax.distributed.processes import broadcast_from_process_0


class SaveSchedule:
  """The checkpoints that the config asks for; all processes ask for the same steps.

  Args:
    config: with `every` set.
    log_every: steps between two looks at the clock, which is that of process 0.
  """

  def __init__(self, config: CheckpointConfig, log_every: int):
    self._config, self._log_every = config, log_every
    self._last_save = time.monotonic()

  def is_due(self, step: int) -> bool:
    """Whether to save the state after this step."""
    every, keep_every = self._config.every, self._config.keep_every
    is_due = step % every == 0 or bool(keep_every and step % keep_every == 0)
    if not is_due and self._config.every_minutes and step % self._log_every == 0:
      minutes = (time.monotonic() - self._last_save) / 60
      is_due = bool(broadcast_from_process_0(minutes >= self._config.every_minutes))
    if is_due:
      self._last_save = time.monotonic()
    return is_due
