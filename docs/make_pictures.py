"""Draws the pictures of README.md and of the pages: `python docs/make_pictures.py RUN [IMAGE…]`.

architecture.svg is drawn from the tables below. report.png and explain.png are screenshots, by
Chromium, of what `python -m vit_jax.report` and `vit_jax.explain` write of the run and its model;
without IMAGE of a digit of scikit-learn.
"""

import argparse
import html
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

PICTURES = pathlib.Path(__file__).parent / 'pictures'
_WIDTH, _HEIGHT, _GAP = 162, 46, 44  # of a box, and between columns
_COLORS = {'file': '#f3e3c3', 'module': '#cfe0f1', 'loop': '#bcdcc4'}
# Name: (column, row, what it does, kind).
BOXES = {
  'configs/*.py, flags': (0, 0, '--config.field=value', 'file'),
  'config/': (1, 0, 'typed, checked', 'module'),
  'data/sources': (0, 1, 'bytes by index', 'module'),
  'data/decoding': (1, 1, 'bytes to pixels', 'module'),
  'data/augmentation': (2, 1, 'pixels to pixels', 'module'),
  'data/loading': (3, 1, 'order, batches, devices', 'module'),
  'published weights': (0, 2, 'npz, timm, Transformers', 'file'),
  'weights/': (1, 2, 'formats, layouts, adapt', 'module'),
  'models/': (1, 3, 'linen modules', 'module'),
  'distributed/': (1, 4, 'mesh, sharding, processes', 'module'),
  'training/program': (2, 3, 'state, shardings, steps', 'module'),
  'training/loop': (4, 1, 'train_and_evaluate', 'loop'),
  'planning/': (3, 4, 'compiled for a pod', 'module'),
  'checkpoints/': (5, 0, 'state of the run', 'module'),
  'evaluation/': (5, 1, 'exact sums', 'module'),
  'workdir/model/': (5, 2, 'weights, labels, sizes', 'file'),
  'commands': (5, 3, 'predict, evaluate, convert', 'module'),
  'analysis/': (5, 4, 'attention, relevance', 'module'),
}
ARROWS = (
  ('configs/*.py, flags', 'config/'),
  ('config/', 'training/loop'),
  ('data/sources', 'data/decoding'),
  ('data/decoding', 'data/augmentation'),
  ('data/augmentation', 'data/loading'),
  ('data/loading', 'training/loop'),
  ('published weights', 'weights/'),
  ('weights/', 'training/program'),
  ('models/', 'training/program'),
  ('distributed/', 'training/program'),
  ('training/program', 'training/loop'),
  ('training/program', 'planning/'),
  ('training/loop', 'checkpoints/'),
  ('training/loop', 'evaluation/'),
  ('training/loop', 'workdir/model/'),
  ('workdir/model/', 'commands'),
  ('commands', 'analysis/'),
)


def _corner(name: str) -> tuple[int, int]:
  column, row, *_ = BOXES[name]
  return 8 + column * (_WIDTH + _GAP), 8 + row * (_HEIGHT + 26)


def _box(name: str) -> str:
  (x, y), (_, _, text, kind) = _corner(name), BOXES[name]
  middle = x + _WIDTH / 2
  return (
    f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{_COLORS[kind]}"/>'
    f'<text x="{middle}" y="{y + 19}" font-weight="600">{html.escape(name)}</text>'
    f'<text x="{middle}" y="{y + 36}" font-size="11">{html.escape(text)}</text>'
  )


def _arrow(start: str, end: str) -> str:
  (x0, y0), (x1, y1) = _corner(start), _corner(end)
  if BOXES[start][0] == BOXES[end][0]:  # downward
    x0, y0, y1 = x0 + _WIDTH // 2, y0 + _HEIGHT, y1 - 3
    path = f'M{x0} {y0}V{y1}'
  else:
    x0, y0, x1, y1 = x0 + _WIDTH, y0 + _HEIGHT // 2, x1 - 3, y1 + _HEIGHT // 2
    bend = x1 - _GAP + 3  # straight up to the gap before the column of the end
    path = f'M{x0} {y0}H{bend}C{bend + 22} {y0} {x1 - 22} {y1} {x1} {y1}'
  return f'<path d="{path}" marker-end="url(#tip)"/>'


def draw_architecture() -> str:
  """The SVG: light boxes with dark text and gray arrows, for light and dark pages."""
  width, height = (
    8 + max(_corner(name)[axis] for name in BOXES) + size
    for axis, size in ((0, _WIDTH), (1, _HEIGHT))
  )
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    'font-family="system-ui, sans-serif" font-size="13" text-anchor="middle" fill="#1b2733">'
    '<marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0L8 4L0 8z" fill="#7d8894"/></marker>'
    f'<g fill="none" stroke="#7d8894" stroke-width="1.5">{"".join(_arrow(*a) for a in ARROWS)}</g>'
    f'{"".join(map(_box, BOXES))}</svg>\n'
  )


def _digit(path: pathlib.Path, index: int = 3) -> pathlib.Path:
  """An image of scikit-learn's digits."""
  from sklearn import datasets

  pixels = datasets.load_digits().images[index]  # pyright: ignore[reportAttributeAccessIssue]
  Image.fromarray(np.uint8(np.rint(pixels * (255 / 16)))).convert('RGB').save(path)
  return path


def photograph(command: list[str], name: str, size: str) -> None:
  """Writes a picture of the page that a command of the package writes, as Chromium shows it."""
  browsers = map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))
  with tempfile.TemporaryDirectory() as folder:
    page, picture = pathlib.Path(folder, 'page.html'), pathlib.Path(folder, 'page.png')
    subprocess.run([sys.executable, '-m', *command, f'--out={page}'], check=True)
    flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars']
    flags += [f'--window-size={size}', '--virtual-time-budget=4000', f'--screenshot={picture}']
    subprocess.run([next(filter(None, browsers)), *flags, page.as_uri()], check=True)
    with Image.open(picture) as image:
      colors = image.convert('RGB').quantize(128)
    colors.save(PICTURES / name, optimize=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('run', help='the workdir of a run, such as runs/quickstart')
  parser.add_argument('images', nargs='*', metavar='IMAGE', help='what explain.png explains')
  args = parser.parse_args()
  PICTURES.mkdir(exist_ok=True)
  (PICTURES / 'architecture.svg').write_text(draw_architecture())
  photograph(['vit_jax.report', args.run], 'report.png', '1100,1140')
  with tempfile.TemporaryDirectory() as folder:
    images = args.images or [str(_digit(pathlib.Path(folder, 'digit.png')))]
    command = ['vit_jax.explain', f'--model={args.run}/model', *images]
    photograph(command, 'explain.png', '1100,1480')


if __name__ == '__main__':
  main()
