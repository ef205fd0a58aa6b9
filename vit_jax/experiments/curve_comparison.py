"""Which of two learning curves is higher where, beyond the spread of the seeds."""

import itertools
import statistics
from collections.abc import Mapping, Sequence

from vit_jax.text import join_words

Curve = Mapping[int, Sequence[float]]  # {number of examples: values of the seeds}
_MAX_TO_PAIR = 4  # models


def leader(one: Sequence[float], other: Sequence[float]) -> int:
  """1 if all values of the first are higher than those of the second, -1 if lower, else 0."""
  return int(min(one) > max(other)) - int(max(one) < min(other))


def _where(sizes: Sequence[int], shared: Sequence[int]) -> str:
  """'at 5 and 50 examples'; 'at all sizes' for all of several."""
  if list(sizes) == list(shared) and len(sizes) > 1:
    return 'at all sizes'
  return f'at {join_words(f"{size:,}" for size in sizes)} examples'


def compare_pair(name: str, curve: Curve, other_name: str, other: Curve) -> str:
  """Who leads at which sizes, and where one passes the other; plain differences for one seed.

  Args:
    name, other_name: of the models.
    curve, other: of them, shares in [0, 1]; the sizes that both have are compared.

  Returns:
    One or two sentences; '' where they share no size.
  """
  shared = sorted(curve.keys() & other.keys())
  signs, differences = {}, []
  for size in shared:
    if min(len(curve[size]), len(other[size])) > 1:
      signs[size] = leader(curve[size], other[size])
    else:
      points = 100 * (statistics.fmean(curve[size]) - statistics.fmean(other[size]))
      differences.append(f'{round(points, 1) + 0.0:+.1f} at {size:,}')  # no -0.0
  texts = [_describe_leads(name, other_name, signs, shared)] if signs else []
  if differences:
    texts.append(
      f'{name} minus {other_name} in percentage points: {", ".join(differences)} examples '
      '(one seed).'
    )
  return ' '.join(texts)


def _describe_leads(
  name: str, other_name: str, signs: Mapping[int, int], shared: Sequence[int]
) -> str:
  """A sentence on who leads, or who passes whom: {size: sign of `leader`}, of sizes in `shared`."""
  decided, rest = ([size for size in signs if bool(signs[size]) == each] for each in (True, False))
  if not decided:
    return f'{name} and {other_name} differ by no more than their seeds do {_where(rest, shared)}.'
  names = {1: name, -1: other_name}
  passes = [
    f'{names[signs[after]]} passes {names[signs[before]]} between {before:,} and {after:,} examples'
    for before, after in itertools.pairwise(decided)
    if signs[before] != signs[after]
  ]
  sign = signs[decided[0]]
  text = ', '.join(passes) or f'{names[sign]} leads {names[-sign]} {_where(decided, shared)}'
  if rest:
    text += f'; {_where(rest, shared)} they differ by no more than their seeds do'
  return f'{text}.'


def compare_curves(curves: Mapping[str, Curve]) -> list[str]:
  """The sentences of the pairs of models that share a size; of many, of pairs with the first."""
  names = list(curves)
  pairs = itertools.combinations(names, 2)
  if len(names) > _MAX_TO_PAIR:
    pairs = itertools.product(names[:1], names[1:])
  texts = (compare_pair(a, curves[a], b, curves[b]) for a, b in pairs)
  return [text for text in texts if text]


def mean_and_range(curve: Curve) -> tuple[list[int], list[float], list[float], list[float]]:
  """(sizes, means, minima, maxima), by size."""
  sizes = sorted(curve)
  means = [statistics.fmean(curve[size]) for size in sizes]
  return sizes, means, [min(curve[size]) for size in sizes], [max(curve[size]) for size in sizes]
