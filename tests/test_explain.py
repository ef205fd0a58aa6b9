"""The command `vit_jax.explain`."""

import pytest

from tests.helpers import GOLDEN, write_images
from vit_jax import explain

MODEL = f'--model={GOLDEN}/vit_token_prelogits.npz'


@pytest.fixture
def images(tmp_path):
  write_images(tmp_path / 'images', {'a.png': (70, 90), 'b.png': (64, 64)})
  return tmp_path / 'images'


def test_a_page_of_a_folder(images, tmp_path, command):
  (images / 'broken.png').write_bytes(b'no image')
  arguments = (MODEL, images, f'--out={tmp_path}/x.html', '--image_size=32x64')
  arguments += ('--layers=-1', '--classes=3')
  code, out, err = command(explain, *arguments)
  assert code == 2  # for the image that cannot be read
  assert out == f'{tmp_path}/x.html: 2 images\n'
  assert err.count('error: ') == 1 and 'broken.png' in err and 'Traceback' not in err
  page = (tmp_path / 'x.html').read_text()
  assert page.startswith('<!doctype html>') and page.rstrip().endswith('</html>')
  assert '32 × 64 pixels' in ' '.join(page.split())
  assert 'a.png' in page and 'b.png' in page and 'For “class 3”' in page
  assert {path.name for path in tmp_path.iterdir()} == {'images', 'x.html'}


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--out=x.txt'], 'ends in .html'),
    (['--out=none/x.html'], 'choose another --out'),
    (['--layers=9'], '--layers is'),
    (['--classes=zebra'], "no class 'zebra'"),
    (['--max_mb=0'], '--max_mb is 0'),
    ([f'--model={GOLDEN}/mixer.npz'], 'an MLP-Mixer'),
  ],
)
def test_mistakes_end_in_one_sentence(images, command, flags, words):
  code, out, err = command(explain, MODEL, images, *flags)
  assert (code, out) == (2, '')
  assert err.startswith('error: ') and err.count('\n') == 1 and words in err


def test_no_image_can_be_read(tmp_path, command):
  (tmp_path / 'a.png').write_bytes(b'no image')
  code, _, err = command(explain, MODEL, tmp_path / 'a.png', f'--out={tmp_path}/x.html')
  assert code == 2 and 'a.png' in err and not (tmp_path / 'x.html').exists()


def test_too_many_images(tmp_path, command):
  write_images(tmp_path, {f'{i}.png': (2, 2) for i in range(101)})
  code, _, err = command(explain, MODEL, tmp_path)
  assert code == 2 and '101 images; a page shows at most 100' in err
