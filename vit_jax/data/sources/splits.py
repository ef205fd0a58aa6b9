"""Splits: 'train', slices such as 'train[:98%]', and sums such as 'train[:800]+validation[:200]'.

  split = part ('+' part)*      spaces around '+' are fine
  part  = name | name[a:b]      a and b may be left out
  a, b  = 800, -200             examples; negative ones count from the end
        | 98%, 12.5%, -10%      percents of the split, rounded to the closest example

They mean what they mean to TFDS.
"""

import bisect
import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

from vit_jax.data.sources.source import Source, Stored, check_same_classes, fingerprint
from vit_jax.errors import UserError

_BOUND = r'\s*(-?\d[\d_]*(?:\.\d+)?%?)?\s*'
_PART = re.compile(rf'([\w.-]+)(?:\[{_BOUND}:{_BOUND}\])?')
_GRAMMAR = (
  "a split is a name, a slice such as 'train[:98%]' or 'train[800:-200]', or a sum of those "
  "such as 'train[:800]+validation[:200]'"
)


@dataclasses.dataclass(frozen=True)
class Part:
  """One split of a source, or a slice of it.

  Attributes:
    name: of the split.
    start, stop: examples or percents; None is the beginning or the end.
    percent: whether they are percents.
  """

  name: str
  start: float | None = None
  stop: float | None = None
  percent: bool = False

  @property
  def is_whole(self) -> bool:
    return self.start is None and self.stop is None

  def __str__(self) -> str:
    unit = '%' if self.percent else ''
    bounds = ('' if b is None else f'{b:.15g}{unit}' for b in (self.start, self.stop))
    return self.name if self.is_whole else f'{self.name}[{":".join(bounds)}]'


def _parse_part(text: str) -> Part:
  match = _PART.fullmatch(text)
  if not match or ('[' in text and not any(match.groups()[1:])):
    raise UserError(f'The split {text!r} cannot be read; {_GRAMMAR}.')
  name, *bounds = match.groups()
  given = [bound for bound in bounds if bound]
  percent = bool(given) and given[0].endswith('%')
  if any(bound.endswith('%') != percent for bound in given):
    raise UserError(f'The split {text!r} mixes examples with percents; use either in a slice.')
  if not percent and any('.' in bound for bound in given):
    raise UserError(f'The split {text!r} counts parts of examples; {_GRAMMAR}.')
  number = float if percent else int
  start, stop = (number(bound.rstrip('%')) if bound else None for bound in bounds)
  if percent and max(abs(start or 0), abs(stop or 0)) > 100:
    raise UserError(f'The split {text!r} takes more than 100%.')
  return Part(name, start, stop, percent)


def parse(split: str) -> tuple[Part, ...]:
  """The parts of a split, in order.

  Raises:
    UserError: when it is none.
  """
  return tuple(_parse_part(text.strip()) for text in split.split('+'))


def bounds(part: Part, size: int) -> tuple[int, int]:
  """The first index of a part of `size` examples, and the index after its last.

  Raises:
    UserError: when the part goes beyond the split, or is empty.
  """
  start, stop = (0 if part.start is None else part.start), part.stop
  if part.percent:
    start = round(start * size / 100)
    stop = size if stop is None else round(stop * size / 100)
  elif stop is None:
    stop = size
  if max(abs(start), abs(stop)) > size:
    raise UserError(f'{part} goes beyond the {size:,} examples of {part.name!r}.')
  start, stop = (b + size if b < 0 else b for b in (start, stop))
  if start >= stop:
    raise UserError(f'{part} is empty: {part.name!r} has {size:,} examples.')
  return start, stop


def _slice(source: Source, start: int, stop: int) -> Source:
  return dataclasses.replace(
    source,
    size=stop - start,
    read=lambda i: source.read(start + i),
    where=lambda i: source.describe(start + i),
  )


def concatenate(sources: Sequence[Source], name: str) -> Source:
  """One source after the other, as one; their classes must be the same."""
  first, *others = sources
  for other in others:
    if first.multi_label != other.multi_label:
      one, many = (other, first) if first.multi_label else (first, other)
      raise UserError(
        f'{one.name} has one label an image and {many.name} has several; they do not go together.'
      )
    check_same_classes(first.class_names, other.class_names, other.name)
  ends = list(itertools.accumulate(source.size for source in sources))

  def locate(i: int) -> tuple[Source, int]:
    which = bisect.bisect_right(ends, i)
    return sources[which], i - (ends[which - 1] if which else 0)

  def read(i: int) -> Stored:
    source, index = locate(i)
    return source.read(index)

  def where(i: int) -> str:
    source, index = locate(i)
    return source.describe(index)

  listing = repr([(source.name, source.size, source.fingerprint) for source in sources])
  changes = any(source.fingerprint for source in sources)
  return Source(
    name,
    ends[-1],
    read,
    first.class_names,
    first.multi_label,
    where,
    fingerprint(listing) if changes else '',
    tuple(dict.fromkeys(note for source in sources for note in source.notes)),
  )


def select(open_whole: Callable[[str], Source], split: str) -> Source:
  """Opens a split, a slice of it, or a sum of those.

  Args:
    open_whole: opens a whole split by its name.
    split: see the top of this file.

  Raises:
    UserError: for a split that cannot be read, is empty, or is not there.
  """
  parts = parse(split)
  whole = {name: open_whole(name) for name in dict.fromkeys(part.name for part in parts)}
  if len(parts) == 1 and parts[0].is_whole:
    return whole[parts[0].name]
  spec = whole[parts[0].name].name.removesuffix(f' ({parts[0].name})')
  sources = [_slice(whole[part.name], *bounds(part, whole[part.name].size)) for part in parts]
  return concatenate(sources, f'{spec} ({split})')
