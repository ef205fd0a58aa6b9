"""Curves of bounded size: extremes are kept, gaps break them, repeated lines change nothing."""

import itertools
import math
import random

import pytest

from vit_jax.run_report.curves import Curve, Curves, Point, is_evaluation


def points(curve: Curve) -> list[Point]:
  return list(itertools.chain.from_iterable(curve.segments()))


def test_a_short_curve_is_exact():
  curve = Curve()
  for step in range(1, 101):
    curve.add(step, step * 0.5)
  assert points(curve) == [(step, step * 0.5) for step in range(1, 101)]


def test_a_long_curve_keeps_its_extremes_wherever_they_are():
  values = [random.Random(0).gauss(0, 1) for _ in range(20_000)]
  values[777], values[13_131] = 99.0, -99.0
  curve = Curve(max_intervals=50)
  for step, value in enumerate(values):
    curve.add(step, value)
  kept = points(curve)
  assert len(kept) <= 201 and kept == sorted(kept)
  assert (777, 99.0) in kept and (13_131, -99.0) in kept
  assert curve.highest == (777, 99.0) and curve.lowest == (13_131, -99.0)
  assert kept[-1] == curve.last == (19_999, values[-1])
  assert all(values[step] == value for step, value in kept)


def test_order_and_repetition_do_not_matter():
  steps = list(range(0, 3000, 3))
  curves = [Curve(max_intervals=20), Curve(max_intervals=20)]
  for step in steps:
    curves[0].add(step, math.sin(step))
  random.Random(1).shuffle(steps)
  for step in steps + steps[:500]:
    curves[1].add(step, math.sin(step))
  assert points(curves[0]) == points(curves[1])
  assert curves[0].last == curves[1].last


@pytest.mark.parametrize('value', [None, math.nan, math.inf, 'x', 10**400, 1e301])
def test_what_is_not_finite_is_a_gap(value):
  curve = Curve()
  for step, each in enumerate([1.0, 2.0, value, 3.0, value, value, 4.0]):
    curve.add(step, each)
  assert curve.segments() == [[(0, 1.0), (1, 2.0)], [(3, 3.0)], [(6, 4.0)]]
  assert curve.gaps() == [2, 4, 5] and curve.highest == (6, 4.0)


def test_many_gaps_are_bounded():
  curve = Curve(max_intervals=10)
  for step in range(1000):
    curve.add(step, None)
  assert len(curve.gaps()) <= 20 and curve.segments() == [] and curve.last is None


def test_what_a_report_shows():
  curves = Curves()
  line = {'step': 4, 'train/loss': 2.0, 'time': 100.0, 'time/step': 3.0, 'train/restarts': 0}
  curves.add(line | {'train/device_memory_peak': 7})
  curves.add({'step': 6, 'test/accuracy': 0.5, 'test/examples': 9, 'knn/accuracy_10': 0.1})
  curves.add({'step': -1, 'train/loss': 9.0})
  assert curves.names() == ['train/loss', 'knn/accuracy_10', 'test/accuracy']
  assert curves.step == 6 and curves.memory_peak == 7 and curves.main_metric() == 'test/accuracy'
  assert not is_evaluation('time') and not is_evaluation('step')


def test_the_best_loss_is_the_lowest():
  curves = Curves()
  for step, loss in enumerate([3.0, 1.0, 2.0]):
    curves.add({'step': step, 'test/loss': loss, 'test/accuracy': loss / 10})
  assert curves.best('test/loss') == (1, 1.0) and curves.best('test/accuracy') == (0, 0.3)


def test_the_time_left_is_that_of_the_last_start():
  curves = Curves()
  curves.add({'step': 10, 'time': 1000.0, 'train/restarts': 0})
  assert curves.seconds_left(100) is None
  curves.add({'step': 20, 'time': 5000.0, 'train/restarts': 1})
  curves.add({'step': 30, 'time': 5020.0, 'train/restarts': 1})
  assert curves.seconds_left(100) == 140
