"""The grid of a sweep: from `--grid config.field=a,b,c` to checked points."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.config import Config, flatten, load_config
from vit_jax.errors import UserError

# What a sweep sets itself, the same for all points.
_DATA = ('data.train.source', 'data.train.split', 'data.test.source', 'data.test.split')
_MAX_NAME = 150  # bytes of the name of a folder; file systems allow 255
_COMMA = re.compile(r',(?![^(\[]*[)\]])')  # not inside of (224, 160)

Grid = Mapping[str, Sequence[str]]  # {'schedule.learning_rate': ('0.001', '0.003')}


def value_text(value: Any) -> str:
  """A value for readers: 1e9 is '1e+09', not '1000000000.0'."""
  short = f'{value:g}' if isinstance(value, float) else ''
  return short if short and float(short) == value else str(value)


@dataclasses.dataclass(frozen=True)
class Point:
  """One choice of values.

  Attributes:
    values: {'learning_rate': 0.01}, by the shortest names that tell the fields of the grid apart.
    flags: what sets them: ('--config.schedule.learning_rate=0.01',).
    config: with these values, and the data of the user.
  """

  values: dict[str, Any]
  flags: tuple[str, ...]
  config: Config

  @property
  def name(self) -> str:
    """'learning_rate=0.01,batch_size=64', which can name a folder."""
    text = ','.join(f'{name}={value_text(value)}' for name, value in self.values.items())
    name = re.sub(r'[^\w.,=+-]+', '-', text)[:_MAX_NAME]
    if name == text and len(name.encode()) <= _MAX_NAME:
      return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f'{name.encode()[: _MAX_NAME - 9].decode(errors="ignore")}-{digest}'


def parse_grid(arguments: Sequence[str]) -> Grid:
  """Parses 'config.schedule.learning_rate=0.001,0.003' and the like.

  Raises:
    UserError: for other syntax, an empty value, or a field that comes twice.
  """
  grid: dict[str, tuple[str, ...]] = {}
  for argument in arguments:
    match = re.fullmatch(r'config\.([\w.]+)=(.*)', argument)
    values = tuple(value.strip() for value in _COMMA.split(match[2])) if match else ()
    if not match or not all(values):
      raise UserError(
        f'--grid is {argument!r}; it takes a field and its values, as in '
        'config.schedule.learning_rate=0.001,0.003.'
      )
    if match[1] in grid:
      raise UserError(f'--grid has config.{match[1]} twice; put all its values into one.')
    grid[match[1]] = values
  return grid


def _short_names(fields: Sequence[str]) -> dict[str, str]:
  last = [field.rpartition('.')[2] for field in fields]
  return {field: field if last.count(x) > 1 else x for field, x in zip(fields, last, strict=True)}


def _check_fields(grid: Grid, overrides: Sequence[str]) -> None:
  for field in grid:
    if field in _DATA:
      raise UserError(
        f'config.{field} cannot be in a grid: all points are trained and compared on the same data.'
      )
    if any(re.match(rf'--?(no)?config\.{re.escape(field)}(=|$)', flag) for flag in overrides):
      raise UserError(f'config.{field} is in --grid and set by a flag, too; leave one of them out.')


def make_points(source: str, overrides: Sequence[str], grid: Grid) -> list[Point]:
  """All combinations of the values, in the order of the grid.

  Args:
    source: config file, as `load_config` takes it.
    overrides: '--config.field=value' flags of all points.
    grid: values by field, as a user writes them.

  Raises:
    UserError: for a field that does not exist or is set otherwise, too, a value that it cannot
      have, or a point that comes twice.
  """
  _check_fields(grid, overrides)
  names, points = _short_names(list(grid)), {}
  for values in itertools.product(*grid.values()):
    flags = tuple(f'--config.{field}={x}' for field, x in zip(grid, values, strict=True))
    config = load_config(source, [*overrides, *flags])
    fields = flatten(config)
    point = Point({name: fields[field] for field, name in names.items()}, flags, config)
    if point.name in points:
      raise UserError(f'--grid has {point.name} twice, as {" ".join(flags)}, too.')
    points[point.name] = point
  return list(points.values())
