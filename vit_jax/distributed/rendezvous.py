"""Connects the processes of a run, before JAX starts, at the coordinator's address.

Process 0 listens and the others connect to it, so it can name the processes that are missing and
the settings that differ. The connections stay open for `processes.py`.
"""

import collections
import contextlib
import dataclasses
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vit_jax.distributed.cluster import ProcessInfo
from vit_jax.errors import LostPeerError, UserError

# A host that vanishes closes nothing: it is lost after 3 s of silence and three probes, 2 s apart.
# The kernels answer probes, so a process that compiles or is stopped for a while is not lost.
_KEEPALIVE = {'TCP_KEEPIDLE': 3, 'TCP_KEEPINTVL': 2, 'TCP_KEEPCNT': 3}
MAX_LISTED = 8  # processes in a message


class Connection:
  """Messages over a socket, one JSON object per line."""

  def __init__(self, connected: socket.socket):
    self._socket, self._lines = connected, connected.makefile(encoding='utf-8')
    connected.settimeout(None)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
      if hasattr(socket, name):
        connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

  def send(self, message: Mapping[str, Any]) -> None:
    """Sends a message; if the peer is gone, only `receive` notices."""
    with contextlib.suppress(OSError):
      self._socket.sendall(json.dumps(message).encode() + b'\n')

  def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
    """Waits for a message; None when the peer is gone, sends anything else, or times out."""
    self._socket.settimeout(timeout)
    try:
      message = json.loads(self._lines.readline(2**20))
    except (OSError, ValueError):
      return None
    finally:
      self._socket.settimeout(None)
    return message if isinstance(message, dict) else None

  def close(self) -> None:
    """Closes the connection; messages that were sent still arrive."""
    self._lines.close()
    self._socket.close()

  def is_closed_by_peer(self) -> bool:
    try:
      return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
      return False
    except OSError:
      return True


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
  """The connected processes of a run."""

  process_id: int  # of this process
  hosts: Sequence[str]  # host name of each process
  connections: Mapping[int, Connection]  # process 0 with each of the others
  coordinator: str  # HOST:PORT where JAX's coordinator must listen


def connect_processes(
  process: ProcessInfo, settings: Mapping[str, Any], timeout: float
) -> ProcessGroup:
  """Connects process 0 with all others and compares their settings; see `distributed_run`."""
  settings = {'--num_processes': process.num_processes, **settings}
  hello = {'id': process.process_id, 'host': socket.gethostname(), 'settings': settings}
  hello = json.loads(json.dumps(hello))  # tuples are lists, as in the messages of the others
  if process.process_id == 0:
    return _listen_for_others(process, hello, timeout)
  return _connect_to_process_0(process, hello, timeout)


def bind_address(host: str) -> str:
  """The address to listen at: '' is all interfaces, for processes on several machines."""
  return '127.0.0.1' if host == 'localhost' or host.startswith('127.') else ''


def _free_port(address: str, preferred: int) -> int:
  """The preferred port, which a firewall may allow, or another one if it is taken."""
  for port in (preferred, 0):
    with contextlib.suppress(OSError, OverflowError):
      with socket.create_server((address, port)) as server:
        return server.getsockname()[1]
  raise UserError(f'No port is free on {socket.gethostname()}.')


def _listen_for_others(process: ProcessInfo, hello: dict[str, Any], timeout: float) -> ProcessGroup:
  """Process 0: waits for the others, checks their settings, sends them JAX's address."""
  host, port = process.coordinator.rsplit(':', 1)
  try:
    server = socket.create_server((bind_address(host), int(port)))
  except OSError as error:
    raise UserError(
      f'Process 0 cannot listen at {process.coordinator} ({os.strerror(error.errno or 0)}); '
      'choose another port.'
    ) from None
  with server:
    peers = _accept_peers(server, process.num_processes - 1, hello.keys(), timeout)
  hellos = [hello, *(peer for peer, _ in peers)]
  names = {hello['id']: hello['host'] for hello in hellos}
  error = _settings_error(hellos) or _missing_error(process, names, timeout)
  hosts = [names.get(i, '') for i in range(process.num_processes)]
  coordinator = f'{host}:{_free_port(bind_address(host), int(port) + 1)}'
  answer = {'coordinator': coordinator, 'hosts': hosts, 'code': 0, 'message': ''}
  if error:
    answer |= {'code': error.exit_code, 'message': str(error)}
  for _, connection in peers:
    connection.send(answer)
    if error:
      connection.close()
  if error:
    raise error
  return ProcessGroup(0, hosts, {peer['id']: connection for peer, connection in peers}, coordinator)


