"""The pages: what is on them, hostile names, their size, and how they behave in a real browser."""

import html
import json
import re
import time

import pytest
from etils import epath
from PIL import Image

from tests.browser import CHROMIUM, Elements, browse
from vit_jax.config import Config
from vit_jax.config.fields import replace_fields
from vit_jax.data_uri import picture_uri
from vit_jax.run_report.curves import TRAINING, Curve, Curves
from vit_jax.run_report.run_files import Run, State
from vit_jax.run_report.run_page import render, render_comparison
from vit_jax.run_report.saved_pictures import Picture, Pictures

HOSTILE = [
  '<script>alert(1)</script>',
  '"><img src=x onerror="document.title=\'hacked\'">',
  'a\u202eb{{ 7*7 }}\x1b',
  'مرحبا 123 שלום',
  'x' * 5000,
  'it\'s & it"s',
]
URI = picture_uri(Image.new('RGB', (2, 1)))


def curves(count=40, scale=1.0) -> Curves:
  result = Curves()
  for step in range(1, count + 1):
    time_fields = {'time': 1000.0 + step, 'train/restarts': 0}
    result.add({'step': step, 'train/loss': scale * 100 / step**2, **time_fields})
    if step % 10 == 0:
      accuracy = 0.5 if step == 20 else 0.25
      result.add({'step': step, 'test/accuracy': accuracy, '<b>/"x': None if step == 20 else 1.0})
  return result


def hostile_run(**fields) -> Run:
  pictures = [Picture(URI, name, [(name, 0.75), ('other', 0.25)], (name, 0.5)) for name in HOSTILE]
  config = replace_fields(Config(), {'data.train.source': HOSTILE[0], 'total_steps': 80})
  run = Run(
    HOSTILE[1],
    epath.Path('/runs') / 'x',
    curves(),
    State('running', '', (20,)),
    config,
    plan={'topology': HOSTILE[0], 'memory': {'needed': 5_000_000}, 'mfu': HOSTILE[0]},
    compiled={'devices': HOSTILE[2], 'bytes': 4_000_000, 'flops': 1e12},
    first_batch=Pictures(1, HOSTILE[0], pictures),
    mistakes=Pictures(40, 'note', pictures),
  )
  return run if not fields else Run(**{**vars(run), **fields})


@pytest.fixture(scope='module')
def page() -> str:
  return render(hostile_run())


@pytest.fixture(scope='module')
def comparison() -> str:
  runs = {name: Run(name, epath.Path('/x'), curves(), State('unknown')) for name in HOSTILE}
  configs = [replace_fields(Config(), {'seed': seed}) for seed in range(2)]
  others = {
    f'run {i}': Run('a', epath.Path('/x'), curves(scale=2.0), State('complete'), config)
    for i, config in enumerate(configs)
  }
  return render_comparison(runs | others)


def text_of(page: str) -> str:
  """What a reader sees, with spaces between elements."""
  page = re.sub(r'<(style|script).*?</\1>|<[^>]*>', ' ', page, flags=re.DOTALL)
  return ' '.join(html.unescape(page).split())


def test_hostile_names_are_text(page, comparison):
  for each in (page, comparison):
    elements = Elements(each)
    assert '<script>alert(1)</script>' in elements.text and '\u202e' not in each
    assert not [attrs for _, attrs in elements.elements if any(n.startswith('on') for n in attrs)]
    assert len(elements.scripts) == 1 and 'readOff' in elements.scripts[0][1]
    assert [a for tag, a in elements.elements if tag == 'img' and a['src'] == 'x'] == []
    policy = next(a['content'] for _, a in elements.elements if 'http-equiv' in a)
    assert "default-src 'none'" in policy


def test_the_pages_need_nothing_from_outside(page, comparison):
  for each in (page, comparison):
    for tag, attrs in Elements(each).elements:
      for name in ('src', 'href', 'srcset', 'action', 'data'):
        assert attrs.get(name, 'data:image/').startswith('data:image/'), (tag, name)
      assert tag != 'img' or attrs['alt'].strip()
      assert attrs.get('role') != 'img' or attrs['aria-label'].strip()
    assert not re.search(r'url\(|@import', each)


def test_the_head_line(page):
  text = text_of(page)
  assert 'running state 40 of 80 steps 00:40 left' in text
  assert '25.00% test/accuracy, last: step 40 50.00% test/accuracy, best: step 20' in text


def test_what_was_predicted_and_what_happened():
  known = curves()
  last = {'train/images_per_second': 1024.0, 'train/device_memory_peak': 6_000_000}
  known.add({'step': 41, **last})
  plan = {'topology': 'v5e:2x2', 'step_time': {'predicted': 0.25}, 'mfu': 0.5}
  text = text_of(render(hostile_run(curves=known, plan=plan)))
  assert 'plan this run measured' in text
  assert 'memory of a device 4 MB 6 MB' in text
  assert 'time of a step, with waiting for data 250.0 ms 500.0 ms' in text  # a batch of 512
  assert 'share of peak FLOP/s 50.0%' in text and 'for v5e:2x2' in text
  assert 'Predicted' not in text_of(render(hostile_run(plan={}, compiled={})))


