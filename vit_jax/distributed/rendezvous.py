"""How the processes of a run meet: before JAX starts, at the coordinator's address.

Process 0 listens and the others connect to it. So it knows who has come and whether all were
given the same facts, and can say so. The connections stay open for `processes.py`.
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
# The kernels do this, so a process that compiles or is stopped for a while is not taken for lost.
_KEEPALIVE = {'TCP_KEEPIDLE': 3, 'TCP_KEEPINTVL': 2, 'TCP_KEEPCNT': 3}
MOST_NAMES = 8


class Connection:
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


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
  """What came of it.

  Attributes:
    me: the number of this process.
    hosts: the host names of all processes, in their order.
    connections: of process 0 to all others, of the others to process 0.
    coordinator: HOST:PORT where JAX's coordinator shall listen.
  """

  me: int
  hosts: Sequence[str]
  connections: Mapping[int, Connection]
  coordinator: str


def meet(place: ProcessInfo, facts: Mapping[str, Any], timeout: float) -> ProcessGroup:
  """Connects process 0 with all others; arguments and errors are those of `joined`."""
  facts = {'--num_processes': place.num_processes, **facts}
  hello = json.loads(json.dumps({'id': place.process_id, 'host': _host(), 'facts': facts}))
  return (_join if place.process_id else _gather)(place, hello, timeout)


def _host() -> str:
  return socket.gethostname()


def _address(place: ProcessInfo) -> tuple[str, int]:
  host, port = place.coordinator.rsplit(':', 1)
  return host, int(port)


def interface(host: str) -> str:
  """What to listen on: all interfaces, unless all processes are on this machine."""
  return '127.0.0.1' if host == 'localhost' or host.startswith('127.') else ''


def _free_port(listen: str, wanted: int) -> int:
  """The port that is wanted, which a firewall may let through, or another one if it is taken."""
  for port in (wanted, 0):
    with contextlib.suppress(OSError, OverflowError):
      with socket.create_server((listen, port)) as free:
        return free.getsockname()[1]
  raise UserError(f'No port is free on {_host()}.')


def _gather(place: ProcessInfo, hello: dict[str, Any], timeout: float) -> ProcessGroup:
  """Process 0: waits for the others, compares their facts, tells them where JAX will meet."""
  host, port = _address(place)
  try:
    listener = socket.create_server((interface(host), port))
  except OSError as error:
    raise UserError(
      f'Process 0 cannot listen at {place.coordinator} ({os.strerror(error.errno or 0)}); '
      'choose another port.'
    ) from None
  arrivals: list[tuple[dict[str, Any], Connection]] = []
  deadline = time.monotonic() + timeout
  with listener:
    while len(arrivals) < place.num_processes - 1:
      listener.settimeout(max(deadline - time.monotonic(), 0.001))
      try:
        connection = Connection(listener.accept()[0], 2)
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
  address = f'{place.coordinator.rsplit(":", 1)[0]}:{_free_port(interface(host), port + 1)}'
  answer = {'coordinator': address, 'hosts': hosts, 'code': error.exit_code if error else 0}
  for _, connection in arrivals:
    connection.wait_forever()
    connection.say({**answer, 'said': str(error)})
    if error:
      connection.close()
  if error:
    raise error
  return ProcessGroup(0, hosts, {h['id']: c for h, c in arrivals}, address)


def _join(place: ProcessInfo, hello: dict[str, Any], timeout: float) -> ProcessGroup:
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
  connection = Connection(connected, timeout + 10)
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
  return ProcessGroup(place.process_id, answer['hosts'], {0: connection}, answer['coordinator'])


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
  more = len(names) - MOST_NAMES
  return ', '.join(names[:MOST_NAMES]) + (f' and {more} more' if more > 0 else '')


def _absence(place: ProcessInfo, came: Mapping[int, str], timeout: float) -> LostPeerError | None:
  missing = set(range(place.num_processes)) - came.keys()
  if not missing:
    return None
  return LostPeerError(
    f'{len(came)} of {place.num_processes} processes came within {timeout:g} s: '
    f'{_list(came, came)}; missing: {_list(missing, dict(enumerate(place.hosts)))}; '
    '--start_timeout=SECONDS waits longer.'
  )
