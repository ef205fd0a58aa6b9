"""Splits: 'train', slices such as 'train[:98%]', and sums such as 'train[:800]+validation[:200]'.

  split = term ('+' term)*      spaces around '+' are fine
  term  = name | name[a:b]      a and b are optional
  a, b  = 800, -200             examples; negative numbers count from the end
        | 98%, 12.5%, -10%      percent of the split, rounded to the nearest example

The bounds mean the same as in TFDS. So do the examples of data stored in random order. Other data
may be sorted by class: its slices are those of a fixed permutation (permutation.py) of the split,
so that 'train[:800]' and 'train[800:]' still have every example once. A whole split keeps its
order.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

from vit_jax.data.sources.source import Example, Source, check_same_classes, fingerprint, locate
from vit_jax.data.sources.splitting.permutation import permutation, permute
from vit_jax.errors import UserError

_BOUND = r'\s*(-?\d[\d_]*(?:\.\d+)?%?)?\s*'
_TERM = re.compile(rf'([\w.-]+)(?:\[{_BOUND}:{_BOUND}\])?')
_SYNTAX = (
  "a split is a name, a slice such as 'train[:98%]' or 'train[800:-200]', or a sum of those "
  "such as 'train[:800]+validation[:200]'"
)


@dataclasses.dataclass(frozen=True)
class SplitSlice:
  """A split of a source, or a slice of one; its bounds are None for the beginning or the end."""

  name: str
  start: float | None
  stop: float | None
  percent: bool  # whether the bounds are in percent, not examples

  @property
  def is_whole(self) -> bool:
    return self.start is None and self.stop is None

  def __str__(self) -> str:
    unit = '%' if self.percent else ''
    limits = ('' if x is None else f'{x:.15g}{unit}' for x in (self.start, self.stop))
    return self.name if self.is_whole else f'{self.name}[{":".join(limits)}]'


def _parse_term(text: str) -> SplitSlice:
  match = _TERM.fullmatch(text)
  if not match or ('[' in text and not any(match.groups()[1:])):
    raise UserError(f'The split {text!r} cannot be parsed; {_SYNTAX}.')
  name, *limits = match.groups()
  numbers = [limit for limit in limits if limit]
  percent = bool(numbers) and numbers[0].endswith('%')
  if any(number.endswith('%') != percent for number in numbers):
    raise UserError(f'The split {text!r} mixes examples and percent; use one of them in a slice.')
  if not percent and any('.' in number for number in numbers):
    raise UserError(f'The split {text!r} has a fractional number of examples; {_SYNTAX}.')
  convert = float if percent else int
  start, stop = (convert(limit.rstrip('%')) if limit else None for limit in limits)
  if percent and max(abs(start or 0), abs(stop or 0)) > 100:
    raise UserError(f'The split {text!r} asks for more than 100%; use -100% to 100%.')
  return SplitSlice(name, start, stop, percent)


def parse(split: str) -> tuple[SplitSlice, ...]:
  """Parses a split into the terms of its sum, in order; raises `UserError` for invalid syntax."""
  return tuple(_parse_term(text.strip()) for text in split.split('+'))


def bounds(term: SplitSlice, size: int) -> tuple[int, int]:
  """Returns the first index of a slice and the index after its last, in a split of `size` examples.

  Raises:
    UserError: when the slice exceeds the split, or is empty.
  """

  def to_index(bound: float) -> int:
    return round(bound * size / 100) if term.percent else int(bound)

  start = 0 if term.start is None else to_index(term.start)
  stop = size if term.stop is None else to_index(term.stop)
  if max(abs(start), abs(stop)) > size:
    raise UserError(f'{term} exceeds the {size:,} examples of {term.name!r}.')
  start, stop = (x + size if x < 0 else x for x in (start, stop))
  if start >= stop:
    raise UserError(f'{term} is empty: {term.name!r} has {size:,} examples.')
  return start, stop


def _slice(source: Source, start: int, stop: int) -> Source:
  def index(i: int) -> int:
    return start + i if source.shuffled else permute(start + i, source.size)

  def labels() -> np.ndarray:
    assert source.labels is not None
    order = np.arange(source.size) if source.shuffled else permutation(source.size)
    return source.labels()[order[start:stop]]

  return dataclasses.replace(
    source,
    size=stop - start,
    read=lambda i: source.read(index(i)),
    location=lambda i: source.describe(index(i)),
    labels=labels if source.labels else None,
    fingerprint=source.fingerprint and fingerprint(f'{source.fingerprint} {start}'),
  )


def concatenate(sources: Sequence[Source], name: str) -> Source:
  """Joins sources end to end; `UserError` if classes differ or only some are multi-label."""
  first, *others = sources
  for source in others:
    if first.multi_label != source.multi_label:
      single, multi = (source, first) if first.multi_label else (first, source)
      raise UserError(
        f'{single.name} has one label per image and {multi.name} has several; use sources of '
        'one kind.'
      )
    check_same_classes(first.class_names, source.class_names, source.name)
  ends = list(itertools.accumulate(source.size for source in sources))

  def read(i: int) -> Example:
    position, index = locate(ends, i)
    return sources[position].read(index)

  def location(i: int) -> str:
    position, index = locate(ends, i)
    return sources[position].describe(index)

  def labels() -> np.ndarray:
    return np.concatenate([source.labels() for source in sources if source.labels])

  listing = repr([(source.name, source.size, source.fingerprint) for source in sources])
  can_change = any(source.fingerprint for source in sources)
  files = [source.files for source in sources if source.files]
  return Source(
    name=name,
    size=ends[-1],
    read=read,
    class_names=first.class_names,
    multi_label=first.multi_label,
    location=location,
    fingerprint=fingerprint(listing) if can_change else '',
    files=(lambda: [file for each in files for file in each()]) if files else None,
    labels=labels if all(source.labels for source in sources) else None,
    notes=tuple(dict.fromkeys(note for source in sources for note in source.notes)),
  )


def select(open_split: Callable[[str], Source], split: str) -> Source:
  """Opens a split, a slice of one, or a sum of those; `open_split` opens a whole one by its name.

  Raises:
    UserError: for invalid syntax, an empty slice, or a split that does not exist.
  """
  terms = parse(split)
  whole = {name: open_split(name) for name in dict.fromkeys(term.name for term in terms)}
  if len(terms) == 1 and terms[0].is_whole:
    return whole[terms[0].name]
  spec = re.sub(r' \([^()]*\)$', '', whole[terms[0].name].name)
  slices = [
    whole[term.name]
    if term.is_whole
    else _slice(whole[term.name], *bounds(term, whole[term.name].size))
    for term in terms
  ]
  return concatenate(slices, f'{spec} ({split})')
