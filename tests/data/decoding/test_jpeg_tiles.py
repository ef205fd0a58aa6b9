"""JPEGs that are cropped without decoding: the same pixels, ordinary files to other readers."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from vit_jax.data.decoding import images, jpeg_tiles, turbojpeg
from vit_jax.data.decoding.box import Box, crop_pixels


def random_image(rng: np.random.Generator, height: int, width: int, mode: str) -> Image.Image:
  coarse = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
  return coarse.resize((width, height)).convert(mode)


def random_box(rng: np.random.Generator, height: int, width: int) -> Box:
  left, top = int(rng.integers(width)), int(rng.integers(height))
  return Box(left, top, int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1)


@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_a_crop_has_the_pixels_of_the_whole(mode):
  rng = np.random.default_rng(0)
  smaller = 0
  for _ in range(100):
    height, width = map(int, rng.integers(1, 300, 2))
    jpeg = jpeg_tiles.encode(random_image(rng, height, width, mode), 90)
    box = random_box(rng, height, width)
    cropped, x, y = jpeg_tiles.crop(jpeg, box.padded(2))
    whole, tiles = (simplejpeg.decode_jpeg(data, 'RGB') for data in (jpeg, cropped))
    assert tiles.size <= whole.size and len(cropped) <= len(jpeg)
    smaller += tiles.size < whole.size / 2
    np.testing.assert_array_equal(crop_pixels(tiles, box.shifted(-x, -y)), crop_pixels(whole, box))
  assert smaller > 20


@pytest.mark.parametrize('has_library', [True, False])
def test_pixels_are_the_same_with_and_without_the_index(has_library, monkeypatch):
  if not has_library:
    monkeypatch.setattr(turbojpeg, '_library', lambda: None)
  rng = np.random.default_rng(1)
  for _ in range(60):
    height, width = map(int, rng.integers(1, 300, 2))
    jpeg = jpeg_tiles.encode(random_image(rng, height, width, 'RGB'), 90)
    image, box = images.open_image(jpeg, 'x'), random_box(rng, height, width)
    for min_size in (None, (5, 4), (30, 40)):
      pixels = image.pixels(box, min_size)
      with monkeypatch.context() as patch:
        patch.setattr(jpeg_tiles, 'crop', lambda *args: None)
        np.testing.assert_array_equal(pixels, image.pixels(box, min_size), strict=True)


def test_other_readers_see_an_ordinary_jpeg():
  image = random_image(np.random.default_rng(0), 60, 90, 'RGB')
  jpeg = jpeg_tiles.encode(image, 95)
  with Image.open(io.BytesIO(jpeg)) as opened:
    assert (opened.format, opened.size, opened.mode) == ('JPEG', (90, 60), 'RGB')
    assert np.abs(np.asarray(opened).astype(int) - np.asarray(image)).mean() < 4


def test_plain_and_damaged_files_are_not_cropped():
  image = random_image(np.random.default_rng(0), 60, 90, 'RGB')
  plain = io.BytesIO()
  image.save(plain, 'JPEG')
  box = Box(0, 0, 9, 9)
  assert jpeg_tiles.crop(plain.getvalue(), box) is None
  jpeg = jpeg_tiles.encode(image, 90)
  assert jpeg_tiles.crop(jpeg, box) is not None
  assert jpeg_tiles.crop(jpeg, box.shifted(100, 0)) is None  # outside of the image
  rng, rejected = np.random.default_rng(2), 0
  for _ in range(2000):
    data = bytearray(jpeg)
    data[int(rng.integers(2, 200))] ^= 1 << int(rng.integers(8))
    truncated = bytes(data[: int(rng.integers(200, len(data) + 1))])
    rejected += jpeg_tiles.crop(truncated, Box(30, 20, 60, 40)) is None
  assert rejected > 500  # and none raised
