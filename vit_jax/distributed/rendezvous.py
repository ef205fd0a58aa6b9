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
from vit_jax.distributed.connection import Connection
from vit_jax.errors import LostPeerError, UserError

MAX_LISTED = 8  # processes in a message

_Peer = tuple[dict[str, Any], Connection]  # its hello, the connection with it


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
  """The connected processes of a run."""

  process_id: int  # of this process, in this group
  hosts: Sequence[str]  # host name of each process
  connections: Mapping[int, Connection]  # process 0 with each of the others
  coordinator: str  # HOST:PORT where JAX's coordinator must listen
  note: str = ''  # of process 0: which processes the group is without


def connect_processes(
  process: ProcessInfo, settings: Mapping[str, Any], timeout: float, batch_sizes: Sequence[int] = ()
) -> ProcessGroup:
  """Connects process 0 with all others and compares their settings; see `distributed_run`.

  If `process.min_processes` suffice, the group may be without some. Then it has new ids, from 0, in
  the order of the old ones.
  """
  settings = {
    '--num_processes': process.num_processes,
    '--min_processes': process.min_processes,
    **settings,
  }
  hello = {'id': process.process_id, 'host': socket.gethostname(), 'settings': settings}
  hello = json.loads(json.dumps(hello))  # tuples are lists, as in the messages of the others
  if process.process_id == 0:
    return _listen_for_others(process, hello, timeout, batch_sizes)
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


def _listen_for_others(
  process: ProcessInfo, hello: dict[str, Any], timeout: float, batch_sizes: Sequence[int]
) -> ProcessGroup:
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
  ids = _choose_processes(process, sorted(names), batch_sizes)
  absence = _describe_absence(process, names, ids, timeout, batch_sizes)
  error = _settings_error(hellos) or (None if ids else LostPeerError(absence))
  coordinator = f'{host}:{_free_port(bind_address(host), int(port) + 1)}'
  group = {'coordinator': coordinator, 'hosts': [names[i] for i in ids]}
  connections = {}
  for peer, connection in peers:
    i, refusal = peer['id'], error
    if refusal is None and i not in ids:
      refusal = LostPeerError(f'{absence}; rerun the same command to join its next start.')
    if refusal is None:
      connections[ids.index(i)] = connection
      connection.send({**group, 'id': ids.index(i), 'code': 0})
    else:
      connection.send({'code': refusal.exit_code, 'message': str(refusal)})
      connection.close()
  if error:
    raise error
  return ProcessGroup(0, group['hosts'], connections, coordinator, absence)


def _choose_processes(
  process: ProcessInfo, connected: Sequence[int], batch_sizes: Sequence[int]
) -> Sequence[int]:
  """Which of the connected processes start the run: the most that divide it; none if too few."""
  for count in range(len(connected), (process.min_processes or process.num_processes) - 1, -1):
    if not any(size % count for size in batch_sizes):
      return connected[:count]
  # All of them find out why, once they know their devices.
  return connected if len(connected) == process.num_processes else ()


def _accept_peers(
  server: socket.socket, count: int, hello_keys: Iterable[str], timeout: float
) -> list[_Peer]:
  """The hello and the connection of `count` processes, or of those within the timeout."""
  peers: list[_Peer] = []
  deadline = time.monotonic() + timeout
  while len(peers := _without_exited(peers)) < count:
    server.settimeout(max(deadline - time.monotonic(), 0.001))
    try:
      connection = Connection(server.accept()[0])
    except TimeoutError:
      break
    hello = connection.receive(timeout=2)
    if not hello or hello.keys() != hello_keys:  # not a process of ours
      connection.close()
    else:
      peers.append((hello, connection))
  return _without_exited(peers)


def _without_exited(peers: Sequence[_Peer]) -> list[_Peer]:
  """Those that still wait: one that has exited may be missing, or have been restarted."""
  exited = [peer for peer in peers if peer[1].is_closed_by_peer()]
  for _, connection in exited:
    connection.close()
  return [peer for peer in peers if peer not in exited]


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
        is_elastic = process.min_processes not in (None, process.num_processes)
        joins = '; if the run has started without it, it joins the next start' * is_elastic
        raise LostPeerError(
          f'Process 0 did not answer at {process.coordinator} within {timeout:g} s '
          f'({error.strerror or error}); start it, or let {name} wait longer with '
          f'--start_timeout=SECONDS{joins}.'
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
  return ProcessGroup(answer['id'], answer['hosts'], {0: connection}, answer['coordinator'])


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


def _describe_absence(
  process: ProcessInfo,
  hosts: Mapping[int, str],
  ids: Sequence[int],
  timeout: float,
  batch_sizes: Sequence[int],
) -> str:
  """A sentence about the processes that the run is without, or that it cannot start without.

  Args:
    process: process 0.
    hosts: the host names of those connected, by their ids.
    ids: those that start the run; none if they are too few.
    timeout: in seconds, after which others were missing.
    batch_sizes: which the number of processes must divide.
  """
  missing, surplus = set(range(process.num_processes)) - hosts.keys(), hosts.keys() - set(ids)
  least = process.min_processes or process.num_processes
  sizes = ' and '.join(map(str, batch_sizes))
  missing_text = _list(missing, dict(enumerate(process.hosts)))
  text = f'{len(hosts)} of {process.num_processes} processes connected within {timeout:g} s'
  if not ids:
    reason = f'--min_processes={least} are needed; ' if least < process.num_processes else ''
    if len(hosts) >= least:
      reason = f'no number from {least} to {len(hosts)} divides the batches of {sizes}; '
    listed = f'{_list(hosts, hosts)}; missing: {missing_text}'
    return f'{text}: {listed}; {reason}--start_timeout=SECONDS waits longer.'
  without = []
  if missing:
    without.append(f'without {missing_text}')
  if surplus:
    reason = f'because {len(ids) + 1} or more do not divide the batches of {sizes}'
    without.append(f'without {_list(surplus, hosts)}, {reason}')
  return f'{text}; the run starts {", and ".join(without)}' if without else ''
