"""The processes of a run: how they start, and how the end of one of them ends the others.

The kernel closes the connections of a killed process at once; so the others notice, rather than
hang in a collective operation until JAX gives up.
"""

import collections
import contextlib
import ctypes
import hashlib
import json
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

from vit_jax import errors, signals
from vit_jax.distributed import rendezvous
from vit_jax.distributed.cluster import ProcessInfo
from vit_jax.distributed.rendezvous import ProcessGroup
from vit_jax.errors import LostPeerError, PreemptedError, RunError, StoppedError
from vit_jax.text import plural

_LOSS_REPORT_SECONDS = 2  # the loss of a process is known within
_ACKNOWLEDGE_SECONDS = 10
_MAX_GATHERED = 4096  # bytes
_sigterm = threading.Event()
_watcher: '_PeerWatcher | None' = None  # in a run of several processes


def should_stop() -> bool:
  """Returns True once the run must save and exit, because a process received SIGTERM.

  All processes call it equally often: after each step, and after each batch of an evaluation
  (`check_stop`). All get True at the same call, and ever after.
  """
  return _sigterm.is_set() if _watcher is None else _watcher.should_stop()


def check_stop() -> None:
  """Raises `StoppedError` once `should_stop` is True; for each batch of an evaluation."""
  if should_stop():
    raise StoppedError


