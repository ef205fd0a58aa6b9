"""Evaluations give the same numbers on any number of processes."""

import json

from tests.helpers import free_port, run, start


def test_two_processes_score_like_one(tiny_run):
  kinds = 'classification,fewshot,knn'
  flags = (f'--model={tiny_run}', '--data=digits', f'--eval={kinds}', '--json', '--no-cache')
  alone = run('evaluate', *flags)
  assert alone.returncode == 0, alone.stderr
  address = f'--coordinator=127.0.0.1:{free_port()}'
  first, second = (
    start('evaluate', *flags, address, '--num_processes=2', f'--process_id={i}') for i in (0, 1)
  )
  (out, err), _ = (process.communicate(timeout=300) for process in (first, second))
  assert first.returncode == second.returncode == 0, err
  expected, actual = json.loads(alone.stdout), json.loads(out.splitlines()[-1])
  assert abs(actual.pop('loss') - expected.pop('loss')) < 1e-5
  assert actual == expected
