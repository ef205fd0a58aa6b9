"""Curves as the paths, ticks and texts of an SVG picture, which a template draws."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence

from vit_jax.run_report.curves import Curve, Point, common_range
from vit_jax.text import format_value, printable

WIDTH, HEIGHT = 400, 208  # units of the picture
LEFT, RIGHT, TOP, BOTTOM = 54, 380, 10, 186  # of the area of the curves
_LOG_RATIO = 20  # of the largest to the smallest value from which on a logarithmic axis is offered


@dataclasses.dataclass(frozen=True)
class Axis:
  """A linear or logarithmic axis: values in [low, high] at places in [start, end]."""

  low: float
  high: float
  start: float
  end: float
  is_log: bool = False

  def place(self, value: float) -> float:
    low, high = self.low, self.high
    if self.is_log:
      value, low, high = math.log(value), math.log(low), math.log(high)
    return self.start + (self.end - self.start) * (value - low) / (high - low)

  def ticks(self) -> list[tuple[float, str]]:
    """(place, text) of round values."""
    values = _log_ticks(self.low, self.high) if self.is_log else _round_values(self.low, self.high)
    return [(self.place(value), f'{value:,.6g}') for value in values]


@dataclasses.dataclass(frozen=True)
class Line:
  """A curve of a plot.

  Attributes:
    name: of its run; '' if there is only one.
    number: of its color and dashes.
    path, log_path: on the linear and on the logarithmic axis, as of SVG; '' without the latter.
    dots: places (x, y, y on the logarithmic axis) of single points between gaps.
    gaps: places of values that are not finite.
  """

  name: str
  number: int
  path: str
  log_path: str
  dots: Sequence[tuple[float, float, float]]
  gaps: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Plot:
  """A picture of curves of the same metric.

  Attributes:
    title: the name of the metric.
    label: what the picture shows, in words.
    x, y: the axes; log_y where a logarithmic one makes sense.
    restarts: places of the steps from which a run was resumed.
    data: for the script that reads values off: ranges, names, [step, value, step, …] of each curve.
  """

  title: str
  label: str
  x: Axis
  y: Axis
  log_y: Axis | None
  lines: Sequence[Line]
  restarts: Sequence[float]
  data: str


def draw(
  title: str, curves: Mapping[str, Curve], numbers: Mapping[str, int], restarts: Sequence[int] = ()
) -> Plot | None:
  """The plot of a metric; None if it has no finite value.

  Args:
    title: the name of the metric.
    curves: by the names of the runs.
    numbers: of the runs, which choose their colors.
    restarts: steps to mark.
  """
  values = common_range(list(curves.values()))
  if values is None:
    return None
  segments = {name: curve.segments() for name, curve in curves.items()}
  steps = [point.step for each in segments.values() for points in each for point in points]
  first, last = min([*steps, *restarts]), max(steps)
  x = Axis(min(first, 0) if last == first else first, max(last, first + 1), LEFT, RIGHT)
  y, log_y = Axis(*_padded(*values), BOTTOM, TOP), None
  if values[0] > 0 and values[1] / values[0] >= _LOG_RATIO:
    log_y = Axis(values[0] / 1.1, values[1] * 1.1, BOTTOM, TOP, is_log=True)
  lines = [
    Line(
      name,
      numbers[name],
      _path(segments[name], x, y),
      _path(segments[name], x, log_y) if log_y else '',
      [
        (x.place(points[0].step), y.place(points[0].value), (log_y or y).place(points[0].value))
        for points in segments[name]
        if len(points) == 1
      ],
      [x.place(step) for step in curve.gaps() if x.low <= step <= x.high],
    )
    for name, curve in curves.items()
  ]
  marks = [x.place(step) for step in restarts if step <= x.high]
  data = {
    'x': [x.low, x.high, LEFT, RIGHT, WIDTH],
    'names': [printable(name) for name in curves],
    'points': [
      [number for points in each for point in points for number in _rounded(point)]
      for each in segments.values()
    ],
  }
  label = _in_words(title, curves)
  text = json.dumps(data, separators=(',', ':'))
  return Plot(title, label, x, y, log_y, lines, marks, text)


def _rounded(point: Point) -> tuple[int, float]:
  return point.step, float(f'{point.value:.5g}')


def _in_words(title: str, curves: Mapping[str, Curve]) -> str:
  texts = []
  for name, curve in curves.items():
    if curve.last and curve.lowest and curve.highest:
      low, high, last = (
        f'{format_value(title, point.value)} at step {point.step:,}'
        for point in (curve.lowest, curve.highest, curve.last)
      )
      texts.append(f'{f"{name}: " if name else ""}lowest {low}, highest {high}, last {last}')
  return f'{title} by step; {"; ".join(texts)}.'


def _path(segments: Sequence[Sequence[Point]], x: Axis, y: Axis) -> str:
  parts = []
  for points in segments:
    places = [f'{x.place(point.step):.1f},{y.place(point.value):.1f}' for point in points]
    parts.append('M' + ' '.join(places))
  return ''.join(parts)


def _padded(low: float, high: float) -> tuple[float, float]:
  """A range that has some room below and above, and is not empty."""
  space = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
  return low - space if low - space >= 0 or low < 0 else 0.0, high + space


def _round_values(low: float, high: float) -> list[float]:
  """Two to six multiples of 1, 2 or 5 times a power of ten in a range."""
  power = 10.0 ** math.floor(math.log10((high - low) / 5))
  step = next(power * x for x in (1, 2, 5, 10) if power * x >= (high - low) / 5)
  first, last = math.ceil(low / step), math.floor(high / step)
  return [number * step for number in range(first, min(last, first + 10) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  """Powers of ten, with their double and fivefold where there are few."""
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  factors = (1, 2, 5) if last - first <= 2 else (1,)
  every = max((last - first) // 6, 1)
  values = [x * 10.0**power for power in range(first, last + 1, every) for x in factors]
  return [value for value in values if low <= value <= high]
