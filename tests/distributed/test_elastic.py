"""Runs that start without some of their processes: who starts, and that nothing else changes."""

import json
import socket
import threading
import time

import pytest

from tests.helpers import free_port
from tests.process_groups import close, connect
from vit_jax.distributed import cluster, rendezvous
from vit_jax.distributed.cluster import ProcessInfo
from vit_jax.errors import LostPeerError, UserError

HOST = socket.gethostname()


def connect_some(ids, count, least, batch_sizes=()):
  """Connects the processes `ids` of `count`, for one second; by their ids."""
  results = connect(
    *((i, count, {}) for i in ids),
    timeout=1,
    hosts=tuple('abcd'[:count]),
    least=least,
    batch_sizes=batch_sizes,
  )
  return dict(zip(ids, results, strict=True))


# The flag.


@pytest.mark.parametrize(
  ('arguments', 'env', 'message'),
  [
    (('h:1', 4, 0, 0), {}, '--min_processes=0 must be from 1 to .* 4'),
    (('h:1', 4, 0, 5), {}, '--min_processes=5 must be from 1 to .* 4'),
    ((None, None, None, 1), {}, '--min_processes=1 needs a run of several processes'),
    (
      (None, None, None, 1),
      {'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '1'},
      '--min_processes=1: a TPU slice starts only with all of its hosts',
    ),
  ],
)
def test_numbers_that_cannot_start_a_run_are_refused(arguments, env, message):
  with pytest.raises(UserError, match=message):
    cluster.detect_cluster(*arguments, env={'TPU_SKIP_MDS_QUERY': '1', **env})


def test_a_number_that_can_is_kept():
  slice_env = {'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '1', 'TPU_SKIP_MDS_QUERY': '1'}
  process = cluster.detect_cluster(min_processes=2, env=slice_env)  # all of them
  assert process and process.min_processes == 2
  env = {'TPU_SKIP_MDS_QUERY': '1'}
  process = cluster.detect_cluster('h:1', 4, 3, 1, env=env)
  assert process == ProcessInfo('h:1', 4, 3, min_processes=1)
  # A job of one SLURM task, after a requeue.
  one = {'SLURM_JOB_ID': '1', 'SLURM_STEP_NODELIST': 'n', 'SLURM_PROCID': '0', 'SLURM_NTASKS': '1'}
  assert cluster.detect_cluster(min_processes=1, env=one) is None


# The rendezvous.


@pytest.mark.parametrize('least', [3, None])
def test_too_few_processes_are_an_error_that_names_the_missing(least):
  for error in connect_some([0, 3], 4, least).values():
    assert isinstance(error, LostPeerError)
    assert f'2 of 4 processes connected within 1 s: 0 ({HOST}), 3 ({HOST}); missing: 1 (b), 2 (c); '
    assert ('; --min_processes=3 are needed; ' in str(error)) == (least is not None)
    assert str(error).endswith('--start_timeout=SECONDS waits longer.')


def test_enough_processes_start_with_new_ids():
  groups = connect_some([3, 0, 1], 4, least=3)
  assert {i: group.process_id for i, group in groups.items()} == {0: 0, 1: 1, 3: 2}
  assert len({group.coordinator for group in groups.values()}) == 1
  assert [list(groups[i].hosts) for i in (0, 1, 3)] == [[HOST] * 3] * 3
  assert sorted(groups[0].connections) == [1, 2]
  expected = '3 of 4 processes connected within 1 s; the run starts without 2 (c)'
  assert [groups[i].note for i in (0, 1, 3)] == [expected, '', '']
  groups[0].connections[2].send({'to': 3})
  assert groups[3].connections[0].receive(5) == {'to': 3}
  for group in groups.values():
    close(group)


def test_all_processes_start_at_once_where_all_connect():
  started = time.monotonic()
  groups = connect(*((i, 3, {}) for i in range(3)), least=1, batch_sizes=(12,))
  assert time.monotonic() - started < 10  # of 20
  assert [(group.process_id, len(group.hosts), group.note) for group in groups] == [
    (i, 3, '') for i in range(3)
  ]
  for group in groups:
    close(group)


def test_process_0_may_start_alone():
  group = connect_some([0], 2, least=1)[0]
  assert (group.process_id, list(group.hosts), dict(group.connections)) == (0, [HOST], {})


@pytest.mark.parametrize('connected', [[0, 1, 3], [0, 1, 2, 3]])
def test_processes_that_do_not_divide_the_batch_are_released(connected):
  groups = connect_some(connected, 4, least=1, batch_sizes=(6, 10))
  assert [groups[i].process_id for i in (0, 1)] == [0, 1]
  assert len(groups[0].hosts) == 2
  for i in set(connected) - {0, 1}:
    assert isinstance(groups[i], LostPeerError)
    assert 'because 3 or more do not divide the batches of 6 and 10; rerun' in str(groups[i])
  assert f'3 ({HOST}), because 3 or more' in groups[0].note
  assert ('without 2 (c), and without 3 (' in groups[0].note) == (2 not in connected)
  for i in (0, 1):
    close(groups[i])


def test_a_batch_that_no_number_divides_is_named():
  error = connect_some([0, 1, 2], 4, least=3, batch_sizes=(16,))[1]
  assert isinstance(error, LostPeerError)
  assert 'no number from 3 to 3 divides the batches of 16; ' in str(error)
  # With all processes the devices decide.
  groups = connect_some([0, 1, 2], 3, least=2, batch_sizes=(35,))
  assert [group.process_id for group in groups.values()] == [0, 1, 2]
  for group in groups.values():
    close(group)


def test_a_process_that_died_while_it_waited_is_missing():
  hellos = [{'id': i, 'host': 'x', 'settings': {}} for i in (1, 2)]
  with socket.create_server(('127.0.0.1', 0)) as server:
    clients = []
    for hello in hellos:
      clients.append(socket.create_connection(server.getsockname()))
      clients[-1].sendall(json.dumps(hello).encode() + b'\n')
    clients[0].close()
    peers = rendezvous._accept_peers(server, 3, hellos[0].keys(), 1)
    assert [hello['id'] for hello, _ in peers] == [2]
    for closable in (clients[1], *(connection for _, connection in peers)):
      closable.close()


def test_settings_of_all_that_connect_must_agree():
  errors = connect((0, 3, {'x': 1}), (2, 3, {'x': 2}), timeout=1, least=1, batch_sizes=(3,))
  assert all(
    isinstance(error, UserError) and 'x is 1 on process 0' in str(error) for error in errors
  )


def test_a_late_process_is_told_and_changes_nothing():
  port = free_port()
  first, second, late = (ProcessInfo(f'127.0.0.1:{port}', 3, i, min_processes=2) for i in range(3))
  groups = {}

  def start(process):
    groups[process.process_id] = rendezvous.connect_processes(process, {}, 1)

  threads = [threading.Thread(target=start, args=(process,)) for process in (first, second)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  with pytest.raises(LostPeerError, match='if the run has started without it, it joins the next'):
    rendezvous.connect_processes(late, {}, 0.3)
  groups[0].connections[1].send({'still': 'there'})
  assert groups[1].connections[0].receive(5) == {'still': 'there'}
  for group in groups.values():
    close(group)
