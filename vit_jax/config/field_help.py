"""The documentation of the config for `--help`, grouped by section."""

import dataclasses
import textwrap
import typing

from vit_jax.config.evals import EvalConfig
from vit_jax.config.fields import Section, describe_type
from vit_jax.config.schema import Config
from vit_jax.errors import UserError

_WIDTH = 98


def section_names() -> list[str]:
  """The names that `--help=SECTION` takes."""
  return [each.name for each in dataclasses.fields(Config) if 'doc' not in each.metadata]


def config_help(name: str | None = None) -> str:
  """All fields with default, documentation and range; of one section by its name.

  Raises:
    UserError: for a name that is not a section.
  """
  config = Config()
  if name is None:
    return '\n\n'.join([*_section_help(config), *_section_help(EvalConfig())])
  if name not in section_names():
    raise UserError(
      f'There is no config section {name!r}; choose one of {", ".join(section_names())}.'
    )
  section = EvalConfig() if name == 'evals' else getattr(config, name)
  return '\n\n'.join(_section_help(section))


def _section_help(section: Section) -> list[str]:
  """A block of lines for a section, then those of the sections in it."""
  title = f'{section.full_name("").rstrip(".")}: {(type(section).__doc__ or "").splitlines()[0]}'
  annotations = typing.get_type_hints(type(section))
  lines, nested = [title], []
  for each in dataclasses.fields(section):
    value = getattr(section, each.name)
    if isinstance(value, Section):
      nested += _section_help(value) if dataclasses.fields(value) else []
      continue
    allowed = each.metadata['range']
    kind = allowed.rule if allowed else describe_type(annotations[each.name])
    lines.append(f'  --{section.full_name(each.name)}={value}')
    text = each.metadata['doc'] + ('' if kind in ('a string', 'a number') else f' [{kind}]')
    lines += textwrap.wrap(text, _WIDTH, initial_indent='      ', subsequent_indent='      ')
  return ['\n'.join(lines), *nested]
