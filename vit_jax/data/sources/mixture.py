"""3*folder:/a + 1*hf:b: a mixture of several sources, sampled in proportion to their weights.

' + ' (with spaces) separates the components; a weight is a number before '*' and defaults to 1.
Components may differ in their classes: the mixture has the union, in order of first appearance,
and classes of the same name are one class.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from vit_jax.data.sources.source import Example, Source, multi_hot
from vit_jax.data.sources.splitting.splits import concatenate
from vit_jax.errors import UserError

_SEPARATOR = re.compile(r'\s+\+\s+')
_WEIGHT = re.compile(r'(-?\d+(?:\.\d*)?|-?\.\d+)\s*\*\s*')


def is_mixture(spec: str) -> bool:
  """Returns True if a source is written as a mixture."""
  return bool(_SEPARATOR.search(spec) or _WEIGHT.match(spec))


def parse_mixture(spec: str) -> tuple[tuple[float, str], ...]:
  """Parses a mixture into the (weight, source) of each component."""
  components = []
  for text in _SEPARATOR.split(spec.strip()):
    match = _WEIGHT.match(text)
    weight, component = (float(match[1]), text[match.end() :]) if match else (1.0, text)
    if weight <= 0 or not component.strip():
      raise UserError(
        f'{text!r} is not a valid component of a mixture; write weight*source with a positive '
        "weight, such as '3*folder:/a + 1*folder:/b'."
      )
    components.append((weight, component.strip()))
  return tuple(components)


def _relabel(source: Source, class_names: tuple[str, ...]) -> Source:
  """Renumbers the labels of a source to index `class_names`, which include all of its classes."""
  if source.class_names == class_names:
    return source
  indices = {name: i for i, name in enumerate(class_names)}
  new_labels = np.array([indices[name] for name in source.class_names], np.int32)

  def read(i: int) -> Example:
    image, label = source.read(i)
    if not source.multi_label:
      return image, new_labels[label]
    return image, multi_hot(new_labels[np.flatnonzero(label)], len(class_names))

  return dataclasses.replace(source, read=read, class_names=class_names)


def open_mixture(spec: str, split: str, open_component: Callable[[str, str], Source]) -> Source:
  """Opens a split of each component with `open_component`, which takes a source and a split.

  Indices run through one component after the other.

  Raises:
    UserError: when a component cannot be opened, or only some of them are multi-label.
  """
  weights, specs = zip(*parse_mixture(spec), strict=True)
  components = [open_component(component, split) for component in specs]
  class_names = tuple(dict.fromkeys(name for source in components for name in source.class_names))
  relabeled = [_relabel(component, class_names) for component in components]
  return dataclasses.replace(
    concatenate(relabeled, f'{spec} ({split})'),
    component_sizes=tuple(component.size for component in components),
    weights=weights,
  )
