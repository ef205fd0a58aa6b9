"""The processes of a run: how they meet, and what the others do when one of them ends.

Process 0 listens at the coordinator's address, and the others connect to it before JAX starts.
So it knows who has come and whether all were given the same config, and can say so. The
connections stay open to the end: the kernel closes those of a killed process at once, so that
the others need not hang in a collective operation until JAX gives up.
"""

import collections
import contextlib
import ctypes
import hashlib
import json
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from vit_jax import errors
from vit_jax.errors import LostPeerError, PreemptedError, RunError, UserError
from vit_jax.parallel.cluster import Place

# A host that vanishes closes nothing: it is lost after 3 s of silence and three probes, 2 s apart.
# The kernels do this, so a process that compiles or is stopped for a while is not taken for lost.
_KEEPALIVE = {'TCP_KEEPIDLE': 3, 'TCP_KEEPINTVL': 2, 'TCP_KEEPCNT': 3}
_ECHO_SECONDS = 2  # an error may be the echo of a loss; the news of that takes less
_MOST_NAMES = 8
_sigterm = threading.Event()


def preempted(step: int) -> bool:
  """Whether to save and leave after `step`: SIGTERM came, to this or to any process of the run.

  To be asked once a step; all processes get the same answer at the same step.
  """
  if jax.process_count() > 1:
    return multihost_utils.reached_preemption_sync_point(step)
  return _sigterm.is_set()


@contextlib.contextmanager
def joined(place: Place | None, facts: Mapping[str, Any], timeout: float) -> Iterator[None]:
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
  if place is None:
    with _sigterm_noted():
      yield
    return
  peers, address = meet(place, {**facts, 'the code of vit_jax': _code_hash()}, timeout)
  try:
    peers.watch()
    _start_jax(place, address, timeout)
    if place.process_id == 0:
      _say_who_came(peers.hosts)
    yield
    jax.distributed.shutdown()  # waits for the others
  except BaseException as error:  # noqa: BLE001 - all ends are told
    _end(peers, error)
  peers.leave(0, '')


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


def _host() -> str:
  return socket.gethostname()


def _code_hash() -> str:
  """Of the sources of this package, so that hosts with different versions do not run together."""
  root = pathlib.Path(__file__).parents[1]
  files = {str(file.relative_to(root)): file.read_bytes() for file in root.rglob('*.py')}
  return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12]


# How they meet.


def meet(place: Place, facts: Mapping[str, Any], timeout: float) -> tuple['_Peers', str]:
  """Connects process 0 with all others; returns where JAX's coordinator shall listen, too.

  Arguments and errors are those of `joined`.
  """
  facts = {'--num_processes': place.num_processes, **facts}
  hello = json.loads(json.dumps({'id': place.process_id, 'host': _host(), 'facts': facts}))
  return (_join if place.process_id else _gather)(place, hello, timeout)


def _address(place: Place) -> tuple[str, int]:
  host, port = place.coordinator.rsplit(':', 1)
  return host.strip('[]'), int(port)


def _interface(host: str) -> str:
  """What to listen on: all interfaces, unless all processes are on this machine."""
  return '127.0.0.1' if host == 'localhost' or host.startswith('127.') else ''


class _Connection:
  """Messages, one JSON object a line, over a socket."""

  def __init__(self, connected: socket.socket, timeout: float):
    self._socket, self._lines = connected, connected.makefile(encoding='utf-8')
    connected.settimeout(timeout)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
      if hasattr(socket, name):
        connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

  def wait_forever(self) -> None:
    """From now on `hear` waits without a limit."""
    self._socket.settimeout(None)

  def say(self, message: Mapping[str, Any]) -> None:
    """Sends a message; whether the other side is gone is noticed by `hear`."""
    with contextlib.suppress(OSError):
      self._socket.sendall(json.dumps(message).encode() + b'\n')

  def hear(self) -> dict[str, Any] | None:
    """The next message; None when the other side is gone, or is none of ours."""
    try:
      message = json.loads(self._lines.readline(2**20))
    except (OSError, ValueError):
      return None
    return message if isinstance(message, dict) else None

  def close(self) -> None:
    """Ends the connection; what was said still arrives."""
    self._lines.close()
    self._socket.close()

  def is_gone(self) -> bool:
    """Whether the other side has closed."""
    self._socket.settimeout(0)
    try:
      return not self._socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
      return False
    except OSError:
      return True


