"""Where the processes of a run meet as they save: the failure of one is known to all at once."""

from collections.abc import Callable

import jax
from jax._src import distributed  # Orbax's barriers use the same client; there is no public one

_FOLDER = 'vit_jax/save'
# In the names of Orbax's barriers: when this process has written its files; at the beginning and
# the end of a save.
_WRITTEN, _END = 'async_write_complete', 'set_value'


class PeerSaveError(OSError):
  """Another process could not write its part of a checkpoint."""


class SaveBarrier:
  """A `barrier_sync_fn` for Orbax, whose barriers a process that failed never reaches.

  Orbax meets when all have written, when process 0 has committed, and at the end. A process that
  fails goes to the end at once, and the others would wait for it for `timeout_secs`. Here any two
  barriers meet; processes that find another one ahead of them fail, too, and meet it at the end.
  """

  def __init__(self, on_written: Callable[[], None]):
    """`on_written`: called when this process has written its files; if it fails, the save fails."""
    self._on_written = on_written
    self._count = 0  # of meetings, the same on all processes

  def __call__(self, *, key: str, timeout_ms: int) -> None:
    """Waits for all processes.

    Raises:
      PeerSaveError: when another process has failed.
      jax.errors.JaxRuntimeError: after the timeout.
    """
    client, process = distributed.global_state.client, jax.process_index()
    assert client is not None  # in a run of several processes
    if _WRITTEN in key:
      self._on_written()
    while True:
      folder, self._count = f'{_FOLDER}/{self._count}', self._count + 1
      client.key_value_set(f'{folder}/{process}', key)
      client.wait_at_barrier(folder, timeout_ms)
      keys = {value for _, value in client.key_value_dir_get(f'{folder}/')}
      if self._count > 1:  # all have read the one before
        client.key_value_delete(f'{_FOLDER}/{self._count - 2}/{process}')
      if len(keys) == 1:
        return
      if _END not in key:
        raise PeerSaveError('another process could not write its part')
