"""The data card: its statistics, its warnings, and the page."""

import dataclasses
import io
import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.helpers import write_images
from vit_jax.data.sources import open_source
from vit_jax.errors import BadExampleError
from vit_jax.prepare import card as cards
from vit_jax.prepare import card_page
from vit_jax.prepare.duplicates import Overlap, find_overlaps
from vit_jax.prepare.listing import list_examples
from vit_jax.prepare.statistics import SplitStatistics, content_hash, examine

RNG = np.random.default_rng(0)


def random_image(channels: int = 3, height: int = 20, width: int = 30) -> Image.Image:
  return Image.fromarray(RNG.integers(0, 256, (height, width, channels), np.uint8).squeeze())


def encode(image: Image.Image, image_format: str, **kwargs) -> bytes:
  file = io.BytesIO()
  image.save(file, image_format, **kwargs)
  return file.getvalue()


def rotated_exif() -> Image.Exif:
  exif = Image.Exif()
  exif[0x0112] = 6
  return exif


# name -> (content, (format, mode, width, height), warning)
GOOD = {
  'a.jpg': (encode(random_image(), 'JPEG'), ('JPEG', 'RGB', 30, 20), ''),
  'a.JPEG': (encode(random_image(1), 'JPEG'), ('JPEG', 'L', 30, 20), ''),
  'cmyk.jpg': (encode(random_image(4).convert('CMYK'), 'JPEG'), ('JPEG', 'CMYK', 30, 20), ''),
  'a.png': (encode(random_image(4), 'PNG'), ('PNG', 'RGBA', 30, 20), ''),
  'p.jpg': (encode(random_image(), 'PNG'), ('PNG', 'RGB', 30, 20), 'PNG file with the suffix .jpg'),
  'deep.png': (
    encode(Image.fromarray(RNG.integers(0, 65536, (20, 30), np.uint16)), 'PNG'),
    ('PNG', 'I;16', 30, 20),
    '',
  ),
  'turned.jpg': (
    encode(random_image(), 'JPEG', exif=rotated_exif()),
    ('JPEG', 'RGB', 20, 30),
    'upright',
  ),
  'many.gif': (
    encode(random_image(1), 'GIF', save_all=True, append_images=[random_image(1)]),
    ('GIF', 'P', 30, 20),
    'animated',
  ),
  'many.webp': (
    encode(random_image(), 'WEBP', save_all=True, append_images=[random_image()]),
    ('WEBP', 'RGB', 30, 20),
    'animated',
  ),
}


@pytest.mark.parametrize('name', GOOD)
@pytest.mark.parametrize('decode', [True, False])
def test_properties_of_an_image(name, decode):
  data, expected, warning = GOOD[name]
  image = examine(data, name, decode)
  assert (image.format, image.mode, image.width, image.height) == expected
  assert len(image.warnings) == bool(warning) and warning in ''.join(image.warnings)


def decompression_bomb() -> bytes:
  return encode(Image.new('L', (20_000, 20_000)), 'PNG')


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: b'', 'empty'),
    (lambda: b'hello', 'not a known image format'),
    (lambda: GOOD['a.jpg'][0][:400], '(?i)truncated'),
    (lambda: GOOD['a.png'][0][:-30], '(?i)truncated|broken'),
    (decompression_bomb, '(?i)pixels'),
  ],
)
@pytest.mark.parametrize('decode', [True, False])
def test_an_unreadable_image_is_an_error(make, message, decode):
  with pytest.raises(BadExampleError, match=message):
    examine(make(), 'x.jpg', decode)


