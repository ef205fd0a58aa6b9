"""The processes of a run: how they start, stop together, and end when nothing finishes any more."""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from vit_jax import errors, signals
from vit_jax.distributed import rendezvous
from vit_jax.distributed.cluster import ProcessInfo
from vit_jax.distributed.peers import PeerWatcher
from vit_jax.distributed.watchdog import Watchdog
from vit_jax.errors import LostPeerError, RunError, StoppedError, UnsavedError
from vit_jax.text import plural

_MAX_GATHERED = 4096  # bytes
_JAX_SILENCE_SECONDS = 300  # until JAX aborts; `peers` knows, and says, earlier
_sigterm = threading.Event()
_watcher: PeerWatcher | None = None  # in a run of several processes
_watchdog: Watchdog | None = None  # inside `hangs_end`


def should_stop() -> bool:
  """Returns True once the run must save and exit, because a process received SIGTERM.

  All processes call it equally often: after each step, and after each batch of an evaluation
  (`check_stop`). All get True at the same call, and ever after.
  """
  report_progress()
  return _sigterm.is_set() if _watcher is None else _watcher.should_stop()


def check_stop() -> None:
  """Raises `StoppedError` once `should_stop` is True; for each batch of an evaluation."""
  if should_stop():
    raise StoppedError


def report_progress() -> None:
  """Something has finished, such as a step or a save; `should_stop` reports it, too."""
  if _watchdog is not None:
    _watchdog.report_progress()


@contextlib.contextmanager
def hangs_end(folder: epath.Path, timeout: float) -> Iterator[None]:
  """Inside, a process in which nothing finishes for `timeout` seconds ends with `HangError`.

  All processes of the run write the stacks of their threads to the folder first.

  Args:
    folder: shared by all processes; created when it is needed.
    timeout: in seconds; 0: never.
  """
  global _watchdog
  if not timeout:
    yield
    return
  with Watchdog(folder, timeout, _end) as _watchdog:
    try:
      yield
    finally:
      _watchdog = None


def _end(error: RunError) -> None:
  """Ends this process and the others at once, from any thread."""
  if _watcher is not None:
    _watcher.exit(error)
  os._exit(errors.report(error)[0])


def record_losses(record: Callable[[str, str], None]) -> None:
  """Calls `record` with host and reason before this process exits because another was lost."""
  if _watcher is not None:
    _watcher.record_loss = record


def _write_stacks() -> None:
  if _watchdog is not None:
    _watchdog.write_stacks()


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
  process: ProcessInfo | None,
  settings: Mapping[str, Any],
  timeout: float,
  grace_period: float = 300,
  batch_sizes: Sequence[int] = (),
) -> Iterator[None]:
  """Connects the processes of a run and starts JAX; inside, the end of one ends all of them.

  In a run of several processes, an error that leaves the block exits this one at once: a normal
  exit would wait for the others, which wait for this one. SIGTERM makes `should_stop` True.

  Args:
    process: this one; None if it is alone.
    settings: JSON values that must be the same on all processes, by names that the user knows.
    timeout: seconds to wait for the others.
    grace_period: seconds from SIGTERM to the end of this process, whatever it is doing then.
    batch_sizes: of a run that `process.min_processes` may start; their number must divide these.

  Raises:
    LostPeerError: when processes are missing after the timeout, and it names them; or when the run
      starts without this one.
    UserError: when settings differ; it names them.
  """
  global _watcher
  _sigterm.clear()
  unsaved = UnsavedError(
    f'received SIGTERM, and {grace_period:g} s later no step was saved; rerun the same command to '
    'resume from the last checkpoint.'
  )
  sigterm_handled = signals.handled_until(
    signal.SIGTERM, lambda *unused: _sigterm.set(), grace_period, lambda: _end(unsaved)
  )
  if process is None:
    with sigterm_handled:
      yield
    return
  settings = {**settings, 'the code of vit_jax': _code_hash()}
  group = rendezvous.connect_processes(process, settings, timeout, batch_sizes)
  process = dataclasses.replace(
    process, process_id=group.process_id, num_processes=len(group.hosts)
  )
  _watcher = watcher = PeerWatcher(group, _sigterm, _write_stacks)
  try:
    with sigterm_handled:
      _start_jax(process, group.coordinator, timeout)
      if process.process_id == 0:
        _print_processes(group)
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
      heartbeat_timeout_seconds=_JAX_SILENCE_SECONDS,
      shutdown_timeout_seconds=24 * 3600,  # while process 0 still writes the model
      coordinator_bind_address=f'{address}:{port}' if address else None,
    )
  except RuntimeError as error:
    raise LostPeerError(
      f"JAX's coordinator at {coordinator} does not answer ({errors.first_line(error)}); rerun the "
      'same command on all processes.'
    ) from None


def _print_processes(group: rendezvous.ProcessGroup) -> None:
  hosts = group.hosts
  if group.note:
    print(f'{group.note}.', flush=True)
  if len(hosts) > rendezvous.MAX_LISTED:
    num_hosts, num_devices = plural(len(set(hosts)), 'host'), plural(jax.device_count(), 'device')
    print(f'{plural(len(hosts), "process")} on {num_hosts}: {num_devices}', flush=True)
    return
  devices = collections.Counter(device.process_index for device in jax.devices())
  for i, host in enumerate(hosts):
    print(f'process {i} on {host}: {plural(devices[i], "device")}', flush=True)
