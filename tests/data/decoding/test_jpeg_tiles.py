"""JPEGs that are cut without decoding: the same pixels, plain files to everybody else."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from vit_jax.data.decoding import images, jpeg_tiles, turbojpeg


def draw(rng: np.random.Generator, height: int, width: int, mode: str) -> Image.Image:
  coarse = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
  return coarse.resize((width, height)).convert(mode)


def random_box(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
  left, top = int(rng.integers(width)), int(rng.integers(height))
  return left, top, int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1


@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_a_cut_has_the_pixels_of_the_whole(mode):
  rng = np.random.default_rng(0)
  smaller = 0
  for _ in range(100):
    height, width = map(int, rng.integers(1, 300, 2))
    jpeg = jpeg_tiles.encode(draw(rng, height, width, mode), 90)
    left, top, right, bottom = random_box(rng, height, width)
    part, x, y = jpeg_tiles.cut_box(jpeg, (left - 2, top - 2, right + 2, bottom + 2))
    whole, found = (simplejpeg.decode_jpeg(data, 'RGB') for data in (jpeg, part))
    assert found.size <= whole.size and len(part) <= len(jpeg)
    smaller += found.size < whole.size / 2
    np.testing.assert_array_equal(
      found[top - y : bottom - y, left - x : right - x], whole[top:bottom, left:right]
    )
  assert smaller > 20


@pytest.mark.parametrize('has_library', [True, False])
def test_pictures_are_the_same_with_and_without_the_index(has_library, monkeypatch):
  if not has_library:
    monkeypatch.setattr(turbojpeg, '_library', lambda: None)
  rng = np.random.default_rng(1)
  for _ in range(60):
    height, width = map(int, rng.integers(1, 300, 2))
    jpeg = jpeg_tiles.encode(draw(rng, height, width, 'RGB'), 90)
    picture, box = images.open_image(jpeg, 'x'), random_box(rng, height, width)
    for enough in (None, (5, 4), (30, 40)):
      found = picture.pixels(box, enough)
      with monkeypatch.context() as patch:
        patch.setattr(jpeg_tiles, 'cut_box', lambda *args: None)
        np.testing.assert_array_equal(found, picture.pixels(box, enough), strict=True)


def test_it_is_a_plain_jpeg_to_others():
  image = draw(np.random.default_rng(0), 60, 90, 'RGB')
  jpeg = jpeg_tiles.encode(image, 95)
  with Image.open(io.BytesIO(jpeg)) as opened:
    assert (opened.format, opened.size, opened.mode) == ('JPEG', (90, 60), 'RGB')
    assert np.abs(np.asarray(opened).astype(int) - np.asarray(image)).mean() < 4


def test_other_files_and_damaged_ones_are_not_cut():
  image = draw(np.random.default_rng(0), 60, 90, 'RGB')
  plain = io.BytesIO()
  image.save(plain, 'JPEG')
  assert jpeg_tiles.cut_box(plain.getvalue(), (0, 0, 9, 9)) is None
  jpeg = jpeg_tiles.encode(image, 90)
  assert jpeg_tiles.cut_box(jpeg, (0, 0, 9, 9)) is not None
  assert jpeg_tiles.cut_box(jpeg, (100, 0, 120, 9)) is None  # nothing of it is in the image
  rng, refused = np.random.default_rng(2), 0
  for _ in range(2000):
    data = bytearray(jpeg)
    data[int(rng.integers(2, 200))] ^= 1 << int(rng.integers(8))
    short = bytes(data[: int(rng.integers(200, len(data) + 1))])
    found = jpeg_tiles.cut_box(short, (30, 20, 60, 40))
    refused += found is None
  assert refused > 500  # and none raised
