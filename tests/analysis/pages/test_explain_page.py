"""The page: what is in it, hostile names, and how it behaves in a real browser."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest

from tests.analysis.models import golden, noise, tiny
from tests.browser import CHROMIUM, Elements, browse
from vit_jax import analysis
from vit_jax.analysis.pages.explain_page import explain, render, resolve_classes, resolve_layers
from vit_jax.errors import UserError

HOSTILE = [
  '</script><script>document.title="hacked"</script>',
  '"><img src=x onerror="document.title=\'hacked\'">',
  'a\u202eb{{ 7*7 }}\x1b',
]


def make_page(vit, count=2, classes=(), factor=1, layers=None, names=HOSTILE) -> str:
  layers = list(range(vit.model.depth)) if layers is None else layers
  explained = [
    explain(vit, name, pixels, 3, classes, layers, factor)
    for name, pixels in zip(names, noise(vit, count), strict=False)
  ]
  return render(vit, names[0], layers, explained)


@pytest.fixture(scope='module')
def vit():
  vit = tiny((12, 16))
  return type(vit)(vit.model, vit.params, vit.image_size, labels=HOSTILE)


@pytest.fixture(scope='module')
def page(vit) -> str:
  return make_page(vit)


def test_hostile_names_are_text(page):
  elements = Elements(page)
  assert '</script><script>document.title="hacked"' in elements.text
  assert 'a\\u202eb{{ 7*7 }}\\x1b' in elements.text and '\u202e' not in page
  assert not [attrs for _, attrs in elements.elements if any(n.startswith('on') for n in attrs)]
  ours = [text for attrs, text in elements.scripts if 'type' not in attrs]
  assert len(ours) == 1
  digest = base64.b64encode(hashlib.sha256(ours[0].encode()).digest()).decode()
  policy = next(a['content'] for _, a in elements.elements if 'http-equiv' in a)
  assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_the_page_needs_nothing_from_outside(page):
  for tag, attrs in Elements(page).elements:
    for name in ('src', 'href', 'srcset', 'action', 'data'):
      if name in attrs:
        assert attrs[name].startswith(('data:image/', '#image-')), (tag, attrs[name][:50])
  assert not re.search(r'url\((?!data:image|var)|@import|http:|https:', page)


def test_pictures_have_texts_and_ids_are_unique(page):
  elements = Elements(page).elements
  assert all('alt' in attrs for tag, attrs in elements if tag == 'img')
  for _, attrs in elements:
    assert attrs.get('role') not in ('img', 'application') or attrs['aria-label'].strip()
  ids = [attrs['id'] for _, attrs in elements if 'id' in attrs]
  assert len(ids) == len(set(ids)) and {'image-0', 'image-1', 'learned'} <= set(ids)


def test_the_attention_on_the_page_is_that_of_the_model(vit):
  elements = Elements(make_page(vit, layers=[1]))
  weights = np.asarray(analysis.attention(vit, noise(vit)))[:, [1]]
  info = [json.loads(a['data-info']) for _, a in elements.elements if 'data-info' in a]
  assert info[0] == {
    'layers': [1], 'heads': 2, 'prefix': 1, 'cells': [3, 4], 'factor': 1, 'grid': [3, 4]
  }  # fmt: skip
  stored = {
    name: [base64.b64decode(text) for attrs, text in elements.scripts if attrs.get('class') == name]
    for name in ('levels', 'largest')
  }
  for image in range(2):
    levels = np.frombuffer(stored['levels'][image], np.uint8).reshape(1, 2, 13, 13)
    largest = np.frombuffer(stored['largest'][image], '<f4').reshape(1, 2, 13, 1)
    np.testing.assert_allclose(levels / 255 * largest, weights[image], atol=0.003)


def test_classes_and_probabilities(vit, page):
  text = ' '.join(Elements(page).text.split())
  probabilities = np.asarray(vit.probabilities(noise(vit)))
  for of_image in probabilities:
    for share in np.sort(of_image)[-2:]:
      assert f'{share:.1%}' in text
  assert text.count('For “') == 4  # the two most probable classes of two images
  top, _, least = np.argsort(-probabilities[0])
  chosen = explain(vit, 'x', noise(vit)[0], 1, [least, top], [0], 1)
  assert [each.title for each in chosen.of_classes] == [HOSTILE[top], HOSTILE[least]]
  assert [row[0] for row in chosen.top] == [top]
  expected = analysis.relevance(vit, noise(vit)[:1], [[top, least]])[0]
  np.testing.assert_array_equal([each.values for each in chosen.of_classes], expected)


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'pool': 'gap', 'position_embedding': 'none'}, 'the mean of all patches sees'),
    ({'pool': 'map'}, 'the query of the attention pooling sees'),
  ],
)
def test_models_without_some_of_it(fields, words):
  page = make_page(tiny((8, 12), num_classes=0, **fields), 1)
  assert words in page and 'From the class token' not in page
  assert ('Similarity of position' in page) == ('position_embedding' not in fields)
  assert 'The model has no head' in page


def test_a_hybrid_shows_its_first_convolution():
  assert 'Filters of the first convolution' in make_page(golden('hybrid_stem').with_head(0), 1)


def test_a_coarser_grid_is_said(vit):
  assert 'squares of 2 × 2 patches' in make_page(vit, 1, factor=2)


def test_classes_are_named_by_label_or_number():
  vit = tiny()
  vit = type(vit)(vit.model, vit.params, vit.image_size, labels=['cat', 'dog, puppy', '0'])
  assert resolve_classes(vit, ['cat, 1']) == [0, 1]
  assert resolve_classes(vit, ['dog, puppy', 'cat', 'cat']) == [1, 0]
  assert resolve_classes(vit, ['dog,cat']) == [1, 0]  # by its first name
  assert resolve_classes(vit, ['0']) == [2]  # a label before a number
  for text, words in (('cta', 'did you mean cat'), ('3', 'name a label'), ('', 'name a label')):
    with pytest.raises(UserError, match=words):
      resolve_classes(vit, [text])
  with pytest.raises(UserError, match='no head'):
    resolve_classes(tiny(num_classes=0), ['0'])
  with pytest.raises(UserError, match='9 classes; choose at most 8'):
    resolve_classes(tiny(num_classes=20), ['0,1,2,3,4,5,6,7,8'])


def test_layers_are_counted_from_both_ends():
  assert resolve_layers('0,-1,3', 4) == [0, 3] and resolve_layers(None, 2) == [0, 1]
  for text in ('4', '-5', 'x', '1,'):
    with pytest.raises(UserError, match='from -4 to 3'):
      resolve_layers(text, 4)


# --- in a browser -------------------------------------------------------------------------------

DRIVE = """<pre id="result"></pre><script>
const root = document.querySelector('.explorer'), stage = root.querySelector('.stage'), said = [];
const step = (act) => { act(); said.push(root.querySelector('.said').textContent); };
const key = (key) => () => stage.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
const at = (type, x, y) => () => {
  const box = stage.getBoundingClientRect(), how = {pointerType: 'mouse', bubbles: true};
  const place = {clientX: box.left + x * box.width, clientY: box.top + y * box.height};
  stage.dispatchEvent(new PointerEvent(type, {...how, ...place}));
};
step(() => {});
step(at('pointermove', 0.99, 0.01));
step(at('click', 0.3, 0.9));
step(at('pointermove', 0.99, 0.01));
step(key('ArrowUp'));
step(key('PageDown'));
step(() => root.querySelectorAll('.heads button')[2].click());
step(key('c'));
const canvas = root.querySelector('canvas.heat').getContext('2d');
const pixels = [...canvas.getImageData(0, 0, 4, 3).data];
document.getElementById('result').textContent = JSON.stringify(
  {said, pixels, wide: document.documentElement.scrollWidth > window.innerWidth});
