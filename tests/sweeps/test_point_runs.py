"""Runs of a sweep: what their folders tell, and that no two processes run the same one."""

import json

import pytest

from tests.helpers import write_finished_run
from vit_jax.prepare.file_lock import try_lock
from vit_jax.sweeps import point_runs
from vit_jax.sweeps.point_runs import Run, read_outcome, run_to_end


def test_a_run_is_finished_when_its_model_is_written(tmp_path):
  run = Run('a', (), tmp_path)
  assert read_outcome(run).status == 'unfinished'
  write_finished_run(tmp_path, accuracy=0.5)
  outcome = read_outcome(run)
  assert (outcome.status, outcome.metrics['accuracy']) == ('finished', 0.5)
  (tmp_path / 'model').rmdir()
  assert read_outcome(run).status == 'unfinished'


def test_a_run_is_unfinished_while_its_last_evaluation_is_missing(tmp_path):
  write_finished_run(tmp_path, accuracy=0.5)
  (tmp_path / 'config.json').write_text('{"total_steps": 7}')
  assert read_outcome(Run('a', (), tmp_path)).status == 'unfinished'


@pytest.mark.parametrize(('code', 'status'), [(3, 'diverged'), (1, 'failed'), (-9, 'failed')])
def test_why_a_run_ended(tmp_path, code, status):
  (tmp_path / 'exit.json').write_text(json.dumps({'exit_code': code, 'message': 'so\x1b'}))
  outcome = read_outcome(Run('a', (), tmp_path))
  assert (outcome.status, outcome.message) == (status, 'so\\x1b')


def test_a_failed_run_keeps_its_sentence_and_is_tried_again(tmp_path):
  run = Run('a', ('--config=configs/none.py',), tmp_path)
  outcome = run_to_end(run)
  assert outcome.status == 'failed'
  assert outcome.message.startswith('There is no config file configs/none.py')
  assert not outcome.is_final


def test_a_run_of_another_process_is_waited_for(tmp_path, monkeypatch, capsys):
  lock = (tmp_path / '.lock').open('ab')
  assert try_lock(lock)

  def finish(seconds):
    write_finished_run(tmp_path, accuracy=0.5)
    lock.close()

  monkeypatch.setattr(point_runs.time, 'sleep', finish)
  assert run_to_end(Run('a', ('--config=configs/none.py',), tmp_path)).status == 'finished'
  assert 'a: waiting for the process that runs it already' in capsys.readouterr().err
