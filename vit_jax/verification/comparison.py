"""Measurements side by side, and the comparison of two runs."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from vit_jax.errors import UserError
from vit_jax.verification.measurements import RESULT, Curve, Measurements


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One metric of both sides.

  Attributes:
    metric: its name.
    step: the first one that differs beyond the noise, or the last one; None for a result.
    measured, expected: the values at this step; None: not finite.
    noise: the difference that is allowed at this step.
    largest: the largest difference at any step; infinity where only one side is finite.
    steps: how many were compared.
    differs: whether any differs beyond the noise.
  """

  metric: str
  step: int | None
  measured: float | None
  expected: float | None
  noise: float
  largest: float
  steps: int
  differs: bool

  @property
  def place(self) -> str:
    """' at step 1,200', or nothing."""
    return '' if self.step is None else f' at step {self.step:,}'

  def __str__(self) -> str:
    values = f'{_number(self.measured)}, not {_number(self.expected)}'
    return f'in {self.metric}{self.place}: {values} (noise {_number(self.noise)})'


def _number(value: float | None) -> str:
  return 'not finite' if value is None or math.isinf(value) else f'{value:.6g}'


@dataclasses.dataclass(frozen=True)
class Verification:
  """The comparisons, the first of those that differ first, and remarks for the reader."""

  comparisons: list[Comparison]
  notes: list[str]

  @property
  def first_difference(self) -> Comparison | None:
    """Of the smallest step."""
    differing = [each for each in self.comparisons if each.differs]
    return min(differing, key=lambda each: -1 if each.step is None else each.step, default=None)

  def lines(self) -> Iterator[str]:
    """A table of the values at the first step that differs, or at the last one, and the notes."""
    width = max(len(each.metric) for each in self.comparisons)
    titles = ('measured', 'expected', 'noise', 'largest diff.')
    yield f'{"":{width}}  {"":7}  {"  ".join(f"{title:>13}" for title in titles)}'
    for each in self.comparisons:
      verdict = 'differs' if each.differs else 'equal'
      numbers = (each.measured, each.expected, each.noise, each.largest)
      row = '  '.join(f'{_number(number):>13}' for number in numbers)
      yield f'{each.metric:{width}}  {verdict:7}  {row}{each.place}'
    yield from self.notes

  def to_json(self) -> dict[str, Any]:
    """JSON values; a largest difference that is not finite is null."""
    first = self.first_difference
    rows = [dataclasses.asdict(each) for each in self.comparisons]
    for row in rows:
      row['largest'] = row['largest'] if math.isfinite(row['largest']) else None
    return {
      'equal': first is None,
      'first_difference': first and {'step': first.step, 'metric': first.metric},
      'comparisons': rows,
      'notes': self.notes,
    }


def against_run(
  measured: Measurements, expected: Measurements, rtol: float = 0.0, atol: float = 0.0
) -> Verification:
  """Compares all metrics of two runs at the steps that both recorded, or of two evaluations.

  Metrics of the machine (images per second, memory) are left out. A value differs if it is further
  from the expected one than `atol + rtol * abs(expected)`; by default any difference counts.

  Raises:
    UserError: if they have no metric and step in common.
  """
  comparisons = [
    _compare_curves(name, measured.curves[name], expected.curves[name], rtol, atol)
    for name in expected.metrics
    if measured.curves.get(name, {}).keys() & expected.curves[name].keys()
  ]
  if not comparisons:
    raise UserError(f'{measured.name} and {expected.name} have no metric and step in common.')
  compared = {each.metric for each in comparisons}
  left_out = dict.fromkeys(
    name for name in (*measured.metrics, *expected.metrics) if name not in compared
  )
  notes = [f'not in both: {", ".join(left_out)}'] if left_out else []
  if settings := _differing_settings(measured, expected):
    notes.append(f'their settings differ: {", ".join(settings)}')
  return Verification(comparisons + _compare_lengths(measured, expected), notes)


def _differing_settings(measured: Measurements, expected: Measurements) -> list[str]:
  return [
    f'{key} ({value!r}, {expected.settings[key]!r})'
    for key, value in measured.settings.items()
    if key in expected.settings and value != expected.settings[key]
  ]


def _compare_lengths(measured: Measurements, expected: Measurements) -> list[Comparison]:
  """The last steps, where one run ended before the other."""
  ends = [float(max(max(curve) for curve in run.curves.values())) for run in (measured, expected)]
  if ends[0] == ends[1]:
    return []
  return [
    Comparison(
      metric='(last step)',
      step=int(min(ends)) + 1,
      measured=ends[0],
      expected=ends[1],
      noise=0.0,
      largest=abs(ends[0] - ends[1]),
      steps=1,
      differs=True,
    )
  ]


def _compare_curves(
  name: str, measured: Curve, expected: Curve, rtol: float, atol: float
) -> Comparison:
  steps = sorted(measured.keys() & expected.keys())
  differences = [difference(measured[step], expected[step]) for step in steps]
  allowed = [atol + rtol * abs(expected[step] or 0.0) for step in steps]
  differing = [i for i, (x, most) in enumerate(zip(differences, allowed, strict=True)) if x > most]
  i = differing[0] if differing else len(steps) - 1
  return Comparison(
    metric=name,
    step=None if steps[i] == RESULT else steps[i],
    measured=measured[steps[i]],
    expected=expected[steps[i]],
    noise=allowed[i],
    largest=max(differences),
    steps=len(steps),
    differs=bool(differing),
  )


def difference(one: float | None, other: float | None) -> float:
  """The absolute difference; infinity if only one of them is finite."""
  if one is None or other is None:
    return 0.0 if one is other else math.inf
  return abs(one - other)
