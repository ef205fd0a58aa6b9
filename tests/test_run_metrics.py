"""Metrics are read, and truncated, alike from one file, from parts, and from both."""

import json

import pytest
from etils import epath

from vit_jax.run_metrics import (
  metrics_files,
  part_name,
  read_metrics,
  stream_metrics,
  truncate_metrics,
)


def text(*steps: int) -> str:
  return ''.join(json.dumps({'step': step, 'a': step / 2}) + '\n' for step in steps)


def write_whole(workdir):
  (workdir / 'metrics.jsonl').write_text(text(1, 2, 3, 3, 4) + '{"step": 5, "a')


def write_parts(workdir):
  (workdir / 'metrics').mkdir()
  for steps in ((1, 2), (3, 3), (4,)):
    (workdir / 'metrics' / part_name(steps[0])).write_text(text(*steps))


def write_both(workdir):
  """As after a run moved out of a bucket."""
  write_parts(workdir)
  (workdir / 'metrics.jsonl').write_text(text(4))
  (workdir / 'metrics' / part_name(4)).unlink()


@pytest.mark.parametrize('write', [write_whole, write_parts, write_both])
def test_lines_past_a_step_are_dropped(write, tmp_path):
  workdir = epath.Path(tmp_path)
  write(workdir)
  truncate_metrics(workdir, 4)
  assert [line['step'] for line in read_metrics(workdir)] == [1, 2, 3, 3, 4]
  truncate_metrics(workdir, 2)
  assert read_metrics(workdir) == [{'step': 1, 'a': 0.5}, {'step': 2, 'a': 1.0}]
  assert not (workdir / 'metrics' / part_name(3)).exists()


def test_without_metrics(tmp_path):
  assert metrics_files(epath.Path(tmp_path)) == []
  with pytest.raises(FileNotFoundError):
    read_metrics(epath.Path(tmp_path))


def test_what_is_no_metrics_is_named(tmp_path):
  path = epath.Path(tmp_path / 'metrics.jsonl')
  path.write_text(text(1) + '{"loss": 1}\n')
  with pytest.raises(ValueError, match='line 2 is not a JSON object with a step'):
    read_metrics(path)


def test_lines_are_streamed_from_files_and_parts(tmp_path):
  (tmp_path / 'metrics').mkdir()
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "a": 1}\n{"a": 2}\n[3]\n{"step": 2}\n{"st')
  (tmp_path / 'metrics' / part_name(3)).write_text('{"step": 3}\n')
  workdir = epath.Path(tmp_path)
  assert list(stream_metrics(workdir)) == [{'step': 1, 'a': 1}, {'step': 2}, {'step': 3}]
  assert len(list(stream_metrics(workdir / 'metrics.jsonl'))) == 2
  assert list(stream_metrics(workdir / 'metrics')) == []