def _accept_peers(
  server: socket.socket, count: int, hello_keys: Iterable[str], timeout: float
) -> list[tuple[dict[str, Any], Connection]]:
  """The hello and the connection of `count` processes, or of those within the timeout."""
  peers: list[tuple[dict[str, Any], Connection]] = []
  deadline = time.monotonic() + timeout
  while len(peers) < count:
    server.settimeout(max(deadline - time.monotonic(), 0.001))
    try:
      connection = Connection(server.accept()[0])
    except TimeoutError:
      break
    hello = connection.receive(timeout=2)
    if not hello or hello.keys() != hello_keys:  # not a process of ours
      connection.close()
      continue
    # A process that has exited and was restarted counts once.
    for peer, old_connection in peers[:]:
      if peer['id'] == hello['id'] and old_connection.is_closed_by_peer():
        old_connection.close()
        peers.remove((peer, old_connection))
    peers.append((hello, connection))
  return peers


def _connect_to_process_0(
  process: ProcessInfo, hello: dict[str, Any], timeout: float
) -> ProcessGroup:
  """The others: connect as soon as process 0 listens, and wait for its answer."""
  name = f'process {process.process_id} on {socket.gethostname()}'
  host, port = process.coordinator.rsplit(':', 1)
  deadline = time.monotonic() + timeout
  while True:
    try:
      connected = socket.create_connection((host, int(port)), timeout=5)
      break
    except OSError as error:
      if time.monotonic() > deadline:
        raise LostPeerError(
          f'Process 0 did not answer at {process.coordinator} within {timeout:g} s '
          f'({error.strerror or error}); start it, or let {name} wait longer with '
          '--start_timeout=SECONDS.'
        ) from None
      time.sleep(0.2)
  connection = Connection(connected)
  connection.send(hello)
  answer = connection.receive(timeout + 10) or {}
  if answer.get('code') != 0:
    connection.close()
  if 'code' not in answer:
    raise LostPeerError(
      f'Process 0 at {process.coordinator} was lost while {name} waited for the others.'
    )
  if answer['code']:
    kind = UserError if answer['code'] == UserError.exit_code else LostPeerError
    raise kind(answer['message'])
  return ProcessGroup(process.process_id, answer['hosts'], {0: connection}, answer['coordinator'])


def _settings_error(hellos: Sequence[Mapping[str, Any]]) -> UserError | None:
  """Names processes with the same number, or settings that differ from those of process 0."""
  count = collections.Counter(hello['id'] for hello in hellos)
  if duplicates := [hello for hello in hellos if count[hello['id']] > 1]:
    hosts = ', '.join(hello['host'] for hello in duplicates)
    return UserError(
      f'Several processes have --process_id={duplicates[0]["id"]} (on {hosts}); give each its own.'
    )
  first, *peers = hellos
  for peer in peers:
    differences = [
      f'{name} is {first["settings"].get(name)!r} on process {first["id"]} ({first["host"]}) and '
      f'{peer["settings"].get(name)!r} on process {peer["id"]} ({peer["host"]})'
      for name in {**first['settings'], **peer['settings']}
      if first['settings'].get(name) != peer['settings'].get(name)
    ]
    if differences:
      more = f', and {len(differences) - 3} more' if len(differences) > 3 else ''
      return UserError(
        f'The processes were started differently: {"; ".join(differences[:3])}{more}; '
        'start all of them with the same command.'
      )
  return None


def _list(ids: Iterable[int], hosts: Mapping[int, str]) -> str:
  names = [f'{i} ({hosts[i]})' if hosts.get(i) else str(i) for i in sorted(ids)]
  more = len(names) - MAX_LISTED
  return ', '.join(names[:MAX_LISTED]) + (f' and {more} more' if more > 0 else '')


def _missing_error(
  process: ProcessInfo, hosts: Mapping[int, str], timeout: float
) -> LostPeerError | None:
  """Names the processes that are not in `hosts`, the host names of those connected."""
  missing = set(range(process.num_processes)) - hosts.keys()
  if not missing:
    return None
  return LostPeerError(
    f'{len(hosts)} of {process.num_processes} processes connected within {timeout:g} s: '
    f'{_list(hosts, hosts)}; missing: {_list(missing, dict(enumerate(process.hosts)))}; '
    '--start_timeout=SECONDS waits longer.'
  )
