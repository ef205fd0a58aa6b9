"""metrics.jsonl: whole lines, whatever interrupts, and continued where a run resumes."""

import json
import os
import signal
import time

import pytest

from vit_jax.training.metrics import MetricsWriter


def test_ctrl_c_waits_until_a_line_is_written(tmp_path, monkeypatch):
  writer = MetricsWriter(tmp_path, 0, enabled=True)

  def interrupt(*args) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)  # where it would strike

  monkeypatch.setattr(writer._events, 'append', interrupt)
  with pytest.raises(KeyboardInterrupt):
    writer.write(1, {'a': 1.0, 'b': 2.0})
  with writer:
    pass
  assert (tmp_path / 'metrics.jsonl').read_text() == '{"step": 1, "a": 1.0, "b": 2.0}\n'
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_lines_past_the_step_that_is_resumed_are_dropped(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a": 3}\n{"step": 4, "a')
  with MetricsWriter(tmp_path, 2, enabled=True) as writer:
    writer.write(3, {'a': float('nan')})
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert lines == [{'step': 1, 'a': 1}, {'step': 2, 'a': 2}, {'step': 3, 'a': None}]


def test_an_evaluation_is_told_from_a_log(tmp_path):
  with MetricsWriter(tmp_path, 0, enabled=True) as writer:
    for step in (1, 2):
      writer.write(step, {'train/loss': 1.0, 'time': 7.0, 'time/step': 3.0})
    writer.write(2, {'test/loss': 1.0})
    assert [writer.has_evaluation(step) for step in (1, 2)] == [False, True]


def test_other_processes_write_nothing(tmp_path):
  with MetricsWriter(tmp_path, 0, enabled=False) as writer:
    writer.write(1, {'a': 1.0})
  assert not list(tmp_path.iterdir())
