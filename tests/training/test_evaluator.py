"""Evaluations beside that of the test data: when they are due, and what is recorded."""

import json

from tests.helpers import TINY, run


def test_evaluations_of_a_run(tmp_path):
  flags = [
    '--config.evals.fit.source=digits',
    '--config.evals.fit.split=train[:120]',
    '--config.evals.fit.every=2',
    '--config.evals.near.kind=knn',
    '--config.evals.near.neighbors=(1,5)',
    '--config.evals.near.every=6',
    '--config.evals.few.kind=fewshot',
    '--config.evals.few.shots=(2,)',
    '--config.evals.few.l2=0.',
    '--config.evals.few.every=6',
  ]
  result = run('main', '--config=configs/quickstart.py', *TINY, *flags, f'--workdir={tmp_path}')
  assert result.returncode == 0, result.stderr
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]

  def steps(metric: str) -> list[int]:
    return [line['step'] for line in lines if metric in line]

  assert steps('fit/accuracy') == [2, 4, 6] and steps('test/accuracy') == [3, 6]
  assert lines[-1]['fit/examples'] == 120 and 'step 6/6, fit: accuracy' in result.stdout
  assert steps('near/accuracy_5nn') == steps('few/l2_2shot') == [6]
