"""3*folder:/a + 1*hf:b: several sources as one, drawn from by their weights.

The parts are separated by ' + ', with spaces; a weight is a number before '*', 1 without. Where
the classes of the parts differ, the mixture has all of them, in order of first appearance: classes
of the same name are one class.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from vit_jax.data.sources.source import Source, Stored, multi_hot
from vit_jax.data.sources.splits import concatenate
from vit_jax.errors import UserError

_SEPARATOR = re.compile(r'\s+\+\s+')
_WEIGHT = re.compile(r'(-?\d+(?:\.\d*)?|-?\.\d+)\s*\*\s*')


def is_mixture(spec: str) -> bool:
  """Whether a source is written as a mixture."""
  return bool(_SEPARATOR.search(spec) or _WEIGHT.match(spec))


def parse_mixture(spec: str) -> tuple[tuple[float, str], ...]:
  """The weight and the source of each part.

  Raises:
    UserError: for a weight that is not positive, or a part that is missing.
  """
  parts = []
  for text in _SEPARATOR.split(spec.strip()):
    match = _WEIGHT.match(text)
    weight, part = (float(match[1]), text[match.end() :]) if match else (1.0, text)
    if weight <= 0 or not part.strip():
      raise UserError(
        f'{text!r} is no part of a mixture; each is weight*source with a positive weight, such '
        "as '3*folder:/a + 1*folder:/b'."
      )
    parts.append((weight, part.strip()))
  return tuple(parts)


def _relabel(source: Source, class_names: tuple[str, ...]) -> Source:
  """The same examples, their labels counted in another list of names that has all of theirs."""
  if source.class_names == class_names:
    return source
  numbers = {name: i for i, name in enumerate(class_names)}
  new = np.array([numbers[name] for name in source.class_names], np.int32)

  def read(i: int) -> Stored:
    image, label = source.read(i)
    if not source.multi_label:
      return image, new[label]
    return image, multi_hot(new[np.flatnonzero(label)], len(class_names))

  return dataclasses.replace(source, read=read, class_names=class_names)


def open_mixture(spec: str, split: str, open_part: Callable[[str, str], Source]) -> Source:
  """Opens the same split of each part; indices run through one part after the other.

  Args:
    spec: see the top of this file.
    split: of every part.
    open_part: opens one source.

  Raises:
    UserError: when a part cannot be opened, or only some of them are multi-label.
  """
  weights, specs = zip(*parse_mixture(spec), strict=True)
  sources = [open_part(part, split) for part in specs]
  names = tuple(dict.fromkeys(name for source in sources for name in source.class_names))
  whole = concatenate([_relabel(source, names) for source in sources], f'{spec} ({split})')
  sizes = tuple(source.size for source in sources)
  return dataclasses.replace(whole, parts=sizes, weights=weights)
