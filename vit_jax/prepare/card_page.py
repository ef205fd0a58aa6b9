"""The data card as a page that a person likes to look at, in one file."""

import base64
import html
import io
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from vit_jax.data.decoding.images import decode_image
from vit_jax.prepare.card import Card, class_counts, spread, warnings
from vit_jax.prepare.examples import shown
from vit_jax.prepare.statistics import SplitStatistics

MOST_CLASSES = 1000  # that are shown with pictures
_SIDE = 96
_BARS = 12

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2025; --soft: #666d78; --paper: #fff; --line: #e3e6ea;
  --bar: #3b6fd4; --warn: #fff3d6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa3af; --paper: #15171a;
  --line: #2c3036; --bar: #7aa2f0; --warn: #3d3215; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { margin: 0 } h2 { margin: 2rem 0 .5rem; font-size: 1.15rem }
.soft { color: var(--soft) } .warn { background: var(--warn); padding: .5rem .8rem;
  border-radius: .5rem; margin: .4rem 0 }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0 }
.tile { border: 1px solid var(--line); border-radius: .6rem; padding: .6rem 1rem }
.tile b { display: block; font-size: 1.5rem }
.row { display: grid; grid-template-columns: 9rem 1fr 5rem; gap: .6rem; align-items: center;
  font-size: .9rem } .row span:last-child { text-align: right }
.bar { background: var(--bar); height: .7rem; border-radius: .2rem; min-width: 1px }
.classes { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr));
  gap: .8rem } .class { border-top: 1px solid var(--line); padding-top: .4rem }
.class img { height: 72px; border-radius: .3rem; margin-right: .3rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
td, th { text-align: left; padding: .25rem .5rem .25rem 0; border-bottom: 1px solid var(--line) }
@media (max-width: 30rem) { .row { grid-template-columns: 6rem 1fr 4rem } }
"""


def _text(text: Any) -> str:
  return html.escape(shown(str(text)))


def _thumbnail(data: bytes) -> str:
  image = Image.fromarray(decode_image(data, 'a thumbnail'))
  image.thumbnail((_SIDE * 2, _SIDE))
  file = io.BytesIO()
  image.save(file, 'JPEG', quality=70)
  return base64.b64encode(file.getvalue()).decode()


def _bars(counts: Mapping[str, int]) -> str:
  most = max(counts.values(), default=1) or 1
  return ''.join(
    f'<div class="row"><span>{_text(name)}</span>'
    f'<div><div class="bar" style="width:{100 * count / most:.1f}%"></div></div>'
    f'<span>{count:,}</span></div>'
    for name, count in counts.items()
  )


def _histogram(counts: Mapping[int, int]) -> dict[str, int]:
  """A dozen ranges of equal width at most."""
  least, _, most = spread(counts)
  step = max(1, -(-(most - least + 1) // _BARS))
  bars = dict.fromkeys(range((most - least) // step + 1), 0)
  for value, count in counts.items():
    bars[(value - least) // step] += count
  return {
    f'{least + i * step}' + (f'-{least + (i + 1) * step - 1}' if step > 1 else ''): count
    for i, count in bars.items()
  }


def _split(name: str, found: SplitStatistics) -> str:
  width, height = spread(found.widths), spread(found.heights)
  return (
    f'<h2>{_text(name)}</h2><p>{found.examples:,} images, {found.bytes / 1e6:,.1f} MB; '
    f'median {width[1]} x {height[1]} pixels, least {width[0]} x {height[0]}, '
    f'most {width[2]} x {height[2]}</p>'
    f'<h3 class="soft">Width</h3>{_bars(_histogram(found.widths))}'
    f'<h3 class="soft">Height</h3>{_bars(_histogram(found.heights))}'
    f'<h3 class="soft">Format</h3>{_bars(dict(found.formats.most_common()))}'
    f'<h3 class="soft">Mode</h3>{_bars(dict(found.modes.most_common()))}'
  )


def _unreadable(card: Card) -> str:
  rows = ''.join(
    f'<tr><td>{_text(split)}</td><td>{_text(name)}</td><td>{_text(reason)}</td></tr>'
    for split, found in card.splits.items()
    for name, reason in found.reasons
  )
  head = '<tr><th>split</th><th>file</th><th>reason</th></tr>'
  return f'<h2>Files left out</h2><table>{head}{rows}</table>' if rows else ''


def _duplicates(card: Card) -> str:
  rows = ''.join(
    f'<tr><td>{_text(" and ".join(overlap.where))}</td><td>{_text(second)}</td>'
    f'<td>{_text(first)}</td></tr>'
    for overlap in card.overlaps
    for first, second in overlap.pairs
  )
  head = '<tr><th>split</th><th>file</th><th>the same as</th></tr>'
  return f'<h2>The same content twice</h2><table>{head}{rows}</table>' if rows else ''


def _classes(card: Card, images: Mapping[int, list[str]]) -> str:
  counts = {split: class_counts(card, split) for split in card.splits}
  cells = ''
  for label, name in enumerate(card.class_names):
    numbers = ', '.join(f'{split} {each[label]:,}' for split, each in counts.items())
    synset = f' <span class="soft">{card.class_ids[label]}</span>' if card.class_ids else ''
    pictures = ''.join(
      f'<img loading="lazy" alt="" src="data:image/jpeg;base64,{image}">'
      for image in images.get(label, ())
    )
    cells += (
      f'<div class="class"><b>{label}</b> {_text(name)}{synset}'
      f'<div class="soft">{numbers}</div>{pictures}</div>'
    )
  return f'<h2>Classes</h2><div class="classes">{cells}</div>'


def page(card: Card, images: Iterable[tuple[int, bytes]]) -> str:
  """The page.

  Args:
    card: what it tells.
    images: (class, image file) of a few images.
  """
  shots: dict[int, list[str]] = {}
  few = len(card.class_names) > 100
  for label, data in images:
    known = shots.setdefault(label, [])
    if not (known and few):
      known.append(_thumbnail(data))
  tiles = ''.join(
    f'<div class="tile"><b>{number}</b>{what}</div>'
    for number, what in [
      *((f'{found.examples:,}', _text(split)) for split, found in card.splits.items()),
      (f'{len(card.class_names):,}', 'classes'),
      (f'{sum(found.bytes for found in card.splits.values()) / 1e6:,.1f} MB', 'of images'),
    ]
  )
  warned = ''.join(f'<div class="warn">{_text(warning)}</div>' for warning in warnings(card))
  splits = ''.join(_split(name, found) for name, found in card.splits.items())
  return (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{_text(card.name)}</title><style>{_STYLE}</style>'
    f'<h1>{_text(card.name)}</h1><div class="soft">made of {_text(card.source)}</div>'
    f'<div class="tiles">{tiles}</div>{warned}{_classes(card, shots)}{splits}'
    f'{_duplicates(card)}{_unreadable(card)}</html>\n'
  )
