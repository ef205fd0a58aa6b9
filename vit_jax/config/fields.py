"""How a section of the config declares its fields: type, default, documentation and range."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

from vit_jax.errors import UserError

FieldInfo: TypeAlias = 'dataclasses.Field[Any]'
SectionType = TypeVar('SectionType', bound='Section')


@dataclasses.dataclass(frozen=True)
class Range:
  """The values that a field may have."""

  rule: str  # completes the sentence 'it must be …'
  holds: Callable[[Any], bool]  # of a value that already has the type of the field


POSITIVE = Range('positive', lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Range('0 or positive', lambda x: 0 <= x < math.inf)
RATE = Range('at least 0 and less than 1', lambda x: 0 <= x < 1)
FRACTION = Range('at least 0 and at most 1', lambda x: 0 <= x <= 1)


def between(least: float, most: float) -> Range:
  """Both ends included."""
  return Range(f'{least} to {most}', lambda x: least <= x <= most)


def interval(most: float, unit: str) -> Range:
  """A pair 0 < least <= most."""
  bound = '' if most == math.inf else f' <= {most}'
  return Range(f'two {unit}, 0 < least <= most{bound}', lambda x: 0 < x[0] <= x[1] <= most)


def field(default: Any, doc: str, allowed: Range | None = None, *, execution: bool = False) -> Any:
  """A field of a `Section`.

  Args:
    default: its value unless a config sets another one.
    doc: one line for `--help`, units included.
    allowed: the values that it may have; None: any of its type.
    execution: it changes how a run is executed or watched but not what it computes, so a run may
      be resumed with another value.
  """
  metadata = {'doc': doc, 'range': allowed, 'execution': execution}
  return dataclasses.field(default=default, metadata=metadata)


def section(default: Callable[[], 'Section']) -> Any:
  """A field that holds another section."""
  return dataclasses.field(default_factory=default)


_PLURAL = {int: 'integers', float: 'numbers', str: 'strings'}


def describe_type(annotation: Any) -> str:
  """'an integer', "one of 'softmax', 'sigmoid'", 'two numbers': what values of a type are."""
  names = {int: 'an integer', float: 'a number', bool: 'True or False', str: 'a string'}
  if annotation in names:
    return names[annotation]
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is Literal:
    return f'one of {", ".join(map(str, arguments))}'
  if origin is types.UnionType:
    return ' or '.join(map(describe_type, arguments))
  if typing.get_origin(arguments[0]) is tuple:
    return f'a tuple of pairs of {_PLURAL[typing.get_args(arguments[0])[0]]}'
  kind = _PLURAL[arguments[0]]
  return f'a tuple of {kind}' if arguments[-1] is ... else f'{len(arguments)} {kind}'


def _rule(annotation: Any) -> str:
  verb = 'choose' if typing.get_origin(annotation) is Literal else 'it must be'
  return f'{verb} {describe_type(annotation)}'


def convert(value: Any, annotation: Any) -> Any:
  """The value as its type has it: integers become floats, lists become tuples.

  Raises:
    TypeError: for a value of another type.
  """
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is Literal:
    if value in arguments:
      return value
  elif origin is types.UnionType:
    for choice in arguments:
      try:
        return convert(value, choice)
      except TypeError:
        continue
  elif origin is tuple:
    if isinstance(value, (tuple, list)):
      kinds = arguments if arguments[-1] is not ... else arguments[:1] * len(value)
      if len(kinds) == len(value):
        return tuple(map(convert, value, kinds))
  elif type(value) is annotation or (annotation is float and type(value) is int):
    return annotation(value)
  raise TypeError(f'{value!r} is not {describe_type(annotation)}')


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the config whose fields are checked as soon as it exists.

  Raises:
    UserError: naming the field, for a value of another type or out of its range.
  """

  path: ClassVar[str] = ''

  def __init_subclass__(cls, path: str = '', **kwargs: Any):
    super().__init_subclass__(**kwargs)
    cls.path = path  # such as 'data.augment'

  def __post_init__(self):
    annotations = typing.get_type_hints(type(self))
    for each in dataclasses.fields(self):
      if 'doc' not in each.metadata:
        continue
      value, allowed = getattr(self, each.name), each.metadata['range']
      try:
        value = convert(value, annotations[each.name])
      except TypeError:
        self.refuse(each.name, _rule(annotations[each.name]))
      if allowed is not None and not allowed.holds(value):
        self.refuse(each.name, f'it must be {allowed.rule}')
      object.__setattr__(self, each.name, value)

  @classmethod
  def full_name(cls, name: str) -> str:
    """'config.data.augment.crop' of 'crop'."""
    return '.'.join(filter(None, ('config', cls.path, name)))

  def refuse(self, name: str, rule: str) -> typing.NoReturn:
    """Raises `UserError` for the value of a field."""
    value = getattr(self, name)
    if isinstance(value, float) and value.is_integer():
      value = int(value)
    raise UserError(f'{self.full_name(name)} is {value!r}; {rule}.')


def replace_fields(config: SectionType, changes: Mapping[str, Any]) -> SectionType:
  """A section with other values: {'batch_size': 64, 'model.remat': 'full'}."""
  plain: dict[str, Any] = {}
  nested: dict[str, dict[str, Any]] = {}
  for name, value in changes.items():
    holder, _, rest = name.partition('.')
    if rest:
      nested.setdefault(holder, {})[rest] = value
    else:
      plain[name] = value
  plain |= {name: replace_fields(getattr(config, name), values) for name, values in nested.items()}
  return dataclasses.replace(config, **plain)


def walk_fields(config: Section, prefix: str = '') -> Iterator[tuple[str, Section, FieldInfo]]:
  """('model.width', its section, its dataclass field), … of a section and those that it holds."""
  for each in dataclasses.fields(config):
    value = getattr(config, each.name)
    if isinstance(value, Section):
      yield from walk_fields(value, f'{prefix}{each.name}.')
    else:
      yield prefix + each.name, config, each


def flatten(config: Section) -> dict[str, Any]:
  """{'model.width': 64, …}: all fields of a section and of those that it holds."""
  return {name: getattr(holder, each.name) for name, holder, each in walk_fields(config)}
