"""HTML pages from Jinja2 templates.

Names in files are hostile: whatever a template prints is escaped, and unprintable characters become
escape sequences.
"""

import importlib.resources
from typing import Any

import jinja2
import markupsafe

from vit_jax.text import printable, printable_lines


def environment(package: str) -> jinja2.Environment:
  """The templates in the folder of a package, with the filters that pages share."""
  templates = jinja2.Environment(
    loader=jinja2.PackageLoader(package, ''),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=_make_printable,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  templates.filters['thousands'] = '{:,}'.format
  templates.filters['percent'] = '{:.1%}'.format
  templates.filters['several_lines'] = lambda text: markupsafe.escape(printable_lines(text))
  return templates


def _make_printable(value: Any) -> Any:
  """Applied to everything a template prints; the output of macros (Markup) has been already."""
  return printable(value) if type(value) is str else value


def inline_file(package: str, name: str) -> markupsafe.Markup:
  """A file of a package, our own style or script, to be printed as it is."""
  return markupsafe.Markup(importlib.resources.files(package).joinpath(name).read_text('utf-8'))
