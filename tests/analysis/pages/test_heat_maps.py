"""The pictures of a page."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vit_jax.analysis.pages import heat_maps


def decode(uri: str) -> Image.Image:
  header, data = uri.split(',')
  image = Image.open(io.BytesIO(base64.b64decode(data)))
  assert header == f'data:image/{image.format.lower()};base64'
  return image


def luminance(color: np.ndarray) -> float:
  return color[..., :3] @ np.array([0.2126, 0.7152, 0.0722])


def test_colors_get_brighter_and_more_opaque():
  ramp = heat_maps.color_ramp().astype(float)
  assert ramp.shape == (256, 4)
  assert (np.diff(luminance(ramp)) > -0.5).all() and (np.diff(ramp[:, 3]) >= 0).all()
  assert ramp[0, 3] == 0 and 150 < ramp[-1, 3] < 255  # the image can be seen below


def test_small_images_are_stored_exactly_and_large_ones_small():
  levels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
  np.testing.assert_array_equal(decode(heat_maps.image_uri(levels / 127.5 - 1)), levels)
  large = decode(heat_maps.image_uri(np.zeros((100, 80, 3))))
  assert (large.format, large.size) == ('JPEG', (80, 100))


@pytest.mark.parametrize('channels', [1, 4])
def test_images_of_other_channels_are_gray(channels):
  image = decode(heat_maps.image_uri(np.full((8, 8, channels), 1.0)))
  assert (image.mode, image.getpixel((0, 0))) == ('L', 255)


def test_an_overlay_has_a_pixel_for_each_patch():
  overlay = np.asarray(decode(heat_maps.overlay_uri(np.array([[0, 0.5, 1]]))))
  np.testing.assert_array_equal(overlay[0], heat_maps.color_ramp()[[0, 128, 255]])


def test_zero_in_a_filter_is_gray():
  picture = np.asarray(decode(heat_maps.filter_uri(np.array([[[0.0, 0.1, -0.1]] * 4] * 4))))
  np.testing.assert_array_equal(picture[0, 0], [128, 255, 0])


@pytest.mark.parametrize(('grid', 'step'), [((3, 4), 1), ((16, 16), 1), ((20, 33), 3)])
def test_similarities_are_tiles(grid, step):
  similarity = np.random.default_rng(0).uniform(-1, 1, (*grid, *grid))
  uri, found = heat_maps.similarity_uri(similarity)
  picture = np.asarray(decode(uri))
  assert found == step
  middle = step // 2
  expected = heat_maps.color_ramp()[
    np.rint((similarity[middle + step, middle] + 1) * 127.5).astype(int)
  ]
  tile = picture[grid[0] + 1 : 2 * grid[0] + 1, : grid[1]]
  np.testing.assert_array_equal(tile[..., :3], expected[..., :3])
  assert (tile[..., 3] == 255).all()
