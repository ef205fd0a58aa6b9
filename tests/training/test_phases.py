"""Every moment of a process belongs to one phase; the clock is moved by the test."""

import time

import pytest

from tests.helpers import replace_clock
from vit_jax.training import phases
from vit_jax.training.phases import PhaseTimer, between


@pytest.fixture
def clock(monkeypatch):
  return replace_clock(monkeypatch, phases)


def test_phases_nest_and_add_up(clock):
  timer = PhaseTimer(clock.now - 3)
  clock.now += 1
  with timer.phase('evaluation'):
    clock.now += 5
    with timer.phase('data_wait'):
      clock.now += 2
    clock.now += 1
  clock.now += 0.5
  seconds = timer.seconds()
  assert seconds == {'start': 4.5, 'evaluation': 6, 'data_wait': 2}
  assert sum(seconds.values()) == 3 + 9.5
  clock.now += 1
  assert between(seconds, timer.seconds()) == {'start': 1, 'evaluation': 0, 'data_wait': 0}


def test_a_step_begins_when_its_batch_is_ready(clock):
  def batches():
    for i in range(3):
      clock.now += 2
      yield i

  timer, done = PhaseTimer(), []
  for batch in timer.steps(batches()):
    clock.now += 10
    done.append((batch, timer.num_batches))
  assert done == [(0, 0), (1, 1), (2, 2)] and timer.num_batches == 3
  assert timer.seconds() == {'start': 0, 'data_wait': 6, 'step': 30}


def test_an_error_ends_a_phase(clock):
  timer = PhaseTimer()
  with pytest.raises(ValueError), timer.followed_by('save'), timer.phase('evaluation'):
    clock.now += 1
    raise ValueError
  clock.now += 2
  assert timer.seconds() == {'start': 0, 'evaluation': 1, 'save': 2}


def test_phases_add_up_to_the_time_of_a_stopwatch():
  before = time.monotonic()
  timer = PhaseTimer()
  started = time.monotonic()
  for i in range(1000):
    with timer.phase(f'phase {i % 7}'):
      pass
  stopped = time.monotonic()
  total = sum(timer.seconds().values())
  assert stopped - started - 1e-9 <= total <= time.monotonic() - before + 1e-9
