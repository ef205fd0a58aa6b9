"""The documentation as a site: built without a warning, readable without any other host."""

import os
import re
import subprocess
import sys

import pytest

from tests.helpers import ROOT

pytest.importorskip('mkdocs')
pytest.importorskip('mkdocstrings')
# What a browser fetches by itself: not links, which a reader clicks.
FETCHED = re.compile(r'<(?:script|img|iframe|link|source|video)\b[^>]*?\b(?:src|href)="([^"]*)"')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  folder = tmp_path_factory.mktemp('site')
  command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', f'--site-dir={folder}']
  environment = os.environ | {'NO_MKDOCS_2_WARNING': '1'}
  result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  assert 'WARNING' not in result.stderr
  return folder


def test_a_browser_asks_no_other_host(site):
  pages = list(site.rglob('*.html'))
  assert len(pages) > 20
  fetched = {url for page in pages for url in FETCHED.findall(page.read_text())}
  assert any(url.endswith('.js') for url in fetched) and any('.svg' in url for url in fetched)
  assert not [url for url in fetched if re.match('([a-z]+:)?//', url)]
  styles = ''.join(path.read_text() for path in site.rglob('*.css'))
  assert not re.findall(r'url\(["\']?(?:https?:)?//|@import', styles)
  assert not [page for page in pages if 'class="mermaid"' in page.read_text()]


def test_the_reference_has_every_public_name(site):
  pages = {path.stem: path.read_text() for path in (site / 'api').glob('*.html')}
  packages = {path.parent.name for path in (ROOT / 'vit_jax').glob('*/__init__.py')}
  assert {f'vit_jax.{name}' for name in packages} | {'vit_jax'} == pages.keys()
  for page, name in (
    ('vit_jax', 'vit_jax.classifier.Classifier.predict'),
    ('vit_jax.training', 'vit_jax.training.loop.train_and_evaluate'),
    ('vit_jax.models', 'vit_jax.models.vit.VisionTransformer'),
    ('vit_jax.data', 'vit_jax.data.sources.source.Source'),
  ):
    assert f'id="{name}"' in pages[page], name
