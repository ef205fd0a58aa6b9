"""Real processes that are killed: exit codes, messages of the others, losses after a resume."""

import re
import resource
import signal
import socket
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath

from tests.helpers import ROOT, losses, write_images
from tests.process_groups import ARGUMENTS, messages, start_group, wait_for_exit, wait_for_line
from vit_jax import command_line
from vit_jax.checkpoints import manifest
from vit_jax.errors import DeviceMemoryError, UserError, memory_explained
from vit_jax.training.workdir import resolve_workdir


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('uninterrupted')
  codes, errors = wait_for_exit(start_group(1, 1, *ARGUMENTS, f'--workdir={workdir}'))
  assert codes == [0], errors
  return workdir


def test_a_run_that_is_preempted_and_killed_resumes_on_other_topologies(uninterrupted, tmp_path):
  arguments = (*ARGUMENTS, f'--workdir={tmp_path}')
  # SIGTERM to one of four processes: all save the same step.
  group = start_group(4, 2, *arguments, '--config.mesh.data=2', '--config.mesh.fsdp=4')
  wait_for_line(group[0], 'step 10/')
  group[2].terminate()
  codes, errors = wait_for_exit(group)
  assert codes == [75] * 4, errors
  (message,) = {message for text in errors for message in messages(text)}
  step = int(re.search(r'step (\d+) is saved', message)[1])
  assert manifest.verify(epath.Path(tmp_path / f'checkpoints/{step}')) is None
  # SIGTERM while the resumed run compiles.
  group = start_group(2, 4, *arguments, '--config.mesh.fsdp=8', '--config.mesh.data=1')
  wait_for_line(group[0], 'workdir ')
  group[1].terminate()
  codes, errors = wait_for_exit(group)
  assert codes == [75] * 2, errors
  # SIGKILL to one of two processes: first to process 1, then to the coordinator.
  for lost, prefix in ((1, 'step 26/'), (0, 'step 42/')):
    group = start_group(2, 4, *arguments, '--config.mesh.fsdp=8', '--config.mesh.data=1')
    wait_for_line(group[0], prefix)
    group[lost].kill()
    killed = time.monotonic()
    codes, errors = wait_for_exit(group)
    assert time.monotonic() - killed < 10
    assert codes[lost] == -signal.SIGKILL and codes[1 - lost] == 76, errors
    expected = f'error: process {lost} ({socket.gethostname()}) was lost'
    assert [m[: len(expected)] for m in messages(errors[1 - lost])] == [expected]
  group = start_group(1, 8, *arguments, '--config.mesh.data=4', '--config.mesh.tensor=2')
  wait_for_line(group[0], f'warning: {socket.gethostname()} failed in the last two starts')
  codes, errors = wait_for_exit(group)
  assert codes == [0], errors
  np.testing.assert_allclose(losses(tmp_path), losses(uninterrupted), rtol=1e-5)


def test_an_error_of_one_process_ends_the_others(tmp_path):
  write_images(tmp_path / '0/data', {f'{c}/{i}.png': (8, 8) for c in 'ab' for i in range(20)})
  (tmp_path / '1').mkdir()  # without data
  group = start_group(
    2,
    1,
    *ARGUMENTS,
    f'--config={ROOT}/configs/quickstart.py',
    f'--workdir={tmp_path}/run',
    '--config.data.train.source=folder:data',
    '--config.data.test.source=folder:data',
    cwd=lambda i: tmp_path / str(i),
    PYTHONPATH=str(ROOT),
  )
  codes, errors = wait_for_exit(group)
  assert codes == [2, 2], errors
  (failure,), (report,) = messages(errors[1]), messages(errors[0])
  assert failure.startswith('error: There is no folder data')
  assert report.startswith('error: process 1 (') and failure.removeprefix('error: ') in report


def test_two_hosts_whose_test_folders_differ_by_one_image_are_named(tmp_path):
  """The one with a batch more would wait for ever."""
  for i in '01':
    names = [f'{split}/{c}/{n}.png' for split in ('train', 'test') for c in 'ab' for n in range(8)]
    names += ['test/b/8.png'] * (i == '1')
    write_images(tmp_path / i / 'data', dict.fromkeys(names, (8, 8)))
  group = start_group(
    2,
    1,
    *ARGUMENTS,
    f'--config={ROOT}/configs/quickstart.py',
    f'--workdir={tmp_path}/run',
    '--config.data.train.source=folder:data',
    '--config.data.test.source=folder:data',
    '--config.eval_batch_size=16',
    cwd=lambda i: tmp_path / str(i),
    PYTHONPATH=str(ROOT),
  )
  codes, errors = wait_for_exit(group)
  assert codes == [2, 2], errors
  for text in errors:
    (message,) = messages(text)
    assert 'the test split has 16 examples on process 0 (' in message
    assert ') and 17 on process 1 (' in message
  assert not (tmp_path / 'run').exists()


