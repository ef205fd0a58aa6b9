"""The processes of a run: how they start, and what the others do when one of them ends.

Once they have met (rendezvous.py), the connections stay open to the end: the kernel closes those of
a killed process at once, so that the others need not hang in a collective operation until JAX
gives up.
"""

import collections
import contextlib
import ctypes
import hashlib
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax import errors
from vit_jax.distributed import rendezvous
from vit_jax.distributed.cluster import ProcessInfo
from vit_jax.distributed.rendezvous import ProcessGroup
from vit_jax.errors import LostPeerError, PreemptedError, RunError

_ECHO_SECONDS = 2  # an error may be the echo of a loss; the news of that takes less
_ACKNOWLEDGE_SECONDS = 10
_sigterm = threading.Event()
_peers: '_Peers | None' = None  # of a run of several processes


def should_stop(step: int) -> bool:
  """Whether to save and leave after `step`: SIGTERM came, to this or to any process of the run.

  To be asked once a step; all processes get the same answer at the same step.
  """
  return _sigterm.is_set() if _peers is None else _peers.stop_after(step)


def broadcast_from_process_0(value: int) -> int:
  """The value of process 0, on all processes; all must ask."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


@contextlib.contextmanager
def distributed_run(
  place: ProcessInfo | None, facts: Mapping[str, Any], timeout: float
) -> Iterator[None]:
  """Meets the other processes of the run; inside, the end of one of them is the end of all.

  An error that leaves the block ends the process of a run of several: its end must not wait for
  the others, which wait for it.

  Args:
    place: of this process; None if it is alone.
    facts: what must be the same on all processes, by names for the user; JSON values.
    timeout: seconds to wait for the others.

  Raises:
    LostPeerError: when others have not come in time; it says who has and who has not.
    UserError: when the facts differ; it names them.
  """
  global _peers
  if place is None:
    with _sigterm_noted():
      yield
    return
  met = rendezvous.meet(place, {**facts, 'the code of vit_jax': _code_hash()}, timeout)
  _peers = peers = _Peers(met)
  try:
    peers.watch()
    with _sigterm_noted():
      _start_jax(place, met.coordinator, timeout)
      if place.process_id == 0:
        _say_who_came(met.hosts)
      yield
      jax.distributed.shutdown()  # waits for the others
  except BaseException as error:  # noqa: BLE001 - all ends are told
    _end(peers, error)
  peers.leave(0, '')
  _peers = None


@contextlib.contextmanager
def _sigterm_noted() -> Iterator[None]:
  """Notes SIGTERM for `preempted` instead of dying of it."""
  _sigterm.clear()
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(signal.SIGTERM, lambda *unused: _sigterm.set())
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def _code_hash() -> str:
  """Of the sources of this package, so that hosts with different versions do not run together."""
  root = pathlib.Path(__file__).parents[1]
  files = {str(file.relative_to(root)): file.read_bytes() for file in root.rglob('*.py')}
  return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12]


def _start_jax(place: ProcessInfo, address: str, timeout: float) -> None:
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')  # CPU only; else unused
  # JAX would note SIGTERM, too, but Orbax asks it with other numbers of steps than a loop that
  # began after a checkpoint, and then they may never agree on one.
  jax.config.update('jax_enable_preemption_service', False)
  host, port = address.rsplit(':', 1)
  interface = rendezvous.interface(host)
  try:
    jax.distributed.initialize(
      address,
      place.num_processes,
      place.process_id,
      local_device_ids=None if place.local_device is None else [place.local_device],
      cluster_detection_method='deactivate',  # cluster.py has done it
      initialization_timeout=max(int(timeout), 10),
      shutdown_timeout_seconds=24 * 3600,  # while process 0 still writes the model
      coordinator_bind_address=f'{interface}:{port}' if interface else None,
    )
  except RuntimeError as error:
    raise LostPeerError(
      f"JAX's coordinator at {address} does not answer ({errors.first_line(error)})."
    ) from None


def _say_who_came(hosts: Sequence[str]) -> None:
  devices = collections.Counter(device.process_index for device in jax.devices())
  if len(hosts) <= rendezvous.MOST_NAMES:
    for i, host in enumerate(hosts):
      print(f'process {i} on {host}: {devices[i]} device{"s"[: devices[i] > 1]}', flush=True)
  else:
    hosts_, total = len(set(hosts)), sum(devices.values())
    print(f'{len(hosts)} processes on {hosts_} hosts: {total} devices', flush=True)


class _Peers:
  """The open connections: of process 0 to all others, of the others to process 0."""

  def __init__(self, met: ProcessGroup):
    self._me, self._hosts, self._connections = met.me, met.hosts, met.connections
    self._ended, self._lock = set(), threading.RLock()
    self._heeded = {'lost', 'ended'}  # what ends this process
    self._stop_step = None  # the last one before all leave
    self._asked_to_stop, self._acknowledged = threading.Event(), threading.Semaphore(0)

  def watch(self) -> None:
    """Starts listening; the loss of a process, or its end by an error, ends this one."""
    _hold_aborts()
    for i in self._connections:
      threading.Thread(target=self._listen, args=(i,), daemon=True).start()

  def _listen(self, i: int) -> None:
    while message := self._connections[i].hear():
      if 'stop' in message:
        self._hear_stop(message['stop'])
      else:
        self._end_with(message)
    if i not in self._ended:
      self._end_with({'id': i, 'code': LostPeerError.exit_code, 'said': ''})

  def _end_with(self, message: Mapping[str, Any]) -> None:
    """Passes on that a process has ended, and ends this one, too, unless that was planned."""
    i, code, said = message['id'], message['code'], message['said']
    with self._lock:
      self._ended.add(i)
      self._tell(message)
      what = 'ended' if said else 'lost'
      if code in (0, PreemptedError.exit_code) or what not in self._heeded:
        return
      name = f'process {i} ({self._hosts[i]})'
      print(
        f'error: {name} ended: {said}'
        if said
        else f'error: {name} was lost: it was killed, has crashed or is cut off; the same '
        'command, started again on all processes, goes on from the last checkpoint.',
        file=sys.stderr,
        flush=True,
      )
      os._exit(code)

  def stop_after(self, step: int) -> bool:
    """Whether SIGTERM has come to a process, and all leave after this step.

    Process 0 chooses the step two ahead of its own. The others are at most one step ahead of it,
    as each step needs all of them, and it does not begin the next one before they have heard.
    """
    asked = _sigterm.is_set() or self._asked_to_stop.is_set()
    if asked and self._stop_step is None:
      if self._me == 0:
        self._stop_step = step + 2
      for connection in self._connections.values():
        connection.say({'stop': self._stop_step})
      for _ in self._connections if self._me == 0 else ():
        self._acknowledged.acquire(timeout=_ACKNOWLEDGE_SECONDS)
    return self._stop_step is not None and step >= self._stop_step

  def _hear_stop(self, step: int | None) -> None:
    """None asks process 0 to choose a step; it tells the step, and gets it back."""
    if self._me:
      self._stop_step = step
      self._connections[0].say({'stop': step})
    elif step is None:
      self._asked_to_stop.set()
    else:
      self._acknowledged.release()

  def _tell(self, message: Mapping[str, Any]) -> None:
    for i, connection in self._connections.items():
      if self._me == 0 or message['id'] == self._me:
        if i not in self._ended:
          connection.say(message)

  def heed(self, *what: str) -> None:
    """Chooses what may still end this process: 'lost', 'ended'."""
    with self._lock:
      self._heeded = set(what)

  def leave(self, code: int, said: str) -> None:
    """Tells the others that this process ends on purpose."""
    with self._lock:
      self._heeded = set()
      self._tell({'id': self._me, 'code': code, 'said': said})


def _hold_aborts() -> None:
  """Lets `_Peers` speak before JAX's client aborts this process because process 0 is gone."""
  hold = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda unused: time.sleep(2 * _ECHO_SECONDS))
  _hold_aborts.kept = hold  # as long as the process lives
  ctypes.CDLL(None).signal(int(signal.SIGABRT), hold)


def _end(peers: _Peers, error: BaseException) -> NoReturn:
  if isinstance(error, PreemptedError):
    with contextlib.suppress(RuntimeError):
      jax.distributed.shutdown()  # all have saved and come here
  else:
    peers.heed('lost', *([] if isinstance(error, RunError) else ['ended']))
    time.sleep(_ECHO_SECONDS)
  peers.heed()
  code, said = errors.report(error)
  peers.leave(code, said)
  sys.stdout.flush()
  os._exit(code)