def broadcast_from_process_0(value: int) -> int:
  """Returns the int32 value of process 0 on all processes, each of which must call it."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def gather_from_all(value: Any) -> list[Any]:
  """Returns the JSON value, of at most 4 KiB, of each process; each must call it."""
  if jax.process_count() == 1:
    return [value]
  text = json.dumps(value).encode()
  row = np.frombuffer(text.ljust(_MAX_GATHERED), np.uint8)
  rows = np.asarray(multihost_utils.process_allgather(row))
  return [json.loads(row.tobytes()) for row in rows]


@contextlib.contextmanager
def distributed_run(
  process: ProcessInfo | None, settings: Mapping[str, Any], timeout: float
) -> Iterator[None]:
  """Connects the processes of a run and starts JAX; inside, the end of one ends all of them.

  In a run of several processes, an error that leaves the block exits this one at once: a normal
  exit would wait for the others, which wait for this one. SIGTERM makes `should_stop` True.

  Args:
    process: this one; None if it is alone.
    settings: JSON values that must be the same on all processes, by names that the user knows.
    timeout: seconds to wait for the others.

  Raises:
    LostPeerError: when processes are missing after the timeout; it names them.
    UserError: when settings differ; it names them.
  """
  global _watcher
  _sigterm.clear()
  sigterm_handled = signals.handled(signal.SIGTERM, lambda *unused: _sigterm.set())
  if process is None:
    with sigterm_handled:
      yield
    return
  settings = {**settings, 'the code of vit_jax': _code_hash()}
  group = rendezvous.connect_processes(process, settings, timeout)
  _watcher = watcher = _PeerWatcher(group)
  try:
    with sigterm_handled:
      _start_jax(process, group.coordinator, timeout)
      if process.process_id == 0:
        _print_processes(group.hosts)
      yield
      jax.distributed.shutdown()  # waits for the others
  except BaseException as error:  # noqa: BLE001 - the others must learn of every end
    watcher.exit(error)
  watcher.finish()
  _watcher = None


def _code_hash() -> str:
  """A hash of the sources of this package, which must be the same on all hosts."""
  root = pathlib.Path(__file__).parents[1]
  files = {str(file.relative_to(root)): file.read_bytes() for file in root.rglob('*.py')}
  return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12]


def _start_jax(process: ProcessInfo, coordinator: str, timeout: float) -> None:
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')  # of CPUs only
  # Orbax queries JAX's preemption service with other step numbers than those of a resumed run, and
  # then the processes may never agree on a step.
  jax.config.update('jax_enable_preemption_service', False)
  host, port = coordinator.rsplit(':', 1)
  address = rendezvous.bind_address(host)
  try:
    jax.distributed.initialize(
      coordinator,
      process.num_processes,
      process.process_id,
      local_device_ids=None if process.local_device is None else [process.local_device],
      cluster_detection_method='deactivate',  # cluster.py has detected it
      initialization_timeout=max(int(timeout), 10),
      shutdown_timeout_seconds=24 * 3600,  # while process 0 still writes the model
      coordinator_bind_address=f'{address}:{port}' if address else None,
    )
  except RuntimeError as error:
    raise LostPeerError(
      f"JAX's coordinator at {coordinator} does not answer ({errors.first_line(error)}); rerun the "
      'same command on all processes.'
    ) from None


def _print_processes(hosts: Sequence[str]) -> None:
  if len(hosts) > rendezvous.MAX_LISTED:
    num_hosts, num_devices = plural(len(set(hosts)), 'host'), plural(jax.device_count(), 'device')
    print(f'{plural(len(hosts), "process")} on {num_hosts}: {num_devices}', flush=True)
    return
  devices = collections.Counter(device.process_index for device in jax.devices())
  for i, host in enumerate(hosts):
    print(f'process {i} on {host}: {plural(devices[i], "device")}', flush=True)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _delay_abort(unused: int) -> None:
  """Handles SIGABRT: JAX aborts when process 0 is gone, perhaps before the watcher reports it."""
  time.sleep(2 * _LOSS_REPORT_SECONDS)


class _PeerWatcher:
  """Listens to the peers: process 0 to all others, the others to process 0.

  Once it exists, the loss or an error of a peer ends this process. Messages are
  {'id', 'code', 'message'} from a process that exits, and {'stop': n} to stop at the n-th call of
  `should_stop`; None asks process 0 for a number.
  """

  def __init__(self, group: ProcessGroup):
    self._process_id, self._hosts = group.process_id, group.hosts
    self._connections = group.connections
    self._exited: set[int] = set()
    self._lock = threading.RLock()
    self._exit_on = {'loss', 'error'}  # of a peer: what ends this process
    self._num_calls = 0  # of should_stop
    self._stop_at: int | None = None  # the call after which all processes stop
    self._stop_requested, self._acknowledged = threading.Event(), threading.Semaphore(0)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _delay_abort)
    for i in self._connections:
      threading.Thread(target=self._listen, args=(i,), daemon=True).start()

  def _listen(self, i: int) -> None:
    while message := self._connections[i].receive():
      if 'stop' in message:
        self._receive_stop(message['stop'])
      else:
        self._receive_exit(message['id'], message['code'], message['message'])
    if i not in self._exited:
      self._receive_exit(i, LostPeerError.exit_code, '')

  def _receive_exit(self, i: int, code: int, message: str) -> None:
    """Forwards that process i has exited, and exits as well unless that was planned."""
    with self._lock:
      self._exited.add(i)
      self._send_exit(i, code, message)
      event = 'error' if message else 'loss'
      if code in (0, PreemptedError.exit_code) or event not in self._exit_on:
        return
      lost = (
        'was lost (killed, crashed or disconnected); rerun the same command on all processes to '
        'resume from the last checkpoint.'
      )
      end = f'exited: {message}' if message else lost
      print(f'error: process {i} ({self._hosts[i]}) {end}', file=sys.stderr, flush=True)
      os._exit(code)

  def should_stop(self) -> bool:
    """Returns True if a process has received SIGTERM, and all must stop at this call.

    Process 0 chooses the call two after its own. The others are at most one ahead of it, because
    each step needs all processes, and it waits here until all have acknowledged.
    """
    self._num_calls += 1
    requested = _sigterm.is_set() or self._stop_requested.is_set()
    if requested and self._stop_at is None:
      stop_at = None if self._process_id else self._num_calls + 2
      for connection in self._connections.values():
        connection.send({'stop': stop_at})
      if self._process_id == 0:
        self._stop_at = stop_at
        for _ in self._connections:
          self._acknowledged.acquire(timeout=_ACKNOWLEDGE_SECONDS)
    return self._stop_at is not None and self._num_calls >= self._stop_at

  def _receive_stop(self, call: int | None) -> None:
    if self._process_id:
      self._stop_at = call
      self._connections[0].send({'stop': call})  # acknowledges it
    elif call is None:
      self._stop_requested.set()
    else:
      self._acknowledged.release()

  def _send_exit(self, i: int, code: int, message: str) -> None:
    """Process 0 sends each exit to all that still run; the others send their own, to process 0."""
    if self._process_id in (0, i):
      for peer in self._connections.keys() - self._exited:
        self._connections[peer].send({'id': i, 'code': code, 'message': message})

  def finish(self) -> None:
    """Tells the peers that this process is done, and no longer exits because of them."""
    with self._lock:
      self._exit_on = set()
      self._send_exit(self._process_id, 0, '')

  def exit(self, error: BaseException) -> NoReturn:
    """Reports the error to the user and to the peers, and exits with its code."""
    if signals.was_interrupted() and not isinstance(error, KeyboardInterrupt):
      error = KeyboardInterrupt()  # which a library turned into another exception
    if isinstance(error, PreemptedError):
      with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()  # all have saved the same step
    else:  # perhaps only a consequence of the end of a peer, which is then reported instead
      if isinstance(error, RunError):
        self._exit_on = {'loss'}
      time.sleep(_LOSS_REPORT_SECONDS)
    with self._lock:  # until the end, so that no peer ends this process first
      code, message = errors.report(error)
      self._send_exit(self._process_id, code, message)
      sys.stdout.flush()
      os._exit(code)
