"""Divides a training split into a part to train on and a held-out part to choose on."""

import itertools

from vit_jax.data.sources.splitting import splits
from vit_jax.data.sources.splitting.splits import SplitSlice
from vit_jax.errors import UserError


def parse_percent(text: str) -> float:
  """'2%' -> 2.0; raises `UserError` for anything else than a percentage between 0 and 100."""
  number = text.removesuffix('%')
  try:
    percent = float(number)
  except ValueError:
    percent = 0.0
  if number == text or not 0 < percent < 100:
    raise UserError(f'--held_out is {text!r}; it must be a share between 0% and 100%, such as 2%.')
  return percent


def _limits(term: SplitSlice) -> tuple[float, float]:
  """The bounds of a slice; of its end alone ('train[-200:]') they are negative, and 0 is the end.

  Raises:
    UserError: for a slice whose size depends on that of the split.
  """
  if term.percent or term.is_whole:
    start, stop = term.start or 0, 100 if term.stop is None else term.stop
    return start + 100 * (start < 0), stop + 100 * (stop < 0)
  start, stop = term.start or 0, term.stop or 0
  if (start < 0) != (stop <= 0):
    raise UserError(
      f'The split {str(term)!r} does not say how many examples it has, so no share of it can be '
      "held out; use percent, as in 'train[:90%]', or two bounds from the same end."
    )
  return start, stop


def _slice(term: SplitSlice, start: float, stop: float) -> SplitSlice:
  percent = term.percent or term.is_whole
  is_end = stop == (100 if percent else 0)
  return SplitSlice(term.name, start or None, None if is_end else stop, percent)


def _divide(term: SplitSlice, percent: float) -> tuple[SplitSlice, SplitSlice]:
  start, stop = _limits(term)
  size = stop - start
  held_out = round(size * percent / 100, 6)
  if not (term.percent or term.is_whole):
    held_out = max(round(held_out), 1)
  if held_out >= size:
    raise UserError(f'The split {str(term)!r} is too small to hold out {percent:g}% of it.')
  return _slice(term, start, stop - held_out), _slice(term, stop - held_out, stop)


def _overlap(one: SplitSlice, other: SplitSlice) -> bool:
  """Whether slices share examples; False also where the size of the split decides it."""
  starts, stops = zip(_limits(one), _limits(other), strict=True)
  same_unit = (one.percent or one.is_whole) == (other.percent or other.is_whole)
  same_end = (starts[0] < 0) == (starts[1] < 0)
  return one.name == other.name and same_unit and same_end and max(starts) < min(stops)


def hold_out(split: str, percent: float) -> tuple[str, str]:
  """Holds out the end of each term of a split.

  Args:
    split: such as 'train', 'train[:800]', 'train+validation'.
    percent: of each term to hold out, more than 0 and less than 100; of a slice given in examples
      at least one.

  Returns:
    (what remains, what is held out): ('train[:98%]', 'train[98%:]').

  Raises:
    UserError: for invalid syntax, terms that overlap, or one of unknown size such as 'train[800:]'.
  """
  terms = splits.parse(split)
  parts = [_divide(term, percent) for term in terms]
  for one, other in itertools.combinations(terms, 2):
    if _overlap(one, other):
      raise UserError(
        f'{str(one)!r} and {str(other)!r} share examples, so none can be held out of both.'
      )
  train, held_out = ('+'.join(map(str, part)) for part in zip(*parts, strict=True))
  return train, held_out
