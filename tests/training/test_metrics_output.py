"""Metrics in parts, and storage that fails while they are written."""

import errno
import pathlib
import time

import pytest
from etils import epath

from vit_jax import retries
from vit_jax.run_metrics import metrics_files, read_metrics
from vit_jax.training import metrics, metrics_output
from vit_jax.training.metrics import MetricsWriter


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A local folder that is treated as a bucket."""
  monkeypatch.setattr(metrics, 'is_remote', lambda path: True)
  (tmp_path / 'metrics').mkdir()
  return epath.Path(tmp_path)


@pytest.fixture
def failing(monkeypatch):
  """Paths that cannot be written while their suffix is in the set."""
  failing, write_bytes = set(), type(epath.Path('/x')).write_bytes

  def write(path, content):
    if path.suffix in failing:
      raise OSError(errno.EIO, 'Input/output error', str(path))
    return write_bytes(path, content)

  monkeypatch.setattr(type(epath.Path('/x')), 'write_bytes', write)
  monkeypatch.setattr(retries, '_TOTAL_SECONDS', 0)
  return failing


def write_steps(workdir, first_step, steps):
  with MetricsWriter(workdir, first_step, enabled=True) as writer:
    for step in steps:
      writer.write(step, {'train/loss': 1.0 / step})


def steps_of(workdir):
  return [line['step'] for line in read_metrics(workdir)]


def test_parts_are_bounded_and_resumed(bucket, monkeypatch):
  monkeypatch.setattr(metrics_output, '_MAX_PART', 100)
  write_steps(bucket, 0, range(1, 21))
  assert steps_of(bucket) == list(range(1, 21))
  parts = metrics_files(bucket)
  assert len(parts) > 5 and all(part.stat().length < 160 for part in parts)
  assert parts[0].name == '00000000000001.jsonl'
  write_steps(bucket, 12, range(12, 16))  # also an evaluation of the step that is resumed
  assert steps_of(bucket) == [*range(1, 13), *range(12, 16)]
  events = [x for x in bucket.iterdir() if x.name.startswith('events.out.tfevents.')]
  assert len(events) > 5 and all(x.stat().length < 300 for x in events)


def test_events_are_those_of_tensorboard(tmp_path):
  write_steps(epath.Path(tmp_path), 0, [5])
  (path,) = tmp_path.glob('events.out.tfevents.*')
  content, events = path.read_bytes(), []
  while content:
    size = int.from_bytes(content[:8], 'little')
    events.append(metrics.Event.FromString(content[12 : 12 + size]))
    content = content[16 + size :]
  assert events[0].file_version == 'brain.Event:2'
  assert (events[1].step, events[1].summary.value[0].tag) == (5, 'train/loss')


def test_uploads_are_throttled(bucket, monkeypatch):
  uploads = []
  monkeypatch.setattr(metrics_output, '_UPLOAD_SECONDS', 0.2)
  monkeypatch.setattr(metrics_output, 'with_retries', lambda write, content: uploads.append(write))
  with MetricsWriter(bucket, 0, enabled=True) as writer:
    for step in range(1, 1000):
      writer.write(step, {'train/loss': 1.0})
    assert len(uploads) <= 100  # not one for each line, whatever the load
    deadline = time.monotonic() + 20
    while not uploads and time.monotonic() < deadline:
      time.sleep(0.02)
    assert uploads  # by the thread, without a flush


def test_a_bucket_that_fails_is_reported_once_and_tried_again(bucket, failing, capsys):
  with MetricsWriter(bucket, 0, enabled=True) as writer:
    failing.add('.jsonl')
    for step in (1, 2, 3):
      writer.write(step, {'train/loss': 1.0})
      writer.flush()
    assert metrics_files(bucket) == []
    failing.clear()
  assert steps_of(bucket) == [1, 2, 3]
  first, last = capsys.readouterr().err.splitlines()
  assert 'cannot be written (Input/output error); training continues' in first
  assert last == 'metrics: writing failed 3 times; all were written later'


def test_metrics_that_never_could_be_written_are_counted(bucket, failing, capsys):
  failing.add('.jsonl')
  write_steps(bucket, 0, [1])
  assert capsys.readouterr().err.splitlines()[-1].endswith(' are lost')


def test_a_local_file_that_fails_is_completed_later(tmp_path, monkeypatch, capsys):
  real, failures = open, [True]

  def flaky(path, mode, buffering):
    if failures and str(path).endswith('.jsonl'):
      raise OSError(errno.ESTALE, 'Stale file handle')
    return real(path, mode, buffering)

  monkeypatch.setattr(metrics_output, 'open', flaky, raising=False)
  with MetricsWriter(epath.Path(tmp_path), 0, enabled=True) as writer:
    writer.write(1, {'a': 1.0})
    assert not (tmp_path / 'metrics.jsonl').exists()
    failures.clear()
    writer.write(2, {'a': 1.0})
    assert steps_of(epath.Path(tmp_path)) == [1, 2]
  assert len(capsys.readouterr().err.splitlines()) == 2


def test_what_is_kept_is_bounded(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(metrics_output, '_MAX_KEPT', 100)
  failures = metrics_output.WriteFailures()
  file = metrics_output.LocalFile(epath.Path(tmp_path / 'missing' / 'x'), failures)
  for step in range(30):
    file.append(step, b'0123456789')
  assert file.close() == 100
  (tmp_path / 'missing').mkdir()
  assert file.close() == 0 and pathlib.Path(tmp_path, 'missing/x').stat().st_size == 100
  failures.report_end(0)
  assert '200 B are lost' in capsys.readouterr().err