def test_a_workdir_that_is_not_shared_is_named(tmp_path):
  for i in '01':
    (tmp_path / i).mkdir()
  group = start_group(
    2,
    1,
    *ARGUMENTS,
    f'--config={ROOT}/configs/quickstart.py',
    '--workdir=run',
    cwd=lambda i: tmp_path / str(i),
    PYTHONPATH=str(ROOT),
  )
  codes, errors = wait_for_exit(group)
  assert codes == [2, 2], errors
  for text in errors:
    (message,) = messages(text)
    assert 'is not one folder for all processes: process 1 does not see' in message
  assert not (tmp_path / '0/run/checkpoints').exists()


def test_a_full_disk_leaves_the_earlier_checkpoints_intact(tmp_path):
  (process,) = start_group(1, 1, *ARGUMENTS, f'--workdir={tmp_path}')
  wait_for_line(process, 'step 20/')
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**14, resource.RLIM_INFINITY))
  codes, errors = wait_for_exit([process])
  assert codes == [2], errors
  assert len(messages(errors[0])) == 1 and 'cannot be written' in errors[0]
  folder = epath.Path(tmp_path / 'checkpoints')
  kept = [int(child.name) for child in folder.iterdir() if child.name.isdecimal()]
  assert kept and all(manifest.verify(folder / str(step)) is None for step in kept)
  (resumed,) = start_group(1, 1, *ARGUMENTS, f'--workdir={tmp_path}')
  wait_for_line(resumed, f'workdir {tmp_path}, resuming after step {max(kept)}')
  resumed.kill()
  resumed.communicate()


# A run in which no checkpoint can be completed.
FAILING_COMMITS = """
import errno
from vit_jax import command_line, main
from vit_jax.checkpoints import manifest
def fail(folder):
  raise OSError(errno.EIO, 'Input/output error')
manifest.write_manifest = fail
command_line.run(main.main)
"""


def test_all_processes_skip_saves_that_one_cannot_complete(tmp_path):
  arguments = (*ARGUMENTS, '--config.total_steps=24', f'--workdir={tmp_path}')
  group = start_group(2, 1, *arguments, command=('-c', FAILING_COMMITS))
  codes, errors = wait_for_exit(group)
  skipped = [line for line in errors[0].splitlines() if line.startswith('warning: the checkpoint')]
  assert [re.search(r'step (\d+) is skipped', line)[1] for line in skipped] == ['8', '16']
  assert codes == [77, 77], errors  # the last is not skipped
  assert not list((tmp_path / 'checkpoints').iterdir())


def test_a_process_without_space_ends_all_at_once(tmp_path):
  """It never reaches the barriers at which Orbax would wait for it for 20 minutes."""
  group = start_group(2, 1, *ARGUMENTS, '--config.mesh.fsdp=2', f'--workdir={tmp_path}')
  wait_for_line(group[0], 'step 10/')
  resource.prlimit(group[1].pid, resource.RLIMIT_FSIZE, (2**10, resource.RLIM_INFINITY))
  codes, errors = wait_for_exit(group)
  assert codes == [2, 2], errors
  assert all('cannot be written' in messages(text)[0] for text in errors)


def test_a_bucket_without_its_library_is_refused(monkeypatch):
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  with pytest.raises(UserError, match=r'gs://bucket/run cannot be reached .*vit_jax\[gcs\]'):
    resolve_workdir('gs://bucket/run')


def test_too_little_device_memory_is_one_sentence():
  with pytest.raises(DeviceMemoryError, match='4000000000000000 bytes.*; use less[.]'):
    with memory_explained('use less'):
      jax.jit(lambda: jax.numpy.ones((10**8, 10**7)))().block_until_ready()
  with pytest.raises(ValueError, match='else'):
    with memory_explained('use less'):
      raise ValueError('something else')


@pytest.mark.parametrize(
  ('error', 'code', 'message'),
  [
    (OSError(28, 'No space left on device', '/x'), 2, 'error: /x cannot be written (No'),
    (UserError('What.'), 2, 'error: What.'),
    (OSError(5, 'Input/output error'), 1, 'Traceback'),
    (KeyboardInterrupt(), 130, 'interrupted'),
  ],
)
def test_exit_codes(error, code, message, capsys):
  def main():
    raise error

  with pytest.raises(SystemExit) as system_exit:
    command_line.run(main)
  assert system_exit.value.code == code
  assert capsys.readouterr().err.startswith(message)
