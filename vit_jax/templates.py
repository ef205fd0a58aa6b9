"""HTML pages from Jinja2 templates.

Names in files are hostile: whatever a template prints is escaped, and unprintable characters become
escape sequences. Templates share `page_parts.html.j2`.
"""

import base64
import hashlib
import importlib.resources
from typing import Any

import jinja2
import markupsafe

from vit_jax.text import printable, printable_lines


def environment(package: str) -> jinja2.Environment:
  """The templates in the folder of a package, with the filters that pages share."""
  templates = jinja2.Environment(
    loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, '') for name in (package, 'vit_jax')]),
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


def policy(script: str) -> str:
  """A Content-Security-Policy that lets a page run this script alone, and load nothing.

  So a hostile name in a file cannot become a script even if it were not escaped.
  """
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  return (
    f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
  )