def test_the_config_shows_what_differs_first(page):
  text = text_of(page)
  at = text.index('Config field value default')
  head, _, rest = text[at:].partition('All ')
  assert 'total_steps 80 10000' in head and 'batch_size' not in head and 'batch_size 512' in rest
  assert '<details><summary>' in page


def test_a_run_of_which_little_is_known():
  page = render(Run('x', epath.Path('/x'), Curves(), State('unknown')))
  text = text_of(page)
  assert 'There are no metrics yet.' in text and '<svg' not in page and 'Config' not in text


def test_runs_side_by_side(comparison):
  text = text_of(comparison)
  names = [attrs for tag, attrs in Elements(comparison).elements if tag == 'path']
  assert len({attrs['class'] for attrs in names}) == len(HOSTILE) + 2  # colors and dashes
  assert 'Config fields that differ' in text and 'seed' in text and 'total_steps' not in text
  assert re.search(r'train/loss (0\.0625 ){6}0\.125 0\.125', text)


def test_a_million_logged_steps_are_a_small_page():
  curve = Curve()
  for step in range(1_000_000):
    curve.add(step, 0.1 + step * 7919 % 1000 / 1000)
  curve.add(777_777, 1234.5)
  long = Curves()
  long.curves = {name: curve for name in (*TRAINING, *(f'test/{i}' for i in range(20)))}
  start = time.process_time()
  page = render(hostile_run(curves=long))
  assert len(page.encode()) < 2_000_000 and time.process_time() - start < 5
  assert '777777,1234.5' in html.unescape(page)


# --- in a browser -------------------------------------------------------------------------------

DRIVE = """<pre id="result"></pre><script>
const said = [], figure = document.querySelector('.plot'), svg = figure.querySelector('svg');
const key = (key) => figure.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
const say = () => said.push(figure.querySelector('output').textContent);
key('Home'); say(); key('ArrowRight'); say(); key('End'); say();
const box = svg.getBoundingClientRect();
const at = (x) => svg.dispatchEvent(new PointerEvent('pointermove',
  {clientX: box.left + box.width * x / 400, clientY: box.top + 50, bubbles: true}));
at(0); say(); at(400); say(); at(217); say();
const display = (name) => getComputedStyle(figure.querySelector(name)).display;
const before = [display('.linear'), display('.logarithmic')];
figure.querySelector('.log').click();
const after = [display('.linear'), display('.logarithmic')];
document.getElementById('result').textContent = JSON.stringify({said, before, after});
</script>"""


def without_policy(page: str) -> str:
  return re.sub(r'<meta http-equiv[^>]*>', '', page)


def result_of(dom: str) -> dict:
  found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.S)
  assert found
  return json.loads(html.unescape(found[1]))


@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_values_are_read_off_in_a_browser(page, tmp_path):
  path = tmp_path / 'page.html'
  path.write_text(page)
  dom, console = browse(path)
  assert console == '' and '<title>hacked' not in dom
  path.write_text(without_policy(page).replace('</body>', f'{DRIVE}</body>'))
  dom, console = browse(path)
  assert console == ''
  result = result_of(dom)
  expected = {1: 100, 2: 25, 20: 0.25, 21: 0.2268, 40: 0.0625}
  steps = (1, 2, 40, 1, 40)
  assert result['said'][:5] == [f'step {step}: {expected[step]}' for step in steps]
  assert result['said'][5] in [f'step {step}: {expected[step]}' for step in (20, 21)]
  assert result['before'] == ['inline', 'none'] and result['after'] == ['none', 'inline']


@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_a_phone_needs_no_scrolling(page, comparison, tmp_path):
  frames = ''.join(
    f'<iframe width="390" height="800" srcdoc="{html.escape(without_policy(each))}"></iframe>'
    for each in (page, comparison)
  )
  script = """<pre id="result"></pre><script>addEventListener('load', () => {
    const widths = [...document.querySelectorAll('iframe')].map(
      (each) => each.contentDocument.documentElement.scrollWidth);
    document.getElementById('result').textContent = JSON.stringify({widths});
  });</script>"""
  path = tmp_path / 'page.html'
  path.write_text(f'<!doctype html><meta charset="utf-8">{frames}{script}')
  dom, console = browse(path)
  assert console == '' and all(0 < width <= 390 for width in result_of(dom)['widths'])


def test_small_pictures_are_stored_without_loss():
  assert picture_uri(Image.new('RGB', (64, 8))).startswith('data:image/png')
  assert picture_uri(Image.new('RGB', (65, 8))).startswith('data:image/jpeg')
