"""The data card: what it counts, what it warns of, and the page."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.helpers import write_images
from vit_jax.data.sources import open_source
from vit_jax.errors import BadExampleError
from vit_jax.prepare import card as cards
from vit_jax.prepare import card_page
from vit_jax.prepare.duplicates import find_overlaps
from vit_jax.prepare.statistics import SplitStatistics, content_hash, examine

RNG = np.random.default_rng(0)


def image(channels: int = 3, height: int = 20, width: int = 30) -> Image.Image:
  return Image.fromarray(RNG.integers(0, 256, (height, width, channels), np.uint8).squeeze())


def content(picture: Image.Image, kind: str, **kwargs) -> bytes:
  file = io.BytesIO()
  picture.save(file, kind, **kwargs)
  return file.getvalue()


def turned() -> Image.Exif:
  exif = Image.Exif()
  exif[0x0112] = 6
  return exif


GOOD = {
  'a.jpg': (content(image(), 'JPEG'), ('JPEG', 'RGB', 30, 20), ''),
  'a.JPEG': (content(image(1), 'JPEG'), ('JPEG', 'L', 30, 20), ''),
  'cmyk.jpg': (content(image(4).convert('CMYK'), 'JPEG'), ('JPEG', 'CMYK', 30, 20), ''),
  'a.png': (content(image(4), 'PNG'), ('PNG', 'RGBA', 30, 20), ''),
  'p.jpg': (content(image(), 'PNG'), ('PNG', 'RGB', 30, 20), 'called .jpg, is PNG'),
  'deep.png': (
    content(Image.fromarray(RNG.integers(0, 65536, (20, 30), np.uint16)), 'PNG'),
    ('PNG', 'I;16', 30, 20),
    '',
  ),
  'turned.jpg': (content(image(), 'JPEG', exif=turned()), ('JPEG', 'RGB', 20, 30), 'upright'),
  'many.gif': (
    content(image(1), 'GIF', save_all=True, append_images=[image(1)]),
    ('GIF', 'P', 30, 20),
    'animated',
  ),
  'many.webp': (
    content(image(), 'WEBP', save_all=True, append_images=[image()]),
    ('WEBP', 'RGB', 30, 20),
    'animated',
  ),
}


@pytest.mark.parametrize('name', GOOD)
@pytest.mark.parametrize('decode', [True, False])
def test_facts(name, decode):
  data, expected, remark = GOOD[name]
  facts = examine(data, name, decode)
  assert (facts.format, facts.mode, facts.width, facts.height) == expected
  assert len(facts.remarks) == bool(remark) and remark in ''.join(facts.remarks)


def bomb() -> bytes:
  return content(Image.new('L', (20_000, 20_000)), 'PNG')


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: b'', 'empty'),
    (lambda: b'hello', 'not a known image format'),
    (lambda: GOOD['a.jpg'][0][:400], '(?i)truncated'),
    (lambda: GOOD['a.png'][0][:-30], '(?i)truncated|broken'),
    (bomb, '(?i)pixels'),
  ],
)
@pytest.mark.parametrize('decode', [True, False])
def test_what_cannot_be_read(make, message, decode):
  with pytest.raises(BadExampleError, match=message):
    examine(make(), 'x.jpg', decode)


def test_a_jpeg_that_decodes_in_part_is_remarked():
  data = content(image(height=100, width=100), 'JPEG')
  facts = examine(data[: len(data) // 2] + b'\xff\xd9', 'x.jpg', decode=True)
  assert 'damaged' in facts.remarks[0]


def test_tallies_of_parts_add_up():
  parts, whole = [SplitStatistics(), SplitStatistics()], SplitStatistics()
  for i, (name, (data, _, _)) in enumerate(GOOD.items()):
    facts = examine(data, name, decode=False)
    for tally in (parts[i // 5], whole):
      tally.add(facts, [i % 2], name, len(data))
  parts[0].add_unreadable('x', 'y')
  whole.add_unreadable('x', 'y')
  total = SplitStatistics()
  for part in parts:
    total.merge(SplitStatistics.from_json(json.loads(json.dumps(part.to_json()))))
  assert total == whole
  assert whole.firsts == {0: [0, 2, 4], 1: [1, 3, 5]}


def test_duplicates_within_and_across():
  def hashes(*contents: int) -> bytes:
    return b''.join(content_hash(bytes([c])) if c else bytes(16) for c in contents)

  found = find_overlaps(
    {'train': hashes(1, 2, 1, 0, 1), 'val': hashes(3, 0), 'test': hashes(4, 2, 1, 1)},
    lambda split, i: f'{split}{i}',
  )
  assert [(overlap.where, overlap.count) for overlap in found] == [
    (('train',), 2),
    (('test',), 1),
    (('train', 'test'), 3),
  ]
  assert found[0].pairs == [('train0', 'train2'), ('train2', 'train4')]
  assert sorted(found[2].pairs) == [('train0', 'test2'), ('train0', 'test3'), ('train1', 'test1')]


def test_inspect_a_folder(tmp_path):
  write_images(
    tmp_path,
    {f'{s}/{c}/{i}.png': (8 + i, 9) for s in ('train', 'test') for c in 'ab' for i in range(3)},
  )
  (tmp_path / 'train' / 'a' / 'bad\nname.png').write_bytes(b'')
  (tmp_path / 'train' / 'b' / '1.png').unlink()
  (tmp_path / 'test' / 'a' / 'leak.png').write_bytes((tmp_path / 'train/a/0.png').read_bytes())
  card = cards.inspect(str(tmp_path))
  text = cards.summary(card)
  assert 'train: 5 images' in text and '2 to 3 a class' in text
  assert '9-9 x 8-10 pixels, median 9 x 9; PNG 5; RGB 5' in text
  assert 'WARNING: 1 image of test is also in train, such as a/leak.png (train: a/0.png)' in text
  assert r'WARNING: 1 image of train cannot be read, such as a/bad\nname.png: empty' in text
  json.dumps(cards.to_json(card))


def test_inspect_open_sources():
  card = cards.inspect({split: open_source('digits', split) for split in ('train', 'test')})
  assert card.splits['train'].examples == 1437
  assert (
    cards.class_counts(card, 'test')
    == np.bincount([open_source('digits', 'test').read(i)[1] for i in range(360)]).tolist()
  )
  assert 'also in' not in cards.summary(card)


def test_the_page_holds_all_it_shows():
  found = SplitStatistics()
  for name, (data, _, _) in GOOD.items():
    found.add(examine(data, name, decode=False), [0], name, len(data))
  found.add_unreadable('<b>.jpg', 'a reason')
  card = cards.Card('my set', '/photos', ('<one>',), (), {'train': found}, [])
  page = card_page.page(card, [(0, GOOD['a.jpg'][0]), (0, GOOD['cmyk.jpg'][0])])
  assert page.count('data:image/jpeg;base64,') == 2
  assert '&lt;b&gt;.jpg' in page and '<b>.jpg' not in page and '&lt;one&gt;' in page
  assert not re.search(r'(src|href)="?https?:', page)
