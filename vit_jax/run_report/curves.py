"""The curves of a run, of bounded size however long it is: minima and maxima are kept."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MAX_INTERVALS = 300  # of steps, of each of which a curve keeps its lowest and highest point
TRAINING = (
  'train/loss',
  'train/learning_rate',
  'train/gradient_norm',
  'train/images_per_second',
  'train/data_wait/max',
  'train/model_flops_utilization',
  'train/goodput',
)
_MEMORY, _RESTARTS = 'train/device_memory_peak', 'train/restarts'
_MAX_STEP, _MAX_VALUE = 2**53, 1e300  # numbers beyond are none that a run has written


class Point(NamedTuple):
  """A value after a step."""

  step: int
  value: float


class Curve:
  """A value by the step.

  Attributes:
    last: the point of the last step; None without any.
  """

  def __init__(self, max_intervals: int = MAX_INTERVALS):
    self._max_intervals, self._width = max_intervals, 1  # steps of an interval
    self._extremes: dict[int, tuple[Point, Point]] = {}  # number of the interval -> its extremes
    self._gaps: dict[int, int] = {}  # number of the interval -> step of a value that is not finite
    self.last: Point | None = None

  @property
  def lowest(self) -> Point | None:
    """The first point of the lowest value; None without any."""
    lows = [low for _, (low, _) in sorted(self._extremes.items())]
    return min(lows, key=lambda point: point.value, default=None)

  @property
  def highest(self) -> Point | None:
    """The first point of the highest value; None without any."""
    highs = [high for _, (_, high) in sorted(self._extremes.items())]
    return max(highs, key=lambda point: point.value, default=None)

  def add(self, step: int, value: Any) -> None:
    """Adds a value, in any order of steps, again without effect; None and NaN leave a gap."""
    try:
      number = float(value)
    except (TypeError, ValueError, OverflowError):
      number = math.nan
    interval = step // self._width
    if not abs(number) <= _MAX_VALUE:  # NaN
      self._gaps[interval] = step
    else:
      point = Point(step, number)
      if self.last is None or step >= self.last[0]:
        self.last = point
      low, high = extremes = self._extremes.get(interval) or (point, point)
      if number < low.value:
        self._extremes[interval] = point, high
      elif number > high.value:
        self._extremes[interval] = low, point
      elif low is point:
        self._extremes[interval] = extremes
    while max(len(self._extremes), len(self._gaps)) > 2 * self._max_intervals:
      self._double_width()

  def _double_width(self) -> None:
    self._width *= 2
    self._gaps = {step // self._width: step for step in self._gaps.values()}
    extremes: dict[int, tuple[Point, Point]] = {}
    for number, (low, high) in sorted(self._extremes.items()):
      before_low, before_high = extremes.get(number // 2, (low, high))
      extremes[number // 2] = (
        min(before_low, low, key=lambda point: point.value),
        max(before_high, high, key=lambda point: point.value),
      )
    self._extremes = extremes

  def segments(self) -> list[list[Point]]:
    """The points in order of steps, divided where values are not finite."""
    points = {point for pair in self._extremes.values() for point in pair}
    points |= {self.last} if self.last else set()
    gaps, segments = sorted(self._gaps.values()), [[]]
    for point in sorted(points):
      if gaps and point.step > gaps[0]:
        gaps = [step for step in gaps if step >= point.step]
        segments.append([])
      segments[-1].append(point)
    return [segment for segment in segments if segment]

  def gaps(self) -> list[int]:
    """Steps with values that are not finite: of each interval one."""
    return sorted(self._gaps.values())


class Curves:
  """What a report shows of metrics.jsonl, line by line.

  Attributes:
    curves: by the names of the metrics, without those that no report shows.
    step: the last one.
    memory_peak: largest number of bytes in use on the first device of process 0; None if unknown.
    time: of the last record, in seconds since the epoch; None in runs that did not record it.
  """

  def __init__(self, max_intervals: int = MAX_INTERVALS):
    self._max_intervals = max_intervals
    self._restarts, self._first = -1, None  # of the last start: (time, step) of its first record
    self.curves: dict[str, Curve] = {}
    self.step, self.memory_peak, self.time = 0, None, None

  def add(self, line: Mapping[str, Any]) -> None:
    """Adds the metrics of a step; what is none is skipped."""
    step = line['step']
    if not 0 <= step < _MAX_STEP:
      return
    self.step = max(self.step, step)
    for name, value in line.items():
      if name in TRAINING or is_evaluation(name):
        if name not in self.curves:
          self.curves[name] = Curve(self._max_intervals)
        self.curves[name].add(step, value)
    if isinstance(memory := line.get(_MEMORY), (int, float)):
      self.memory_peak = max(self.memory_peak or 0, memory)
    time, restarts = line.get('time'), line.get(_RESTARTS)
    if isinstance(time, (int, float)) and isinstance(restarts, int):
      if restarts > self._restarts:
        self._restarts, self._first = restarts, (time, step)
      self.time = time

  def seconds_left(self, total_steps: int) -> float | None:
    """Until the last step, at the speed since the last start; None if that is not known yet."""
    if self._first is None or self.time is None or self.step <= self._first[1]:
      return None
    speed = (self.time - self._first[0]) / (self.step - self._first[1])
    return max(total_steps - self.step, 0) * max(speed, 0)

  def names(self) -> list[str]:
    """Those of the curves: the loss, evaluations, the rest of training."""
    evaluations = sorted(set(self.curves) - set(TRAINING))
    order = [TRAINING[0], *evaluations, *TRAINING[1:]]
    return [name for name in order if name in self.curves]

  def main_metric(self) -> str | None:
    """The evaluation that tells most: an accuracy of the test data, else another metric of it."""
    names = [name for name in self.names() if is_evaluation(name)]
    preferred = ('test/accuracy', 'test/masked_patch_accuracy', 'test/loss')
    return next((name for name in (*preferred, *names) if name in self.curves), None)

  def best(self, name: str) -> Point | None:
    """The highest point of a curve, of losses and errors the lowest."""
    curve = self.curves[name]
    return curve.lowest if is_loss(name) else curve.highest


def is_evaluation(name: str) -> bool:
  """Whether a metric is one of an evaluation, except the number of examples."""
  group, _, metric = name.partition('/')
  return group not in ('train', 'time') and bool(metric) and not metric.startswith('examples')


def is_loss(name: str) -> bool:
  """Whether smaller values are better."""
  return any(word in name for word in ('loss', 'error'))


def common_range(curves: Sequence[Curve]) -> tuple[float, float] | None:
  """(lowest, highest value) of all; None without any value."""
  values = [point.value for x in curves for point in (x.lowest, x.highest) if point is not None]
  return (min(values), max(values)) if values else None