</script>"""


def sentence(weights, layer: int, head: int | None, token: int) -> str:
  """What the page says of (L, K, N, N) weights of a grid of 3 x 4 patches and a class token."""
  row = weights[layer].mean(0)[token] if head is None else weights[layer, head, token]

  def name(token):
    return (
      f'row {(token - 1) // 4 + 1}, column {(token - 1) % 4 + 1}' if token else 'the class token'
    )

  best = int(row[1:].argmax()) + 1
  heads = 'mean of all heads' if head is None else f'head {head}'
  return f'Block {layer}, {heads}: {name(token)} attends most to {name(best)}'


@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_in_a_browser(vit, page, tmp_path):
  path = tmp_path / 'page.html'
  path.write_text(page)
  dom, console = browse(path)
  assert console == ''
  assert '<title>What &lt;/script&gt;' in dom  # no script of a name has changed it
  weights = np.asarray(analysis.attention(vit, noise(vit)))
  for of_image in weights:
    assert sentence(of_image, 1, None, 0) in dom
  # The same page with a script that uses it, which its policy would not let run.
  driven = re.sub(r'<meta http-equiv[^>]*>', '', page).replace('</body>', f'{DRIVE}</body>')
  path.write_text(driven)
  dom, console = browse(path, '--window-size=500,900')
  assert console == ''
  result = json.loads(re.search(r'<pre id="result">(.*?)</pre>', dom, re.S)[1])
  expected = [(1, None, 0), (1, None, 4), (1, None, 10), (1, None, 10), (1, None, 6)]
  expected += [(0, None, 6), (0, 1, 6), (0, 1, 0)]
  for said, of in zip(result['said'], expected, strict=True):
    assert said.startswith(sentence(weights[0], *of)), said
  opacity = np.array(result['pixels']).reshape(12, 4)[:, 3]
  assert opacity.argmax() == weights[0, 0, 1, 0, 1:].argmax()
  assert not result['wide']


@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_the_policy_stops_a_script(page, tmp_path):
  path = tmp_path / 'page.html'
  path.write_text(page.replace('</body>', '<script>document.title = "hacked"</script></body>'))
  dom, console = browse(path)
  assert '<title>hacked' not in dom and 'Content Security Policy' in console
