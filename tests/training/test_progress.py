"""What a run prints about itself: devices, batches, compile time, starving, bad examples."""

import types

import jax
import pytest

from tests.helpers import make_sharded_program
from vit_jax.data.sources import Source
from vit_jax.distributed import sharding
from vit_jax.training import progress as progress_lib

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason='written for eight devices')


@pytest.fixture(scope='module')
def program():
  return make_sharded_program()


def test_description(program):
  devices, batch, parameters = progress_lib.describe(program)
  assert devices == '8 cpu devices of 1 process; mesh data 2 x fsdp 2 x tensor 2'
  assert batch == 'batch 64: 64 per host, 16 per device in micro-batches of 8'
  assert ' parameters: ' in parameters


def test_bytes_are_what_devices_hold(program):
  state = program.init(None)
  sizes = sharding.sharded_bytes(program.abstract_state)
  leaves = jax.tree.leaves(state)
  held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
  assert sizes['device'] == held < sum(leaf.nbytes for leaf in leaves)
  replicated = sum(leaf.nbytes for leaf in leaves if leaf.is_fully_replicated)
  assert 0 < sizes['replicated'] == replicated
  assert sizes['sharded'] + sizes['replicated'] == sum(leaf.nbytes for leaf in leaves)


def test_compiling_prints_time_and_memory(program, capsys):
  compiled = program.start_compiling().result()
  progress_lib.Progress(program, 0).print_compiled(compiled)
  out = capsys.readouterr().out
  assert f'the train step was compiled in {compiled.seconds:.1f} s' in out
  assert 'of temporaries' in out
  assert compiled.call.memory_analysis().argument_size_in_bytes > 0


@pytest.fixture
def progress(program, tmp_path):
  source = Source('numbers', 5, None, ('a', 'b'))
  with progress_lib.Progress(program, 0) as progress:
    progress.print_start(source, source, tmp_path)
    yield progress


def metrics(wait: float, images_per_second: float = 16.0) -> dict[str, float]:
  return {
    'train/loss': 1.0,
    'train/images_per_second': images_per_second,
    'train/goodput': 0.93,
    'train/data_wait/mean': wait / 2,
    'train/data_wait/max': wait,
    'train/data_wait/slowest_process': 1,
  }


def make_loader(num_workers=0, bad=()):
  return types.SimpleNamespace(
    bad_examples={'train': dict(bad), 'test': {}}, num_workers=num_workers
  )


def test_a_starving_run_warns_once_with_the_number_to_change(progress, capsys, monkeypatch):
  monkeypatch.setattr(progress_lib, 'num_cores', lambda: 16)
  loader = make_loader(num_workers=2)
  progress.print_metrics(1, metrics(0.75), loader)
  assert 'devices wait' not in capsys.readouterr().out  # the queues were still empty
  for step in (2, 3, 4):
    progress.print_metrics(step, metrics(0.75), loader)
  out = capsys.readouterr().out
  assert out.count('the devices wait') == 1
  assert 'wait for data 75% of the time' in out
  assert '--config.data.workers=8 (now 2, 16 cores)' in out
  assert '16 images/s, they could take 64' in out


def test_with_all_cores_reading_it_recommends_preparing(progress, capsys, monkeypatch):
  monkeypatch.setattr(progress_lib, 'num_cores', lambda: 2)
  for step in (1, 2):
    progress.print_metrics(step, metrics(0.75), make_loader(num_workers=2))
  assert 'prepare_data SOURCE TARGET --size=256' in capsys.readouterr().out


def test_bad_examples_are_named_up_to_five(progress, capsys):
  bad = {i: f'{i}.jpg cannot be read.' for i in range(3)}
  progress.print_metrics(1, metrics(0.0), make_loader(bad=bad))
  assert capsys.readouterr().out.count('skipped: ') == 3
  bad |= {i: f'{i}.jpg cannot be read.' for i in range(20)}
  progress.print_metrics(2, metrics(0.0), make_loader(bad=bad))
  out = capsys.readouterr().out
  assert out.count('skipped: ') == 2 and 'more are counted' in out
