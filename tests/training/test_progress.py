"""What a run says about itself: devices, batches, bytes, compile time, waiting, utilisation."""

import os
import signal
import time
import types

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax.distributed import sharding as mesh_lib
from vit_jax.models.flops import train_flops
from vit_jax.planning import topologies
from vit_jax.training import progress as progress_lib
from vit_jax.training.program import build_program

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason='written for eight devices')


@pytest.fixture(scope='module')
def config():
  config = config_lib.default_config()
  config.update_from_flattened_dict(
    {
      'total_steps': 10,
      'batch_size': 64,
      'accumulation_steps': 2,
      'data.image_size': 8,
      'model.patch_size': 4,
      'model.width': 64,
      'model.depth': 1,
      'model.mlp_dim': 256,
      'model.num_heads': 4,
      'mesh.data': 2,
      'mesh.fsdp': 2,
      'mesh.tensor': 2,
    }
  )
  return config


@pytest.fixture(scope='module')
def program(config):
  return build_program(config, mesh_lib.make_mesh(config.mesh), 10)


def test_description(config, program):
  devices, batch, parameters = progress_lib.describe(config, program)
  assert devices == '8 cpu devices of 1 process; mesh data 2 x fsdp 2 x tensor 2'
  assert batch == 'batch 64: 64 a host, 16 a device in micro-batches of 8'
  assert ' parameters: ' in parameters


def test_bytes_are_what_devices_hold(program):
  state = program.init(None)
  sizes = mesh_lib.sharded_bytes(program.abstract_state)
  leaves = jax.tree.leaves(state)
  held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
  assert sizes['device'] == held < sum(leaf.nbytes for leaf in leaves)
  whole = sum(leaf.nbytes for leaf in leaves if leaf.is_fully_replicated)
  assert 0 < sizes['replicated'] == whole
  assert sizes['sharded'] + sizes['replicated'] == sum(leaf.nbytes for leaf in leaves)


@pytest.mark.parametrize(
  ('size', 'text'), [(0, '0 B'), (999, '999 B'), (1234, '1.23 kB'), (25 * 10**8, '2.5 GB')]
)
def test_sizes_are_readable(size, text):
  assert progress_lib._bytes(size) == text


def test_compiling_says_what_it_took(config, program, capsys):
  compiled = progress_lib.Progress(config, program, 0).compile()
  out = capsys.readouterr().out
  assert 'the train step was compiled in' in out and 'of temporaries' in out
  assert compiled.memory_analysis().argument_size_in_bytes > 0


LOADER = types.SimpleNamespace(bad={'train': {}, 'test': {}}, bad_reads={'train': 0}, num_workers=0)


class Clock:
  """Time goes by when a test says so."""

  now = 100.0

  def monotonic(self) -> float:
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(progress, 'time', clock)
  return clock


@pytest.fixture
def progress(config, program, tmp_path, clock):
  progress = progress_lib.Progress(config, program, 0)
  source = progress_lib.Source('numbers', 5, None, ('a', 'b'))
  with progress:
    progress.start((source, source), tmp_path)
    yield progress


def batches(clock, seconds):
  for i in range(3):
    clock.now += seconds
    yield i


def test_waiting_for_data_is_measured(progress, clock):
  assert list(progress.waiting_for(batches(clock, 1))) == [0, 1, 2]
  clock.now += 1
  values = progress.log(2, 1.0, LOADER)
  assert values['train/data_wait/process_0'] == 3 / 4
  assert values['train/images_per_second'] == 2 * 64 / 4
  clock.now += 1
  assert progress.log(4, 1.0, LOADER)['train/data_wait/process_0'] == 0


def test_pauses_count_neither_as_time_nor_as_waiting(progress, clock):
  with progress.paused():
    list(progress.waiting_for(batches(clock, 5)))
  clock.now += 2
  values = progress.log(1, 1.0, LOADER)
  assert values['train/images_per_second'] == 64 / 2
  assert values['train/data_wait/process_0'] == 0


