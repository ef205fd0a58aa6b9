"""Which of two learning curves is higher where, beyond the spread of the seeds."""

import itertools
import statistics
from collections.abc import Mapping, Sequence

Curve = Mapping[int, Sequence[float]]  # {number of examples: values of the seeds}


def leader(one: Sequence[float], other: Sequence[float]) -> int:
  """1 if all values of the first are higher than those of the second, -1 if lower, else 0."""
  return int(min(one) > max(other)) - int(max(one) < min(other))


def _join(sizes: Sequence[int]) -> str:
  texts = [f'{size:,}' for size in sizes]
  return texts[0] if len(texts) == 1 else f'{", ".join(texts[:-1])} and {texts[-1]}'


def compare_pair(name: str, curve: Curve, other_name: str, other: Curve) -> str:
  """One sentence: who leads at which sizes, and where one passes the other.

  Args:
    name, other_name: of the models.
    curve, other: of them; the sizes that both have are compared.

  Returns:
    '' where they share no size.
  """
  sizes = sorted(curve.keys() & other.keys())
  if not sizes:
    return ''
  signs = {size: leader(curve[size], other[size]) for size in sizes}
  decided = [size for size in sizes if signs[size]]
  names = {1: name, -1: other_name}
  if not decided:
    return f'{name} and {other_name} differ at no size by more than their seeds do.'
  passes = [
    f'{names[signs[after]]} passes {names[signs[before]]} between {before:,} and {after:,} examples'
    for before, after in itertools.pairwise(decided)
    if signs[before] != signs[after]
  ]
  if passes:
    return ', '.join(passes) + '.'
  ahead, behind = names[signs[decided[0]]], names[-signs[decided[0]]]
  if decided == sizes:
    where = 'at all sizes' if len(sizes) > 1 else f'at {sizes[0]:,} examples'
    return f'{ahead} leads {behind} {where}.'
  rest = [size for size in sizes if size not in decided]
  return (
    f'{ahead} leads {behind} at {_join(decided)} examples; at {_join(rest)} they differ by no more '
    'than their seeds do.'
  )


def compare_curves(curves: Mapping[str, Curve]) -> list[str]:
  """The sentences of all pairs of models, those that share a size."""
  pairs = itertools.combinations(curves, 2)
  texts = (compare_pair(a, curves[a], b, curves[b]) for a, b in pairs)
  return [text for text in texts if text]


def mean_and_range(curve: Curve) -> tuple[list[int], list[float], list[float], list[float]]:
  """(sizes, means, minima, maxima), by size."""
  sizes = sorted(curve)
  means = [statistics.fmean(curve[size]) for size in sizes]
  return sizes, means, [min(curve[size]) for size in sizes], [max(curve[size]) for size in sizes]
