"""Hosts that fail in two starts in a row are named."""

import socket

import pytest
from etils import epath

from vit_jax.distributed.failures import FailureLog
from vit_jax.errors import MachineError


def test_only_a_host_that_failed_in_both_of_the_last_starts_is_named(tmp_path):
  failures = [['a', 'b'], ['b/1', 'a'], ['b/1'], [], ['b/1']]
  named = []
  for start, hosts in enumerate(failures):
    log = FailureLog(epath.Path(tmp_path / 'failures'), start)
    named.append([line.split()[1] for line in log.warnings()])
    for host in hosts:
      log.record(host, 'was lost')
      log.record(host, 'was lost')  # by another process
  assert named == [[], [], ['a'], ['b/1'], []]


@pytest.mark.parametrize('is_of_host', [False, True])
def test_a_fault_of_this_host_is_recorded_but_not_one_of_the_storage(is_of_host, tmp_path):
  log = FailureLog(epath.Path(tmp_path / 'failures'), 3)
  with pytest.raises(MachineError), log.recording():
    raise MachineError('it failed', is_of_host)
  files = [file.name for file in (tmp_path / 'failures').glob('*')]
  assert files == [f'3-{socket.gethostname()}.txt'] * is_of_host


def test_a_folder_that_cannot_be_written_fails_no_run(tmp_path):
  (tmp_path / 'failures').write_text('a file')
  log = FailureLog(epath.Path(tmp_path / 'failures'), 2)
  log.record('a', 'was lost')
  assert log.warnings() == []
