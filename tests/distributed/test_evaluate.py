"""Evaluations give the same numbers on any number of processes."""

import csv
import json

import pytest

from tests.helpers import free_port, run, start


def test_two_processes_score_like_one(tiny_run, tmp_path):
  kinds = 'classification,fewshot,knn'
  flags = (f'--model={tiny_run}', '--data=digits', f'--eval={kinds}', '--json', '--no-cache')
  alone = run('evaluate', *flags, f'--predictions={tmp_path}/alone.csv')
  assert alone.returncode == 0, alone.stderr
  flags += (f'--predictions={tmp_path}/together.csv',)
  address = f'--coordinator=127.0.0.1:{free_port()}'
  first, second = (
    start('evaluate', *flags, address, '--num_processes=2', f'--process_id={i}') for i in (0, 1)
  )
  (out, err), _ = (process.communicate(timeout=300) for process in (first, second))
  assert first.returncode == second.returncode == 0, err
  expected, actual = json.loads(alone.stdout), json.loads(out.splitlines()[-1])
  for name in ('loss', 'expected_calibration_error'):
    assert actual.pop(name) == pytest.approx(expected.pop(name), abs=1e-5)
  assert actual == expected
  tables = []
  for name in ('alone', 'together'):
    with open(tmp_path / f'{name}.csv', newline='') as file:
      tables.append(list(csv.DictReader(file)))
  assert len(tables[0]) == actual['examples']
  for one, two in zip(*tables, strict=True):
    probability = float(two.pop('probability'))
    assert probability == pytest.approx(float(one.pop('probability')), rel=1e-4) and one == two
