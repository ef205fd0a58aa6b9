"""Curves as SVG: places, ticks, a logarithmic axis, gaps, and numbers of any size."""

import json
import math
import re

import pytest

from vit_jax.run_report import plots
from vit_jax.run_report.curves import Curve


def curve(values, first=0) -> Curve:
  result = Curve()
  for step, value in enumerate(values, first):
    result.add(step, value)
  return result


def draw(values) -> plots.Plot:
  plot = plots.draw('test/loss', {'': curve(values)}, {'': 0}, [1])
  assert plot is not None
  return plot


def places(path: str) -> list[tuple[float, float]]:
  return [tuple(map(float, pair)) for pair in re.findall(r'([-\d.]+),([-\d.]+)', path)]


def test_points_are_where_they_belong():
  plot = draw([4.0, 8.0, 6.0])
  (x0, y0), (x1, y1), (x2, y2) = places(plot.lines[0].path)
  assert (x0, x2) == (plots.LEFT, plots.RIGHT) and x1 == (x0 + x2) / 2
  assert y1 < y2 < y0 and y2 == pytest.approx((y0 + y1) / 2, abs=0.06)
  assert plot.restarts == [x1] and plot.log_y is None
  assert json.loads(plot.data)['points'] == [[0, 4.0, 1, 8.0, 2, 6.0]]
  assert 'lowest 4 at step 0, highest 8 at step 1, last 6 at step 2' in plot.label


def test_a_restart_before_the_first_point_is_marked():
  """A run that was killed before its first checkpoint resumes from step 0."""
  plot = plots.draw('train/loss', {'': curve([2.0, 1.0], first=1)}, {'': 0}, [0])
  assert plot is not None and list(plot.restarts) == [plots.LEFT] and plot.x.low == 0


def test_a_logarithmic_axis_where_values_span_much():
  plot = draw([1.0, 10.0, 100.0])
  assert plot.log_y is not None
  (_, y0), (_, y1), (_, y2) = places(plot.lines[0].log_path)
  assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
  assert [text for _, text in plot.log_y.ticks()] == ['1', '10', '100']
  few = draw([3.0, 90.0]).log_y
  assert few is not None and [text for _, text in few.ticks()] == ['5', '10', '20', '50']
  assert draw([0.0, 100.0]).log_y is None  # zero has no logarithm


def test_gaps_break_the_line_and_single_points_are_dots():
  plot = draw([1.0, 2.0, math.nan, 3.0, None, 1.0, 2.0])
  line = plot.lines[0]
  assert line.path.count('M') == 3 and len(line.dots) == 1 and len(line.gaps) == 2


@pytest.mark.parametrize(
  'values',
  [[0.0], [5.0], [-3.0, -3.0], [1e300, -1e300], [1e-300, 1e-299], [1e-12, 1.0], [1e15, 1e15 + 1]],
)
def test_numbers_of_any_size(values):
  plot = draw(values)
  assert all(math.isfinite(x) for pair in places(plot.lines[0].path) for x in pair)
  for axis in filter(None, (plot.x, plot.y, plot.log_y)):
    ticks = axis.ticks()
    low, high = sorted((axis.start, axis.end))
    assert len(ticks) <= 12 and all(low - 0.1 <= place <= high + 0.1 for place, _ in ticks)


def test_nothing_finite_is_no_plot():
  assert plots.draw('x', {'': curve([None, math.nan])}, {'': 0}) is None


def test_runs_share_the_axes():
  plot = plots.draw('x', {'a': curve([1.0, 2.0]), 'b': curve([5.0], 9)}, {'a': 3, 'b': 4})
  assert plot is not None and (plot.x.low, plot.x.high) == (0, 9)
  assert [(line.name, line.number) for line in plot.lines] == [('a', 3), ('b', 4)]
