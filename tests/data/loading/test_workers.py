"""Worker processes read the same batches as threads and leave nothing behind."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.helpers import SANDBOX, write_images
from vit_jax.config import AugmentConfig, MeshConfig
from vit_jax.data.loading import loader
from vit_jax.data.loading.reader import ReadConfig
from vit_jax.distributed import sharding
from vit_jax.errors import BadExampleError, LostPeerError, UserError

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason='written for eight devices')


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> pathlib.Path:
  """40 images, half of them for tests."""
  folder = tmp_path_factory.mktemp('images')
  for split, seed in (('train', 0), ('test', 1)):
    names = [f'{split}/{name}/{i}.jpg' for name in ('ant', 'bee') for i in range(10)]
    write_images(folder, dict.fromkeys(names, (20, 24)), seed)
  return folder


@pytest.fixture(scope='module')
def damaged(images, tmp_path_factory) -> pathlib.Path:
  """The same, but one image of each split is truncated and one for training is empty."""
  folder = tmp_path_factory.mktemp('damaged') / 'images'
  subprocess.run(['cp', '-r', images, folder], check=True)
  for name in ('train/ant/3.jpg', 'test/bee/0.jpg'):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
  (folder / 'train/bee/7.jpg').write_bytes(b'')
  return folder


def open_loader(
  folder, workers, *, max_bad_fraction=1.0, task_limit=60.0, **fields
) -> loader.DataLoader:
  train = ReadConfig(
    f'folder:{folder}', 'train', (16, 16), seed=3, augment=AugmentConfig(), **fields
  )
  test = ReadConfig(f'folder:{folder}', 'test', (16, 16), **fields)
  streams = {
    'train': loader.open_stream(train, 16, max_bad_fraction=max_bad_fraction),
    'test': loader.open_stream(test, 8, max_bad_fraction=max_bad_fraction),
  }
  return loader.DataLoader(
    streams, sharding.make_mesh(MeshConfig()), workers, task_limit=task_limit
  )


def read(folder, workers, first=0, last=12, **fields):
  with open_loader(folder, workers, **fields) as data_loader:
    train = [jax.device_get(batch) for batch in data_loader.batches('train', first, last)]
    test = [jax.device_get(batch) for batch in data_loader.batches('test')]
    return train, test, data_loader.bad_examples


def assert_same(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize('workers', [1, 2, 4])
def test_workers_read_the_same_batches_as_threads(workers, images):
  train, test, bad = read(images, workers)
  expected_train, expected_test, _ = read(images, 0)
  assert len(train) == 12 and len(test) == 3 and bad == {'train': {}, 'test': {}}
  assert_same(train, expected_train)
  assert_same(test, expected_test)
  later, _, _ = read(images, workers, first=7)
  assert_same(later, expected_train[7:])


def test_workers_replace_bad_examples_like_threads(damaged, images):
  train, test, bad = read(damaged, 2, on_bad_example='skip')
  expected_train, expected_test, expected_bad = read(damaged, 0, on_bad_example='skip')
  assert_same(train, expected_train)
  assert_same(test, expected_test)
  assert bad == expected_bad
  files = [message.split()[0] for message in bad['train'].values()]
  assert sorted(file.split('/')[-2:] for file in files) == [['ant', '3.jpg'], ['bee', '7.jpg']]
  assert sum(batch['mask'].sum() for batch in test) == 19
  healthy, _, _ = read(images, 0)
  is_same = np.concatenate(
    [(a['image'] == b['image']).all((1, 2, 3)) for a, b in zip(train, healthy, strict=True)]
  )
  # Only the rows of the bad examples change: two of twenty.
  assert 0 < (~is_same).sum() <= np.ceil(len(is_same) / 20 + 1) * 2


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_example_ends_the_run_unless_it_is_skipped(workers, damaged):
  flags = r'--config\.data\.on_bad_example=skip \(vit_jax\.evaluate: --on_bad_example=skip\)\.$'
  with pytest.raises(BadExampleError, match=rf'(3|7)\.jpg cannot be read.*{flags}'):
    read(damaged, workers)


@pytest.mark.parametrize('workers', [0, 1])
def test_too_many_bad_examples_end_the_run(workers, damaged):
  with pytest.raises(
    UserError, match=r'\d of 32 .* cannot be read: .* --config\.data\.max_bad_fraction=0\.05;'
  ):
    read(damaged, workers, on_bad_example='skip', max_bad_fraction=0.05)


def test_the_bad_fraction_is_checked_for_each_pass_alone(damaged):
  with open_loader(
    damaged, 0, on_bad_example='skip', max_bad_fraction=0.06
  ) as data_loader:  # one in 20 is bad
    for _ in range(3):
      assert sum(batch['mask'].sum() for batch in data_loader.batches('test')) == 19
    assert (len(data_loader.bad_examples['test']), data_loader.bad_reads['test']) == (1, 3)


def children() -> list[int]:
  """The child processes, without those that libraries keep for other tests."""
  path = pathlib.Path(f'/proc/{os.getpid()}/task')
  pids = [pid for task in path.glob('*/children') for pid in task.read_text().split()]
  return [int(pid) for pid in pids if b'multiprocessing' not in _command(pid)]


def _command(pid: str) -> bytes:
  try:
    return pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
  except OSError:  # it has ended
    return b''


def test_closing_leaves_no_processes_or_open_files(images):
  before = len(os.listdir('/proc/self/fd')), children()
  with open_loader(images, 2) as data_loader:
    for _ in zip(range(3), data_loader.batches('train', 0, 10**9), strict=False):
      assert len(children()) == len(before[1]) + 2
  assert (len(os.listdir('/proc/self/fd')), children()) == before


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_a_worker_that_is_lost_is_replaced_once(number, images, capfd):
  expected, _, _ = read(images, 0)
  with open_loader(images, 1, task_limit=2) as data_loader:
    batches = data_loader.batches('train', 0, 10**9)
    actual = [jax.device_get(next(batches))]
    (pid,) = children()
    os.kill(pid, number)
    # Far more than what is read ahead.
    actual += [jax.device_get(next(batches)) for _ in range(11)]
    assert_same(actual, expected)
    is_stopped = number == signal.SIGSTOP
    reason = 'has not answered for 2 s' if is_stopped else f'ended (signal {number}'
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f'warning: worker 0 (process {pid}) {reason}')
    assert f'while it read {images}/train/' in line and line.endswith('another process reads on.')
    (replacement,) = children()
    assert replacement != pid
    os.kill(replacement, number)
    with pytest.raises(
      LostPeerError, match=rf'^Worker 0 \(process {replacement}\) .*rerun'
    ) as error:
      for _ in batches:
        pass
    assert error.value.exit_code == 76


CRASH = """
import os, signal, sys
from vit_jax.data.decoding import images
from vit_jax.data.loading import reader, worker_main
open_image = reader.open_image
def crash(stored, name, *args):
  if str(name).endswith('ant/3.jpg'):
    os.kill(os.getpid(), signal.SIGSEGV)
  return open_image(stored, name, *args)
