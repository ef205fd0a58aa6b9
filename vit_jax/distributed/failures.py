"""Which hosts failed in which start of a run, so that one that fails again is named."""

import contextlib
import dataclasses
import socket
import threading
import urllib.parse
from collections.abc import Iterator

from etils import epath

from vit_jax.distributed import processes
from vit_jax.errors import MachineError

_WRITE_SECONDS = 5  # for a record, which may have to go to a storage that hangs


@dataclasses.dataclass(frozen=True)
class FailureLog:
  """One file for each failure, `<start>-<host>.txt`, whose content is the reason.

  Attributes:
    folder: shared by all processes; created when it is needed.
    start: the number of this start of the run.
  """

  folder: epath.Path
  start: int

  def record(self, host: str, reason: str) -> None:
    """Records a failure of this start; several processes may. Gives up after 5 s."""

    def write() -> None:
      with contextlib.suppress(OSError):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f'{self.start}-{urllib.parse.quote(host, safe="")}.txt').write_text(reason)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(_WRITE_SECONDS)

  def _hosts(self, start: int) -> set[str]:
    with contextlib.suppress(OSError):
      files = self.folder.glob(f'{start}-*.txt')
      return {urllib.parse.unquote(file.stem.partition('-')[2]) for file in files}
    return set()

  def warnings(self) -> list[str]:
    """A line for each host that failed in both of the last two starts."""
    failed = self._hosts(self.start - 1) & self._hosts(self.start - 2)
    return [
      f'warning: {host} failed in the last two starts of this run; replace it, or start without it '
      f'(the reasons are in {self.folder})'
      for host in sorted(failed)
    ]

  @contextlib.contextmanager
  def recording(self) -> Iterator[None]:
    """Inside, the loss of a process and a fault of a device or the network are recorded."""
    processes.record_losses(self.record)
    try:
      yield
    except MachineError as error:
      if error.is_of_host:
        self.record(socket.gethostname(), str(error))
      raise