def _gather(place: Place, hello: dict[str, Any], timeout: float) -> tuple['_Peers', str]:
  """Process 0: waits for the others, compares their facts, tells them where JAX will meet."""
  host, port = _address(place)
  try:
    listener = socket.create_server((_interface(host), port))
  except OSError as error:
    raise UserError(
        f'Process 0 cannot listen at {place.coordinator} ({os.strerror(error.errno or 0)}); '
        'choose another port.'
    ) from None
  arrivals: list[tuple[dict[str, Any], _Connection]] = []
  deadline = time.monotonic() + timeout
  with listener:
    while len(arrivals) < place.num_processes - 1:
      listener.settimeout(max(deadline - time.monotonic(), 0.001))
      try:
        connection = _Connection(listener.accept()[0], 2)
      except TimeoutError:
        break
      message = connection.hear()
      if not message or message.keys() != hello.keys():  # none of ours
        connection.close()
        continue
      # One that ended and was started again while this process waits has come once.
      for gone in [a for a in arrivals if a[0]['id'] == message['id'] and a[1].is_gone()]:
        gone[1].close()
        arrivals.remove(gone)
      arrivals.append((message, connection))
  hellos = [hello, *(h for h, _ in arrivals)]
  names = {h['id']: h['host'] for h in hellos}
  error = _difference(hellos) or _absence(place, names, timeout)
  hosts = [names.get(i, '') for i in range(place.num_processes)]
  with socket.create_server((_interface(host), 0)) as free:
    address = f'{place.coordinator.rsplit(":", 1)[0]}:{free.getsockname()[1]}'
  answer = {'coordinator': address, 'hosts': hosts, 'code': error.exit_code if error else 0}
  for _, connection in arrivals:
    connection.wait_forever()
    connection.say({**answer, 'said': str(error)})
    if error:
      connection.close()
  if error:
    raise error
  return _Peers(0, hosts, {h['id']: c for h, c in arrivals}), address


def _join(place: Place, hello: dict[str, Any], timeout: float) -> tuple['_Peers', str]:
  """The others: connect to process 0 as soon as it is there, and wait for its word."""
  deadline = time.monotonic() + timeout
  while True:
    try:
      connected = socket.create_connection(_address(place), timeout=5)
      break
    except OSError as error:
      if time.monotonic() > deadline:
        raise LostPeerError(
            f'Process 0 did not answer at {place.coordinator} within {timeout:g} s '
            f'({error.strerror or error}); this is process {place.process_id} on {_host()}.'
        ) from None
      time.sleep(0.2)
  connection = _Connection(connected, timeout + 10)
  connection.say(hello)
  answer = connection.hear() or {}
  if answer.get('code') != 0:
    connection.close()
  if 'coordinator' not in answer:
    raise LostPeerError(
        f'Process 0 at {place.coordinator} was lost while process {place.process_id} on {_host()} '
        'waited for the others.'
    )
  if answer['code']:
    raise {e.exit_code: e for e in (UserError, LostPeerError)}[answer['code']](answer['said'])
  connection.wait_forever()
  return _Peers(place.process_id, answer['hosts'], {0: connection}), answer['coordinator']