reader.open_image = crash
worker_main.main()
"""


def test_an_image_that_crashes_every_worker_is_named(images, monkeypatch, capfd):
  popen = subprocess.Popen
  monkeypatch.setattr(
    subprocess, 'Popen', lambda args, **fields: popen([args[0], '-c', CRASH], **fields)
  )
  with open_loader(images, 2) as data_loader:
    with pytest.raises(LostPeerError, match=r'signal 11.* while it read \S+/ant/3\.jpg, and it'):
      for _ in data_loader.batches('train', 0, 10**9):
        pass
  assert 'another process reads on' in capfd.readouterr().err


def test_closing_does_not_wait_for_a_stopped_worker(images):
  with open_loader(images, 1) as data_loader:
    next(data_loader.batches('train', 0, 10**9))
    pids = children()
    os.kill(pids[0], signal.SIGSTOP)
    start = time.monotonic()
  assert time.monotonic() - start < 10 and not any(map(is_running, pids))


def test_a_folder_that_changes_while_workers_start_is_an_error(images, tmp_path):
  subprocess.run(['cp', '-r', images, tmp_path / 'images'], check=True)
  config = ReadConfig(f'folder:{tmp_path}/images', 'train', (16, 16), augment=AugmentConfig())
  stream = loader.open_stream(config, 16)
  (tmp_path / 'images/train/ant/0.jpg').unlink()
  mesh = sharding.make_mesh(MeshConfig())
  with loader.DataLoader({'train': stream}, mesh, 1) as data_loader:
    with pytest.raises(UserError, match='changed while the run was starting'):
      next(data_loader.batches('train', 0, 1))


READ_FOREVER = """
import sys
from tests.data.loading.test_workers import open_loader
with open_loader(sys.argv[1], 2) as data_loader:
  for step, _ in enumerate(data_loader.batches('train', 0, 10**9)):
    if step == 3:
      from tests.data.loading.test_workers import children
      print(*children(), flush=True)
"""


def is_running(pid: int) -> bool:
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'
  except FileNotFoundError:
    return False


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(number, images):
  process = subprocess.Popen(
    [sys.executable, '-c', READ_FOREVER, str(images)],
    cwd=SANDBOX,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    start_new_session=True,
  )
  workers = [int(pid) for pid in process.stdout.readline().split()]
  assert len(workers) == 2 and all(map(is_running, workers))
  if number == signal.SIGINT:
    os.killpg(process.pid, number)
  else:
    process.send_signal(number)
  _, err = process.communicate(timeout=30)
  deadline = time.monotonic() + 10
  while any(map(is_running, workers)) and time.monotonic() < deadline:
    time.sleep(0.01)
  assert not any(map(is_running, workers))
  if number == signal.SIGINT:
    assert err.rstrip().endswith('KeyboardInterrupt') and err.count('Traceback') == 1


def test_workers_ignore_signals_from_their_first_moment(images):
  with open_loader(images, 2) as data_loader:
    for pid in children()[-2:]:  # Python has only just started
      os.kill(pid, signal.SIGINT)
      os.kill(pid, signal.SIGTERM)
    assert len(list(data_loader.batches('train', 0, 3))) == 3
  assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_workers_import_no_jax():
  code = """
import sys, vit_jax.data.loading.worker_main
sys.exit(', '.join({'jax', 'flax', 'orbax', 'tensorflow'} & set(sys.modules)) or 0)
"""
  result = subprocess.run([sys.executable, '-c', code], cwd=SANDBOX, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
