"""Runs that start without some of their processes: who starts, and that nothing else changes."""

import re
import signal
import socket
import threading
import time

import numpy as np
import pytest

from tests.helpers import free_port, losses, write_images
from tests.process_groups import (
  ARGUMENTS,
  close,
  connect,
  messages,
  start_group,
  wait_for_exit,
  wait_for_line,
)
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


# Real processes.

# The command; it records a hash of each row of each batch that it trains on, by step and row.
COMMAND = """
import hashlib, os, pathlib, sys, time
import numpy as np
from vit_jax import command_line, main
from vit_jax.training import loop

folder = pathlib.Path(os.environ['RECORDS'])
(folder / f'imported.{os.getpid()}').touch()
while '--process_id=0' in sys.argv and len(list(folder.iterdir())) < int(os.environ['IMPORTED']):
  time.sleep(0.1)  # so that nobody is missing because it starts slowly
batches = loop.DataLoader.batches

def recorded(self, name, first_step=0, last_step=None):
  for step, batch in enumerate(batches(self, name, first_step, last_step), start=first_step):
    for image, label in zip(*(batch[key].addressable_shards for key in ('image', 'label'))):
      start = image.index[0].start or 0
      for row, pair in enumerate(zip(np.asarray(image.data), np.asarray(label.data)), start):
        digest = hashlib.sha256(b''.join(array.tobytes() for array in pair)).hexdigest()
        if name == 'train':
          with open(folder / f'rows.{os.getpid()}', 'a') as file:
            print(step, row, digest, file=file)
    yield batch

loop.DataLoader.batches = recorded
command_line.run(main.main)
"""
STEPS, BATCH = 18, 12


def start_recorded(workdir, count, ids, *arguments):
  """Starts the processes `ids` of `count`; they record what they train on in WORKDIR.records/."""
  records = workdir.with_suffix('.records')
  records.mkdir(exist_ok=True)
  images = workdir.parent
  return start_group(
    count,
    1,
    *ARGUMENTS,
    f'--config.batch_size={BATCH}',
    f'--config.total_steps={STEPS}',
    f'--config.data.train.source=3*folder:{images}/a + 1*folder:{images}/b',
    f'--config.data.test.source=folder:{images}/a',
    '--config.data.skip_batches=((3,5),(9,10))',
    '--config.data.workers=0',
    '--config.eval_batch_size=12',
    f'--config.eval_every={STEPS}',
    '--config.checkpoint.every=6',
    f'--workdir={workdir}',
    *arguments,
    command=('-c', COMMAND),
    ids=ids,
    RECORDS=str(records),
    IMPORTED=str(len(list(records.iterdir())) + len(ids)),
  )


def read_records(workdir):
  """The hashes {(step, row): {digest, …}} of all starts."""
  records = {}
  for file in workdir.with_suffix('.records').glob('rows.*'):
    for line in file.read_text().splitlines():
      step, row, digest = line.split()
      records.setdefault((int(step), int(row)), set()).add(digest)
  return records


def check_logs(folder):
  """Each process has a log of its starts, by the number that its launcher gave it."""
  logs = {i: (folder / f'{HOST}-{i}.log').read_text() for i in range(4)}
  starts = [re.findall(r'^--- .* UTC, process (\d) on ', logs[i], re.MULTILINE) for i in logs]
  assert starts == [['0'] * 3, ['1'] * 3, ['2'] * 2, ['3'] * 3]
  assert all('\nstopped: received SIGTERM; step ' in log for log in logs.values())
  lost = f'\nerror: process 2 ({HOST}) was lost'
  assert [lost in log for log in logs.values()] == [True, True, False, False]
  assert '; the run starts without 2.\n' in logs[0] and f'\nstep {STEPS}/{STEPS}, ' in logs[0]
  assert not any('\nstep ' in logs[i] for i in (1, 2, 3))  # one console


def test_a_run_on_four_three_and_four_processes_is_that_of_one(tmp_path):
  for seed, name in enumerate('ab'):
    names = [f'{s}/{c}/{i}.png' for s in ('train', 'test') for c in 'xy' for i in range(6 + seed)]
    write_images(tmp_path / name, dict.fromkeys(names, (8, 8)), seed)
  uninterrupted, run = tmp_path / 'uninterrupted', tmp_path / 'run'
  (single,) = start_recorded(uninterrupted, 1, [0])

  group = start_recorded(run, 4, [0, 1, 2, 3])
  wait_for_line(group[0], 'step 4/')
  group[2].terminate()
  codes, errors = wait_for_exit(group)
  assert codes == [75] * 4, errors

  flags = ('--min_processes=3', '--start_timeout=3')
  group = start_recorded(run, 4, [0, 1, 3], *flags)
  wait_for_line(group[0], '3 of 4 processes connected within 3 s; the run starts without 2.')
  wait_for_line(group[0], 'step 12/')
  group[2].kill()
  codes, errors = wait_for_exit(group)
  assert codes == [76, 76, -signal.SIGKILL], errors
  assert messages(errors[1])[0].startswith(f'error: process 2 ({HOST}) was lost')

  codes, errors = wait_for_exit(start_recorded(run, 4, [0, 1, 2, 3], *flags))
  assert codes == [0] * 4, errors
  codes, errors = wait_for_exit([single])
  assert codes == [0], errors
  expected, records = read_records(uninterrupted), read_records(run)
  assert sorted(expected) == [(step, row) for step in range(STEPS) for row in range(BATCH)]
  assert len(set.union(*expected.values())) == STEPS * BATCH  # augmentation makes all differ
  assert records == expected
  check_logs(run / 'logs')
  np.testing.assert_allclose(losses(run), losses(uninterrupted), rtol=1e-5)