def _difference(hellos: Sequence[Mapping[str, Any]]) -> UserError | None:
  """Two processes with the same number, or with other facts than the first one."""
  count = collections.Counter(hello['id'] for hello in hellos)
  if twice := [hello for hello in hellos if count[hello['id']] > 1]:
    hosts = ', '.join(hello['host'] for hello in twice)
    return UserError(f'Several processes have --process_id={twice[0]["id"]} (on {hosts}).')
  first, *others = hellos
  for other in others:
    differing = [
        f'{name} is {first["facts"].get(name)!r} on process {first["id"]} ({first["host"]}) and '
        f'{other["facts"].get(name)!r} on process {other["id"]} ({other["host"]})'
        for name in {**first['facts'], **other['facts']}
        if first['facts'].get(name) != other['facts'].get(name)
    ]
    if differing:
      more = f', and {len(differing) - 3} more' if len(differing) > 3 else ''
      return UserError(
          f'The processes were started differently: {"; ".join(differing[:3])}{more}; '
          'start all of them with the same command.'
      )
  return None


def _list(ids: Iterable[int], hosts: Mapping[int, str]) -> str:
  names = [f'{i} ({hosts[i]})' if hosts.get(i) else str(i) for i in sorted(ids)]
  more = len(names) - _MOST_NAMES
  return ', '.join(names[:_MOST_NAMES]) + (f' and {more} more' if more > 0 else '')


def _absence(place: Place, came: Mapping[int, str], timeout: float) -> LostPeerError | None:
  missing = set(range(place.num_processes)) - came.keys()
  if not missing:
    return None
  return LostPeerError(
      f'{len(came)} of {place.num_processes} processes came within {timeout:g} s: '
      f'{_list(came, came)}; missing: {_list(missing, dict(enumerate(place.hosts)))}; '
      '--start_timeout=SECONDS waits longer.'
  )


def _start_jax(place: Place, address: str, timeout: float) -> None:
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')  # CPU only; else unused
  host, port = address.rsplit(':', 1)
  interface = _interface(host)
  try:
    jax.distributed.initialize(
        address,
        place.num_processes,
        place.process_id,
        local_device_ids=None if place.local_device is None else [place.local_device],
        cluster_detection_method='deactivate',  # cluster.py has done it
        initialization_timeout=max(int(timeout), 10),
        coordinator_bind_address=f'{interface}:{port}' if interface else None,
    )
  except RuntimeError as error:
    raise LostPeerError(
        f"JAX's coordinator at {address} does not answer ({errors.first_line(error)})."
    ) from None


def _say_who_came(hosts: Sequence[str]) -> None:
  devices = collections.Counter(device.process_index for device in jax.devices())
  if len(hosts) <= _MOST_NAMES:
    for i, host in enumerate(hosts):
      print(f'process {i} on {host}: {devices[i]} devices', flush=True)
  else:
    hosts_, total = len(set(hosts)), sum(devices.values())
    print(f'{len(hosts)} processes on {hosts_} hosts: {total} devices', flush=True)


# How they end.


class _Peers:
  """The open connections: of process 0 to all others, of the others to process 0."""

  def __init__(self, me: int, hosts: Sequence[str], connections: Mapping[int, _Connection]):
    self.hosts = hosts
    self._me, self._connections = me, connections
    self._ended, self._lock = set(), threading.RLock()
    self._heeded = {'lost', 'ended'}  # what ends this process

  def watch(self) -> None:
    """Starts listening; the loss of a process, or its end by an error, ends this one."""
    _hold_aborts()
    for i in self._connections:
      threading.Thread(target=self._listen, args=(i,), daemon=True).start()

  def _listen(self, i: int) -> None:
    while message := self._connections[i].hear():
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
      name = f'process {i} ({self.hosts[i]})'
      print(
          f'error: {name} ended: {said}'
          if said
          else f'error: {name} was lost: it was killed, has crashed or is cut off; the same '
          'command, started again on all processes, goes on from the last checkpoint.',
          file=sys.stderr,
          flush=True,
      )
      os._exit(code)

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

  def close(self) -> None:
    """Closes the connections."""
    for connection in self._connections.values():
      connection.close()


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
