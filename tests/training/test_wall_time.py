"""What the records of a run add up to, by hand."""

import pytest

from vit_jax.training.wall_time import Record, account


def test_the_time_of_a_run_that_was_killed_once():
  records = [
    Record(0, 1010, 0, {'start': 10}),
    Record(0, 1030, 10, {'compile': 8, 'data_wait': 2, 'step': 10}, 0.5, 'process 1 on b'),
    Record(0, 1054, 20, {'evaluation': 4, 'step': 20}, 0.5, 'process 1 on b'),
    # Killed after step 20; step 15 is restored.
    Record(1, 1070, 15, {'start': 6}),
    Record(1, 1080, 20, {'initialization': 4, 'data_wait': 1, 'step': 5}, 0.25, 'process 0 on a'),
    Record(1, 1081, 20, {'save': 1}, is_finished=True),
  ]
  result = account(records)
  assert result.total == 81 == 1081 - 1000
  assert {name: x for name, x in result.seconds.items() if x} == {
    'start': 16,
    'initialization': 4,
    'compile': 8,
    'data_wait': 3,
    'evaluation': 4,
    'save': 1,
    'step': 25,  # 10 + 20 + 5, of which the five steps after the 15th count once
    'replayed': 10,
    'lost': 10,  # 1054 to 1064
  }
  assert result.goodput == 25 / 81
  assert (result.restarts, result.step) == (1, 20)
  # 1.2 s each of ten steps, 2 s each of ten, 1.2 s each of five
  assert result.step_seconds == {'p50': 1.2, 'p99': 2, 'slowest': 2}
  assert result.slowest_host == 'process 1 on b'
  assert result.data_waits == {  # 32 and 6 s of 38
    'process 1 on b': pytest.approx(0.5 * 32 / 38),
    'process 0 on a': pytest.approx(0.25 * 6 / 38),
  }
  assert 'imports and opening the data (19.8%)' in result.advice


def test_steps_that_are_repeated_twice_count_once():
  runs = [[0, 10], [0, 10], [5, 10]]
  records, time = [], 0
  for start, (first, last) in enumerate(runs):
    records += [Record(start, time, first, {}), Record(start, time + 10, last, {'step': 10})]
    time += 10
  result = account(records)
  # Ten steps of a second, then the same again, of which five are done a third time, in 10 seconds.
  assert result.seconds['replayed'] == 10 + 5
  assert result.seconds['step'] == 5 + 10
  assert result.total == 30


@pytest.mark.parametrize(('is_finished', 'lost'), [(False, 100), (True, 0)])
def test_the_time_after_a_finished_run_is_not_lost(is_finished, lost):
  records = [
    Record(0, 10, 4, {'step': 10}, is_finished=is_finished),
    Record(1, 115, 4, {'start': 5}),
  ]
  assert account(records).seconds['lost'] == lost


def test_clocks_that_disagree_lose_no_time():
  records = [Record(0, 100, 4, {'step': 10}), Record(1, 95, 4, {'start': 5})]
  assert account(records).seconds['lost'] == 0
  assert account(records).total == 15


@pytest.mark.parametrize(
  ('phase', 'remedy'),
  [
    ('data_wait', 'config.data.workers'),
    ('evaluation', 'larger --config.eval_every'),
    ('save', 'larger --config.checkpoint.every'),
    ('replayed', 'smaller --config.checkpoint.every'),
    ('lost', 'launch/retry.sh'),
    ('compile', 'JAX_COMPILATION_CACHE_DIR'),
  ],
)
def test_the_largest_loss_is_named_with_its_remedy(phase, remedy):
  result = account([Record(0, 10, 0, {'step': 7, phase: 2, 'start': 1})])
  assert '(20.0%)' in result.advice and remedy in result.advice
  report = '\n'.join(result.lines())
  assert '70.0%' in report and report.endswith(result.advice)
