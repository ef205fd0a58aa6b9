"""Pages in tests: their elements, and a real browser."""

import html.parser
import pathlib
import shutil
import subprocess

CHROMIUM = next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)


class Elements(html.parser.HTMLParser):
  """All elements of a page as (name, attributes), the texts of scripts, the visible text."""

  def __init__(self, page: str):
    super().__init__()
    self.elements, self.scripts, self.text, self._inside = [], [], '', ''
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    self._inside = tag
    if tag == 'script':
      self.scripts.append((dict(attrs), ''))

  def handle_endtag(self, tag):
    self._inside = ''

  def handle_data(self, data):
    if self._inside == 'script':
      attributes, text = self.scripts.pop()
      self.scripts.append((attributes, text + data))
    elif self._inside != 'style':
      self.text += data


def browse(path: pathlib.Path, *flags: str) -> tuple[str, str]:
  """The page after its scripts, and what the browser reports."""
  result = subprocess.run(
    [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', *flags]
    + [f'--user-data-dir={path.parent}/profile', '--dump-dom', path.as_uri()],
    capture_output=True,
    text=True,
    timeout=120,
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  return result.stdout, '\n'.join(x for x in result.stderr.splitlines() if 'CONSOLE' in x)