def test_ctrl_c_waits_for_a_line_to_be_written(tmp_path, monkeypatch):
  writer = progress_lib.MetricsWriter(tmp_path, 0, enabled=True)

  def interrupted(*args) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)  # where it would strike

  monkeypatch.setattr(writer._board, 'add_scalar', interrupted)
  with pytest.raises(KeyboardInterrupt):
    writer.write(1, {'a': 1.0, 'b': 2.0})
  with writer:
    pass
  assert (tmp_path / 'metrics.jsonl').read_text() == '{"step": 1, "a": 1.0, "b": 2.0}\n'
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def starve(progress, clock, steps, feed) -> None:
  """Waits 3 of 4 seconds in each of `steps` intervals."""
  for step in steps:
    list(progress.waiting_for(batches(clock, 1)))
    clock.now += 1
    progress.log(step, 1.0, feed)


def test_a_run_that_starves_says_so_once_with_the_numbers_to_change(
  progress, clock, capsys, monkeypatch
):
  monkeypatch.setattr(progress, 'num_cores', lambda: 16)
  feed = types.SimpleNamespace(bad={'train': {}, 'test': {}}, bad_reads={'train': 0}, num_workers=2)
  starve(progress, clock, [1], feed)
  assert 'wait' not in capsys.readouterr().out.replace('waiting', '')  # queues were still empty
  starve(progress, clock, [2, 3, 4], feed)
  out = capsys.readouterr().out
  assert out.count('the devices wait') == 1
  assert 'wait 75% of the time' in out and '--config.data.workers=8 (now 2, 16 cores)' in out
  assert '16 images/s; they could take 64' in out


def test_with_all_cores_reading_preparing_is_what_is_left(progress, clock, capsys, monkeypatch):
  monkeypatch.setattr(progress, 'num_cores', lambda: 2)
  feed = types.SimpleNamespace(bad={'train': {}, 'test': {}}, bad_reads={'train': 0}, num_workers=2)
  starve(progress, clock, [1, 2], feed)
  assert 'prepare_data SOURCE TARGET --size=256' in capsys.readouterr().out


def test_bad_examples_are_named_and_counted(progress, clock, capsys):
  bad = {i: f'{i}.jpg cannot be read.' for i in range(3)}
  feed = types.SimpleNamespace(
    bad={'train': bad, 'test': {}}, bad_reads={'train': 3}, num_workers=2
  )
  clock.now += 1
  assert progress.log(1, 1.0, feed)['train/bad_examples'] == 3
  assert capsys.readouterr().out.count('skipped: ') == 3
  bad |= {i: f'{i}.jpg cannot be read.' for i in range(20)}
  feed.bad_reads['train'] = 20
  clock.now += 1
  assert progress.log(2, 1.0, feed)['train/bad_examples'] == 20
  out = capsys.readouterr().out
  assert out.count('skipped: ') == 2 and 'more are counted' in out


def test_utilization_is_that_of_the_models_arithmetic(progress, program, clock, monkeypatch):
  clock.now += 1
  # A CPU's peak is unknown.
  assert 'train/model_flops_utilization' not in progress.log(1, 1.0, LOADER)
  monkeypatch.setattr(progress, 'peak_flops', lambda mesh: mesh.size * 1e9)
  clock.now += 1
  found = progress.log(2, 1.0, LOADER)['train/model_flops_utilization']
  np.testing.assert_allclose(found, 64 * train_flops(program.model, (8, 8)) / 8e9)


@pytest.mark.parametrize(
  ('kind', 'each'),
  [
    ('TPU v3', 61.5e12),  # a core of two
    ('TPU v5 lite', 197e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA A100-SXM4-40GB', 312e12),
    ('cpu', None),
  ],
)
def test_peaks_of_devices(kind, each, monkeypatch):
  class Device:
    device_kind = kind

  class Mesh:
    size, devices = 4, np.array([Device()] * 4)

  assert topologies.peak_flops(Mesh()) == (each and 4 * each)