def test_a_partly_damaged_jpeg_is_a_warning():
  data = encode(random_image(height=100, width=100), 'JPEG')
  image = examine(data[: len(data) // 2] + b'\xff\xd9', 'x.jpg', decode=True)
  assert 'damaged' in image.warnings[0]


def test_merged_statistics_are_those_of_the_whole():
  chunks, whole = [SplitStatistics(), SplitStatistics()], SplitStatistics()
  for i, (name, (data, _, _)) in enumerate(GOOD.items()):
    properties = examine(data, name, decode=False)
    for statistics in (chunks[i // 5], whole):
      statistics.add(properties, [i % 2], name, len(data))
  chunks[0].add_unreadable('x', 'y')
  whole.add_unreadable('x', 'y')
  merged = SplitStatistics()
  for chunk in chunks:
    merged.merge(SplitStatistics.from_json(json.loads(json.dumps(chunk.to_json()))))
  assert merged == whole
  assert whole.first_examples == {0: [0, 2, 4], 1: [1, 3, 5]}


def counted(*counts: int, split: str = 'train') -> cards.Card:
  """The card of a split with so many images of each class."""
  classes = Counter(dict(enumerate(counts)))
  statistics = SplitStatistics(examples=sum(counts), classes=classes)
  names = tuple(f'class {i}' for i in range(len(counts)))
  return cards.Card('x', 'x', names, (), {split: statistics}, [])


def test_the_card_names_the_classes_and_their_sizes():
  assert 'class 0 7, class 1 9\n' in cards.summary(counted(7, 9)) + '\n'
  assert 'class 9 5, … (190 more)' in cards.summary(counted(*[5] * 200))


def test_the_card_names_classes_that_a_split_lacks():
  (warning,) = cards.list_warnings(counted(7, 0, 9, 0, split='test'))
  assert warning == '2 of 4 classes have no images in test: class 1, class 3'
  (warning,) = cards.list_warnings(counted(7, *[0] * 20))
  assert warning.startswith('20 of 21 classes') and warning.endswith('class 10, …')


def test_the_card_tells_imbalance():
  (warning,) = cards.list_warnings(counted(1, 500))
  assert 'train is imbalanced 500:1 (class 1 500, class 0 1)' in warning and '99.8%' in warning
  assert 'class_balanced' in warning
  assert not cards.list_warnings(counted(10, 99))


def test_duplicates_within_and_across_splits():
  def hashes(*contents: int) -> bytes:
    return b''.join(content_hash(bytes([c])) if c else bytes(16) for c in contents)

  overlaps = find_overlaps(
    {'train': hashes(1, 2, 1, 0, 1), 'val': hashes(3, 0), 'test': hashes(4, 2, 1, 1)},
    lambda split, i: f'{split}{i}',
  )
  assert [(overlap.splits, overlap.count) for overlap in overlaps] == [
    (('train',), 2),
    (('test',), 1),
    (('train', 'test'), 3),
  ]
  assert overlaps[0].pairs == [('train0', 'train2'), ('train2', 'train4')]
  assert sorted(overlaps[2].pairs) == [
    ('train0', 'test2'),
    ('train0', 'test3'),
    ('train1', 'test1'),
  ]


def test_inspect_a_folder(tmp_path):
  write_images(
    tmp_path,
    {f'{s}/{c}/{i}.png': (8 + i, 9) for s in ('train', 'test') for c in 'ab' for i in range(3)},
  )
  (tmp_path / 'train' / 'a' / 'bad\nname.png').write_bytes(b'')
  (tmp_path / 'train' / 'b' / '1.png').unlink()
  (tmp_path / 'test' / 'a' / 'leak.png').write_bytes((tmp_path / 'train/a/0.png').read_bytes())
  card = cards.inspect(list_examples(str(tmp_path)))
  text = cards.summary(card)
  assert 'train: 5 images' in text and '2 to 3 per class' in text
  assert '9-9 x 8-10 pixels, median 9 x 9; PNG 5; RGB 5' in text
  assert 'WARNING: 1 image of test is also in train, such as a/leak.png (train: a/0.png)' in text
  assert r'WARNING: 1 image of train cannot be read, such as a/bad\nname.png: empty' in text
  json.dumps(cards.to_json(card))


def test_inspect_open_sources():
  progress = []
  sources = {split: open_source('digits', split) for split in ('train', 'test')}
  card = cards.inspect(sources, progress.append)
  assert sum(progress) == 1797
  assert card.splits['train'].examples == 1437
  labels = [sources['test'].read(i)[1] for i in range(360)]
  assert cards.class_counts(card, 'test') == np.bincount(labels).tolist()
  assert 'also in' not in cards.summary(card)


def make_card(**fields) -> cards.Card:
  statistics = SplitStatistics()
  for name, (data, _, _) in GOOD.items():
    statistics.add(examine(data, name, decode=False), [0], name, len(data))
  card = cards.Card('my_set', '/photos', ('one', 'two'), (), {'train': statistics}, [])
  return dataclasses.replace(card, **fields)


def test_the_page_is_one_file_with_everything_it_shows():
  card = make_card()
  page = card_page.render(card, [(0, GOOD['a.jpg'][0]), (0, GOOD['cmyk.jpg'][0])])
  assert page.count('src="data:image/') == 2
  assert not re.search(r'(src|href)="?https?:', page)
  text = ' '.join(re.sub('<style>.*</style>|<[^>]*>', ' ', page, flags=re.DOTALL).split())
  for content in (
    'my_set prepared from /photos 9 train 2 classes',
    '1 of 2 classes have no images in train: two',
    '0 one train 9 1 two train 0',
    'median 30 x 20 pixels, minimum 20 x 20, maximum 30 x 30',
    'Format JPEG 4 PNG 3 GIF 1 WEBP 1 Mode RGB 4',
  ):
    assert content in text
  assert 'Duplicates' not in text and 'Unreadable' not in text


@pytest.mark.parametrize(
  ('name', 'escaped'),
  [
    ('<script>alert(1)</script>', '&lt;script&gt;alert(1)&lt;/script&gt;'),
    ('"><img src=x onerror=alert(1)>', '&#34;&gt;&lt;img src=x onerror=alert(1)&gt;'),
    ("' onload='x", '&#39; onload=&#39;x'),
    ('</style>&amp;', '&lt;/style&gt;&amp;amp;'),
    ('{{ card }}{% x %}', '{{ card }}{% x %}'),
    ('a\nb\x00\x1b[2J', r'a\nb\x00\x1b[2J'),
    ('\u202egpj.exe', r'\u202egpj.exe'),
    ('\udcff', r'\udcff'),
  ],
)
def test_hostile_names_are_harmless_on_the_page(name, escaped):
  bad = SplitStatistics()
  bad.add(dataclasses.replace(examine(GOOD['a.png'][0], '', False), mode=name), [0], name, 1)
  bad.add_unreadable(name, name)
  overlap = Overlap((name,), 1, [(name, name)])
  page = card_page.render(
    make_card(
      name=name,
      source=name,
      class_names=(name, 'two'),
      class_ids=(name, 'n2'),
      splits={name: bad},
      overlaps=[overlap],
      notes=(name,),
    ),
    [],
  )
  assert name == escaped or name not in page
  # Three of the 24 places are in warnings, where a second escape may double the backslashes.
  assert page.count(escaped) in (21, 24)
  assert page.isascii() and '\x00' not in page
  tags = set(re.findall('<(/?[a-z0-9]+)', page))
  assert not tags & {'script', 'img'} and page.count('<style>') == page.count('</style>') == 1


@pytest.mark.parametrize('decode', [True, False])
@pytest.mark.parametrize('dpi', [None, (72, 72)])  # Pillow hides errors of files without
def test_images_whose_exif_is_damaged_are_unreadable(decode, dpi):
  options = {'dpi': dpi} if dpi else {}
  data = encode(random_image(), 'JPEG', exif=rotated_exif(), **options)
  with pytest.raises(BadExampleError, match=r'^x\.jpg .*EXIF'):
    examine(data.replace(b'Exif\0\0MM', b'Exif\0\0??'), 'x.jpg', decode)


def test_an_empty_split_has_a_page():
  page = card_page.render(make_card(splits={'train': SplitStatistics()}), [])
  assert '0 images, 0.0 MB' in page
