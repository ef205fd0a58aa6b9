"""Crops, flips, shifts and resizing of one image."""

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import transforms
from vit_jax.errors import UserError

NONE = dict(crop='resize', area=(0.05, 1.0), flip=False, shift=0.0, scale=0.0, rotate=0.0)
EVERYTHING = NONE | dict(crop='inception', flip=True, shift=0.1, scale=0.2, rotate=20.0)


def random_image(height: int, width: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def how(**fields) -> transforms.Augmentation:
  return transforms.Augmentation(**{**NONE, **fields})


def rng(seed: int = 0) -> np.random.Generator:
  return np.random.default_rng(seed)


class Highest:
  """Draws the largest number of each range."""

  def uniform(self, low: float, high: float) -> float:
    return high


def assert_example(image: np.ndarray, size: tuple[int, int]):
  assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
  assert image.flags.c_contiguous


def test_resizing_to_the_same_size_changes_nothing():
  image = random_image(9, 13)
  np.testing.assert_array_equal(transforms.resize(image, (9, 13)), image)


def test_resizing_a_box_to_its_own_size_cuts_it_out():
  image = random_image(20, 30)
  found = transforms.resize(image, (6, 10), box=(5, 7, 15, 13))
  np.testing.assert_array_equal(found, image[7:13, 5:15])


def test_resizing_is_antialiased():
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[:, ::2] = 255
  middle = transforms.resize(stripes, (8, 8))[:, 1:-1].astype(int)
  assert np.abs(middle - 127.5).max() < 4


@pytest.mark.parametrize('area', [(0.05, 1.0), (0.3, 0.4)])
@pytest.mark.parametrize(('height', 'width'), [(100, 100), (120, 80)])
def test_inception_boxes_stay_in_bounds_and_ranges(height, width, area):
  generator, boxes = rng(), []
  for _ in range(300):
    left, top, right, bottom = transforms.inception_box(height, width, area, generator)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    boxes.append(((right - left) * (bottom - top) / (height * width), left, top))
    w, h = right - left, bottom - top
    assert (w - 0.5) / (h + 0.5) <= 4 / 3 and (w + 0.5) / (h - 0.5) >= 3 / 4
  shares, lefts, tops = np.array(boxes).T
  assert area[0] - 0.02 <= shares.min() and shares.max() <= area[1] + 0.02
  assert shares.max() - shares.min() > 0.7 * (area[1] - area[0])
  assert len(set(lefts)) > 20 and len(set(tops)) > 20


def test_inception_box_that_cannot_fit_is_the_whole_image():
  assert transforms.inception_box(2, 1000, (0.9, 1.0), rng()) == (0, 0, 1000, 2)


@pytest.mark.parametrize('fields', [EVERYTHING, {'crop': 'inception'}, {'shift': 0.2}])
def test_augmentation_is_a_function_of_the_rng(fields):
  image, augmentation = random_image(40, 50), how(**fields)
  before = image.copy()
  one, again, two = (
      transforms.augment(image, (16, 24), augmentation, rng(seed)) for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(one, again)
  assert np.abs(one.astype(int) - two).mean() > 1
  np.testing.assert_array_equal(image, before)


def test_augmentation_without_any_change_is_a_resize():
  image = random_image(40, 50)
  found = transforms.augment(image, (16, 24), how(), rng())
  np.testing.assert_array_equal(found, transforms.resize(image, (16, 24)))


def test_flips_mirror_left_and_right_half_of_the_time():
  image = random_image(8, 12)
  found, again = (
      [transforms.augment(image, (8, 12), how(flip=True), rng(i)) for i in range(200)]
      for _ in range(2)
  )
  np.testing.assert_array_equal(found, again)
  flipped = [np.array_equal(x, image[:, ::-1]) for x in found]
  assert all(flip or np.array_equal(x, image) for x, flip in zip(found, flipped, strict=True))
  assert 0.35 < np.mean(flipped) < 0.65


@pytest.mark.parametrize(('height', 'width'), [(8, 8), (9, 14), (15, 7)])
def test_affine_with_empty_ranges_is_the_identity(height, width):
  image = random_image(height, width)
  np.testing.assert_array_equal(transforms.random_affine(image, 0, 0, 0, rng()), image)


def test_affine_shift_moves_the_image_and_repeats_its_border():
  image = random_image(8, 12)
  found = transforms.random_affine(image, 0.25, 0, 0, Highest())  # 2 down, 3 to the right
  np.testing.assert_array_equal(found[2:, 3:], image[:-2, :-3])
  np.testing.assert_array_equal(found[:2, 3:], np.repeat(image[:1, :-3], 2, axis=0))
  np.testing.assert_array_equal(found[2:, :3], np.repeat(image[:-2, :1], 3, axis=1))


def test_affine_rotation_is_about_the_centre():
  image = random_image(9, 9)
  found = transforms.random_affine(image, 0, 0, 90.0, Highest()).astype(int)
  assert np.abs(found - np.rot90(image, -1)).max() <= 1


def test_affine_scale_is_about_the_centre():
  image = np.zeros((40, 60, 3), np.uint8)
  image[15:25, 20:40] = 255  # grows by half
  found = transforms.random_affine(image, 0, 0.5, 0, Highest())
  rows, columns = np.nonzero(found[..., 0] > 127)
  assert abs(rows.min() - 12.5) <= 1 and abs(rows.max() - 26.5) <= 1
  assert abs(columns.min() - 15) <= 1 and abs(columns.max() - 44) <= 1


@pytest.mark.parametrize(
    ('shift', 'scale', 'rotate'),
    [(0.1, 0.15, 12.0), (0.0, 0.0, 45.0), (0.0, 0.0, 180.0), (0.2, 0.5, 0.0), (0.3, 0.8, 90.0)],
)
def test_affine_brings_in_nothing_from_beyond_the_border(shift, scale, rotate):
  white = np.full((16, 24, 3), 255, np.uint8)
  for seed in range(50):
    found = transforms.random_affine(white, shift, scale, rotate, rng(seed))
    assert found.min() == 255


def test_central_crop_resizes_the_shorter_side_to_256_and_cuts_224():
  image = random_image(300, 400)
  resized = np.asarray(Image.fromarray(image).resize((341, 256), Image.Resampling.BILINEAR))
  found = transforms.central_crop(image, (224, 224), 0.875)
  np.testing.assert_array_equal(found, resized[16:240, 58:282])


def test_central_crop_keeps_the_centre_in_both_directions():
  image = np.zeros((60, 100, 3), np.uint8)
  image[29:31, 49:51] = 255
  found = transforms.central_crop(image, (20, 60), 0.5).astype(float).sum(axis=-1)
  rows, columns = np.indices(found.shape)
  assert abs(np.average(rows, weights=found) - 9.5) < 0.6
  assert abs(np.average(columns, weights=found) - 29.5) < 0.6


def test_a_whole_central_crop_of_the_same_shape_is_a_resize():
  image = random_image(30, 60)
  np.testing.assert_array_equal(
      transforms.central_crop(image, (10, 20), 1.0), transforms.resize(image, (10, 20))
  )


SHAPES = [(1, 1), (1, 50), (70, 3), (8, 12), (64, 64)]


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('size', [(8, 12), (16, 16)])
@pytest.mark.parametrize('fraction', [0.3, 0.875, 1.0])
def test_central_crop_always_gives_the_size(shape, size, fraction):
  assert_example(transforms.central_crop(random_image(*shape), size, fraction), size)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('size', [(8, 12), (16, 16)])
@pytest.mark.parametrize('crop', ['inception', 'resize'])
def test_augment_always_gives_the_size(shape, size, crop):
  augmentation = transforms.Augmentation(**EVERYTHING | {'crop': crop})
  for seed in range(5):
    found = transforms.augment(random_image(*shape), size, augmentation, rng(seed))
    assert_example(found, size)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'crop': 'centre'}, 'inception, resize'),
        ({'area': (0.0, 1.0)}, 'area'),
        ({'area': (0.5, 0.1)}, 'area'),
        ({'area': (0.5, 1.5)}, 'area'),
    ],
)
def test_augmentations_that_cannot_be(fields, message):
  with pytest.raises(UserError, match=message):
    how(**fields)
