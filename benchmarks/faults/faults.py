"""The faults of the drill: how a process gets each, and how docs/pods.md says that the run ends."""

import dataclasses
import resource
import signal
import time
from collections.abc import Callable, Sequence

from benchmarks.faults.runs import Group

_STOPPED_SECONDS = 25  # more than the silence after which `faulty_main` gives up a process
_STOPPED_ALONE_SECONDS = 3


@dataclasses.dataclass(frozen=True)
class Fault:
  """A fault of one process, the victim.

  Attributes:
    name: in --faults and in the results.
    inject: gives it to the victim of a running group, (group, victim).
    victim: documented exit codes of the victim; a negative one is a signal.
    others: documented exit codes of the others.
    seconds: within which all must have ended.
    environment: the victim's $FAULT (`faulty_main`).
    flags: further flags of the victim.
    from_start: the process has the fault from its start.
    in_training: the moment is after the compilation.
  """

  name: str
  inject: Callable[[Group, int], None]
  victim: Sequence[int]
  others: Sequence[int]
  seconds: float
  environment: str = ''
  flags: Sequence[str] = ()
  from_start: bool = False
  in_training: bool = False

  def is_documented(self, codes: Sequence[int | None], victim: int, phase: str) -> bool:
    """Whether the exit codes are those of docs/pods.md."""
    others = [code for i, code in enumerate(codes) if i != victim]
    if phase == 'ending' and set(codes) <= {0, 76, *self.victim}:
      return True  # after the last step
    if set(codes) == {0} and 0 in self.victim:
      return True
    return codes[victim] in self.victim and set(others) <= set(self.others)


def _send(number: signal.Signals) -> Callable[[Group, int], None]:
  return lambda group, victim: group.processes[victim].send_signal(number)


def _stop(group: Group, victim: int) -> None:
  group.processes[victim].send_signal(signal.SIGSTOP)
  others = [process for i, process in enumerate(group.processes) if i != victim]
  deadline = time.monotonic() + (_STOPPED_SECONDS if others else _STOPPED_ALONE_SECONDS)
  while time.monotonic() < deadline and not (others and all(x.poll() is not None for x in others)):
    time.sleep(0.1)
  group.processes[victim].send_signal(signal.SIGCONT)


def _fill_disk(group: Group, victim: int) -> None:
  """No process may write more than 2 KiB to a file, as if the disk were full."""
  for process in group.processes:
    if process.poll() is None:
      resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**11, 2**11))


def _damage_checkpoint(group: Group, victim: int) -> None:
  """Kills all processes, and flips a bit of the newest checkpoint, if there is an older one."""
  group.kill()
  complete = (path.parent for path in (group.workdir / 'checkpoints').glob('*/manifest.json'))
  steps = sorted(
    (path for path in complete if path.name.isdigit()), key=lambda path: int(path.name)
  )
  if len(steps) > 1:
    files = [path for path in steps[-1].rglob('*') if path.is_file() and path.suffix != '.json']
    file = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _nothing(group: Group, victim: int) -> None:
  pass


_USR2 = _send(signal.SIGUSR2)
FAULTS = {
  fault.name: fault
  for fault in (
    Fault('KILL', _send(signal.SIGKILL), (-9,), (76,), 10),
    # While it imports, SIGTERM kills a process; otherwise it finishes a step, which may compile.
    Fault('TERM', _send(signal.SIGTERM), (75, -15), (75, 76), 60),
    Fault('STOP', _stop, (0, 76), (76,), 300),
    Fault('data_hang', _USR2, (78,), (78,), 120, 'data_hang', in_training=True),
    # Before the first collective a process that waits for it may give up before the watchdog.
    Fault('collective_hang', _USR2, (76, 78), (76, 78), 120, 'collective_hang', in_training=True),
    Fault('storage', _USR2, (0, 77), (77,), 300, 'storage', in_training=True),
    Fault('disk_full', _fill_disk, (2,), (2,), 120, in_training=True),
    Fault('damaged_checkpoint', _damage_checkpoint, (-9, 76), (-9, 76), 10, in_training=True),
    Fault('other_data', _nothing, (2,), (2,), 60, 'other_data', from_start=True),
    Fault('other_config', _nothing, (2,), (2,), 60, '', ('--config.seed=7',), from_start=True),
  )
}
