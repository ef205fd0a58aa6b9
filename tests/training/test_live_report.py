"""The page that a run keeps: whatever fails is one warning, and nothing waits for it."""

import json
import time

import pytest
from etils import epath

from tests.helpers import TINY
from vit_jax.config import MeshConfig, load_config
from vit_jax.data.loading.loader import open_streams
from vit_jax.data.sources import open_source
from vit_jax.distributed import sharding
from vit_jax.training import live_report
from vit_jax.training.live_report import LiveReport
from vit_jax.training.program import build_program


@pytest.fixture(scope='module')
def parts():
  """A program and the streams of a tiny run."""
  config = load_config('configs/quickstart.py', list(TINY))
  train, test = open_source('digits', 'train'), open_source('digits', 'test')
  mesh, data = sharding.make_mesh(MeshConfig()), config.data
  program = build_program(
    mesh, config.model, config.optimizer, config.schedule, config.step, data.image_shape, 10
  )
  return program, open_streams(data, train, test, config.batch_size, 120, 0)


def wait_for(condition):
  deadline = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_the_page_is_renewed(tmp_path, parts):
  page = tmp_path / 'report.html'
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 3.0}\n')
  with LiveReport(epath.Path(tmp_path), 1, *parts) as report:
    wait_for(page.exists)  # at the start, with what is there
    assert 'lowest 3 at step 1' in page.read_text()
    report.add(2, {'train/loss': 2.0})
    report.renew()
    wait_for(lambda: 'lowest 2 at step 2' in page.read_text())
    report.add(3, {'train/loss': float('nan'), 'test/accuracy': 0.5})
  assert 'test/accuracy by step' in page.read_text()
  assert len(json.loads((tmp_path / 'report' / 'first_batch.json').read_text())['pictures']) == 16


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path, parts, capsys):
  (tmp_path / 'report.html').mkdir()  # in their place
  (tmp_path / 'report').write_text('')
  with LiveReport(epath.Path(tmp_path), 0, *parts) as report:
    for step in range(3):
      report.add(step, {'train/loss': 1.0})
      report.renew()
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and 'report.html is not complete' in err
  assert 'training continues' in err


def test_a_storage_that_hangs_delays_only_the_end(tmp_path, parts, capsys, monkeypatch):
  monkeypatch.setattr(live_report, '_END_SECONDS', 0.2)
  monkeypatch.setattr(live_report, 'write_text', lambda *unused: time.sleep(3))
  before = time.monotonic()
  with LiveReport(epath.Path(tmp_path), 6, *parts) as report:
    report.renew()
    for step in range(1000):
      report.add(step, {'train/loss': 1.0})
    assert time.monotonic() - before < 1
  assert 'it is not written after 0.2 s' in capsys.readouterr().err
  assert time.monotonic() - before < 2.5


def test_other_processes_write_nothing(tmp_path, parts, monkeypatch):
  monkeypatch.setattr(live_report.jax, 'process_index', lambda: 1)
  with LiveReport(epath.Path(tmp_path), 0, *parts) as report:
    report.add(1, {'train/loss': 1.0})
    report.renew()
  assert not list(tmp_path.iterdir())
