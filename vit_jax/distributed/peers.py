"""How the end of one process ends the others: each listens to process 0, and that to all.

The kernel closes the connections of a killed process at once; so the others notice, rather than
hang in a collective operation until JAX gives up. A process that is stopped, or whose host is
unreachable, is noticed by its silence.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import jax

from vit_jax import errors, signals
from vit_jax.distributed.rendezvous import ProcessGroup
from vit_jax.errors import (
  HangError,
  LostPeerError,
  MachineError,
  PreemptedError,
  RunError,
  UnsavedError,
)

_LOSS_REPORT_SECONDS = 2  # the loss of a process is known within
_ACKNOWLEDGE_SECONDS = 10
_HEARTBEAT_SECONDS = 5
SILENCE_SECONDS = 60  # without a heartbeat, after which a process is lost


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _delay_abort(unused: int) -> None:
  """Handles SIGABRT: JAX aborts when process 0 is gone, perhaps before the watcher reports it."""
  time.sleep(2 * _LOSS_REPORT_SECONDS)


class PeerWatcher:
  """Listens to the peers: process 0 to all others, the others to process 0.

  Once it exists, the loss or an error of a peer ends this process. Messages are heartbeats, {},
  {'id', 'code', 'message', 'lost'} of a process that exits, and {'stop': n} to stop at the n-th
  call of `should_stop`; None asks process 0 for a number.

  Args:
    group: the connected processes.
    sigterm: set once this process receives SIGTERM.
    on_hang: called before this process exits because a peer hangs.

  Attributes:
    record_loss: called with host and reason before this process exits because a peer is lost.
  """

  def __init__(self, group: ProcessGroup, sigterm: threading.Event, on_hang: Callable[[], None]):
    self._sigterm, self._on_hang = sigterm, on_hang
    self._process_id, self._hosts = group.process_id, group.hosts
    self._connections = group.connections
    self.record_loss: Callable[[str, str], None] = lambda host, reason: None
    self._exited: set[int] = set()
    self._lock = threading.RLock()
    self._exit_on = {'loss', 'error'}  # of a peer: what ends this process
    self._num_calls = 0  # of should_stop
    self._stop_at: int | None = None  # the call after which all processes stop
    self._stop_requested, self._acknowledged = threading.Event(), threading.Semaphore(0)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _delay_abort)
    threading.Thread(target=self._send_heartbeats, daemon=True).start()
    for i in self._connections:
      threading.Thread(target=self._listen, args=(i,), daemon=True).start()

  def _send_heartbeats(self) -> None:
    while True:
      for connection in self._connections.values():
        connection.send({})
      time.sleep(min(_HEARTBEAT_SECONDS, SILENCE_SECONDS / 4))

  def _listen(self, i: int) -> None:
    last_message = time.monotonic()
    while (message := self._connections[i].receive(SILENCE_SECONDS)) is not None:
      last_message = time.monotonic()
      if 'stop' in message:
        self._receive_stop(message['stop'])
      elif message:
        self._receive_exit(message['id'], message['code'], message['message'], message['lost'])
    silence = time.monotonic() - last_message
    if i in self._exited:
      return
    reason = 'killed, crashed or disconnected'
    if silence >= SILENCE_SECONDS:
      reason = f'stopped or unreachable: no heartbeat for {silence:.0f} s'
    self._receive_exit(i, LostPeerError.exit_code, reason, lost=True)

  def _receive_exit(self, i: int, code: int, message: str, lost: bool) -> None:
    """Forwards that process i has exited, and exits as well unless that was planned."""
    with self._lock:
      self._exited.add(i)
      self._send_exit(i, code, message, lost)
      event = 'loss' if lost else 'error'
      if code in (0, PreemptedError.exit_code) or event not in self._exit_on:
        return
      if code == HangError.exit_code:
        self._on_hang()
      was_lost = (
        f'was lost ({message}); rerun the same command on all processes to resume from the last '
        'checkpoint.'
      )
      end = was_lost if lost else f'exited: {message}'
      print(f'error: process {i} ({self._hosts[i]}) {end}', file=sys.stderr, flush=True)
      if lost:
        self.record_loss(self._hosts[i], message)
      os._exit(code)

  def should_stop(self) -> bool:
    """Returns True if a process has received SIGTERM, and all must stop at this call.

    Process 0 chooses the call two after its own. The others are at most one ahead of it, because
    each step needs all processes, and it waits here until all have acknowledged.
    """
    self._num_calls += 1
    requested = self._sigterm.is_set() or self._stop_requested.is_set()
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

  def _send_exit(self, i: int, code: int, message: str, lost: bool = False) -> None:
    """Process 0 sends each exit to all that still run; the others send their own, to process 0."""
    if self._process_id in (0, i):
      for peer in self._connections.keys() - self._exited:
        self._connections[peer].send({'id': i, 'code': code, 'message': message, 'lost': lost})

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
      if isinstance(error, RunError) and not isinstance(error, MachineError):
        self._exit_on = {'loss'}
      time.sleep(_LOSS_REPORT_SECONDS)
    with self._lock:  # until the end, so that no peer ends this process first
      code, message = errors.report(error)
      if isinstance(error, UnsavedError):  # no planned end: the others must not wait for it
        self._send_exit(self._process_id, LostPeerError.exit_code, message)
      else:
        self._send_exit(self._process_id, code, message)
      sys.stdout.flush()
      os._exit(code)
