"""Crops, flips, affine transformations, resizing, color jitter and erasing of one image."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers import GOLDEN
from vit_jax.config import AugmentConfig, Preprocessing, choices
from vit_jax.data.augmentation import transforms
from vit_jax.data.augmentation.preprocessing import preprocess
from vit_jax.data.augmentation.resampling import resize
from vit_jax.data.decoding.box import crop_pixels
from vit_jax.data.decoding.images import LazyImage
from vit_jax.errors import UserError

CROPS = choices(AugmentConfig.__annotations__['crop'])
NONE: dict[str, Any] = dict(crop='resize', flip=False)
EVERYTHING = NONE | dict(
  crop='inception',
  flip=True,
  shift=0.1,
  scale=0.2,
  rotate=20.0,
  randaugment='augreg',
  jitter=(0.4, 0.4, 0.4, 0.1),
  erase_probability=0.5,
)
COLORLESS = EVERYTHING | dict(randaugment='none', jitter=(0.4, 0.4, 0.0, 0.0))


def random_image(height: int, width: int, channels: int = 3) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def augment(image: np.ndarray, size, config, generator) -> np.ndarray:
  return transforms.augment(LazyImage.from_array(image), size, config, generator)


def make_config(**fields) -> AugmentConfig:
  """A config that only resizes, with other values for some fields."""
  return AugmentConfig(**{**NONE, **fields})


def central_crop(image: np.ndarray, size, fraction: float) -> np.ndarray:
  return preprocess(image, size, Preprocessing(crop_fraction=fraction))


def rng(seed: int = 0) -> np.random.Generator:
  return np.random.default_rng(seed)


class UpperBounds:
  """A generator that draws the upper bound of each range."""

  def uniform(self, low: float, high: float) -> float:
    return high


def assert_example(image: np.ndarray, size: tuple[int, int]):
  assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
  assert image.flags.c_contiguous


def test_resizing_to_the_same_size_is_the_identity():
  image = random_image(9, 13)
  np.testing.assert_array_equal(resize(image, (9, 13), antialias=False), image)


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('name', ['down', 'down_odd', 'up', 'mixed', 'gray', 'many'])
def test_resizing_equals_tensorflow(name, antialias):
  with np.load(GOLDEN / 'resize.npz') as golden:
    image = golden[name]
    expected = golden[f'{name}_{"antialiased" if antialias else "plain"}'].astype(int)
  resized = resize(image, expected.shape[:2], antialias)
  assert (resized.shape, resized.dtype) == (expected.shape, np.uint8)
  assert np.abs(resized - expected).max() <= 1


@pytest.mark.parametrize('crop', CROPS)
def test_training_images_are_antialiased_only_on_request(crop):
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[:, ::4] = 255
  fields = dict(crop=crop, area=(1.0, 1.0))
  plain, smooth = (
    augment(stripes, (8, 8), make_config(**fields, antialias=antialias), rng())
    for antialias in (False, True)
  )
  assert np.abs(smooth[:, 1:-1].astype(int) - 64).max() < 8
  assert np.abs(plain.astype(int) - 128).max() <= 1  # the two middle pixels of eight


@pytest.mark.parametrize('area', [(0.05, 1.0), (0.3, 0.4)])
@pytest.mark.parametrize(('height', 'width'), [(100, 100), (120, 80)])
def test_inception_boxes_respect_bounds_area_and_aspect_ratio(height, width, area):
  generator, boxes = rng(), []
  for _ in range(300):
    left, top, right, bottom = transforms.inception_box(height, width, area, generator)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    boxes.append(((right - left) * (bottom - top) / (height * width), left, top))
    w, h = right - left, bottom - top
    assert (w - 0.5) / h <= 4 / 3 and (w + 0.5) / h >= 3 / 4
  shares, lefts, tops = np.array(boxes).T
  assert area[0] <= shares.min() and shares.max() <= area[1]
  assert shares.max() - shares.min() > 0.7 * (area[1] - area[0])
  assert len(set(lefts)) > 20 and len(set(tops)) > 20


@pytest.mark.parametrize('name', ['375x500', '224x224', '100x32'])
def test_inception_boxes_have_the_distribution_of_tensorflow(name):
  height, width = map(int, name.split('x'))
  generator = rng()
  boxes = [transforms.inception_box(height, width, (0.05, 1.0), generator) for _ in range(4000)]
  left, top, right, bottom = np.array(boxes).T
  h, w = bottom - top, right - left
  shares, steps = (h * w / (height * width), w / h, left / width, top / height), np.arange(1, 20)
  quantiles = np.quantile(shares, steps / 20, axis=1).T
  with np.load(GOLDEN / 'inception_boxes.npz') as golden:
    assert np.abs(quantiles - golden[name]).max() < 0.04


def test_an_inception_box_that_cannot_fit_is_the_whole_image():
  assert transforms.inception_box(2, 1000, (0.9, 1.0), rng()) == (0, 0, 1000, 2)


@pytest.mark.parametrize(
  'fields',
  [
    EVERYTHING,
    {'crop': 'inception'},
    {'crop': 'random', 'resize_small': 30},
    {'crop': 'random', 'resize_small': 24, 'pad': 9},
    {'shift': 0.2},
    {'jitter': (0.5, 0.0, 0.0, 0.0)},
    {'jitter': (0.0, 0.9, 0.0, 0.0)},
    {'jitter': (0.0, 0.0, 0.9, 0.0)},
    {'jitter': (0.0, 0.0, 0.0, 0.3)},
    {'erase_probability': 1.0, 'erase_area': (0.2, 0.5)},
  ],
)
def test_augmentation_is_a_function_of_the_rng(fields):
  image, config = random_image(40, 50), make_config(**fields)
  before = image.copy()
  first, repeated, other = (augment(image, (16, 24), config, rng(seed)) for seed in (1, 1, 2))
  np.testing.assert_array_equal(first, repeated)
  assert np.abs(first.astype(int) - other).mean() > 1
  np.testing.assert_array_equal(image, before)


def test_augmentation_without_changes_is_a_resize():
  image = random_image(40, 50)
  augmented = augment(image, (16, 24), make_config(), rng())
  np.testing.assert_array_equal(augmented, resize(image, (16, 24), antialias=False))


def test_flips_mirror_left_and_right_half_of_the_time():
  image = random_image(8, 12)
  images, repeated = (
    [augment(image, (8, 12), make_config(flip=True), rng(i)) for i in range(200)] for _ in range(2)
  )
  np.testing.assert_array_equal(images, repeated)
  flipped = [np.array_equal(x, image[:, ::-1]) for x in images]
  assert all(flip or np.array_equal(x, image) for x, flip in zip(images, flipped, strict=True))
  assert 0.35 < np.mean(flipped) < 0.65


@pytest.mark.parametrize(('height', 'width'), [(8, 8), (9, 14), (15, 7)])
def test_an_affine_transformation_with_empty_ranges_is_the_identity(height, width):
  image = random_image(height, width)
  np.testing.assert_array_equal(transforms.random_affine(image, 0, 0, 0, rng()), image)


def test_a_shift_moves_the_image_and_repeats_its_border():
  image = random_image(8, 12)
  shifted = transforms.random_affine(image, 0.25, 0, 0, UpperBounds())  # 2 down, 3 to the right
  np.testing.assert_array_equal(shifted[2:, 3:], image[:-2, :-3])
  np.testing.assert_array_equal(shifted[:2, 3:], np.repeat(image[:1, :-3], 2, axis=0))
  np.testing.assert_array_equal(shifted[2:, :3], np.repeat(image[:-2, :1], 3, axis=1))


def test_rotation_is_about_the_center():
  image = random_image(9, 9)
  rotated = transforms.random_affine(image, 0, 0, 90.0, UpperBounds()).astype(int)
  assert np.abs(rotated - np.rot90(image, -1)).max() <= 1


def test_scaling_is_about_the_center():
  image = np.zeros((40, 60, 3), np.uint8)
  image[15:25, 20:40] = 255  # grows by half
  scaled = transforms.random_affine(image, 0, 0.5, 0, UpperBounds())
  rows, columns = np.nonzero(scaled[..., 0] > 127)
  assert abs(rows.min() - 12.5) <= 1 and abs(rows.max() - 26.5) <= 1
  assert abs(columns.min() - 15) <= 1 and abs(columns.max() - 44) <= 1


@pytest.mark.parametrize(
  ('shift', 'scale', 'rotate'),
  [(0.1, 0.15, 12.0), (0.0, 0.0, 45.0), (0.0, 0.0, 180.0), (0.2, 0.5, 0.0), (0.3, 0.8, 90.0)],
)
def test_affine_transformations_fill_with_pixels_of_the_border(shift, scale, rotate):
  white = np.full((16, 24, 3), 255, np.uint8)
  for seed in range(50):
    transformed = transforms.random_affine(white, shift, scale, rotate, rng(seed))
    assert transformed.min() == 255


def test_central_crop_resizes_the_shorter_side_to_256_and_crops_224():
  image = random_image(300, 400)
  resized = np.asarray(Image.fromarray(image).resize((341, 256), Image.Resampling.BILINEAR))
  cropped = central_crop(image, (224, 224), 0.875)
  assert np.abs(cropped.astype(int) - resized[16:240, 58:282]).max() <= 1


def test_central_crop_is_centered_in_both_directions():
  image = np.zeros((60, 100, 3), np.uint8)
  image[29:31, 49:51] = 255
  cropped = central_crop(image, (20, 60), 0.5).astype(float).sum(axis=-1)
  rows, columns = np.indices(cropped.shape)
  assert abs(np.average(rows, weights=cropped) - 9.5) < 0.6
  assert abs(np.average(columns, weights=cropped) - 29.5) < 0.6


def test_a_central_crop_of_everything_is_a_resize():
  image = random_image(30, 60)
  np.testing.assert_array_equal(
    central_crop(image, (10, 20), 1.0), resize(image, (10, 20), True, as_tensorflow=True)
  )


def test_central_crops_have_the_size_and_offset_of_big_vision():
  with np.load(GOLDEN / 'central_crops.npz') as golden:
    rows = golden['rows'].tolist()
  for height, width, shorter, size, new_height, new_width, top, left in rows:
    image = np.zeros((height, width, 1), np.uint8)
    y, x = np.indices((height, width))
    image[..., 0] = 255 * ((y * 2 < height) ^ (x * 2 < width))
    resized = resize(image, (new_height, new_width), True, as_tensorflow=True)
    expected = resized[top : top + size, left : left + size]
    cropped = central_crop(image, (size, size), size / shorter)
    np.testing.assert_array_equal(cropped, expected)
    central = make_config(crop='central', resize_small=shorter, antialias=True)
    expected = resize(image, (new_height, new_width), True)[top : top + size, left : left + size]
    np.testing.assert_array_equal(augment(image, (size, size), central, rng()), expected)


def test_padded_random_crops_move_by_whole_pixels():
  image, offsets = random_image(8, 8), set()
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), constant_values=128)
  crops = {padded[y : y + 8, x : x + 8].tobytes(): (y, x) for y in range(5) for x in range(5)}
  for seed in range(200):
    cropped = augment(image, (8, 8), make_config(crop='random', pad=2), rng(seed))
    offsets.add(crops[cropped.tobytes()])
    assert_example(cropped, (8, 8))
  assert len(offsets) == 25


def test_random_crops_are_parts_of_the_resized_image():
  image = random_image(30, 60)
  resized = resize(image, (20, 40), antialias=False)
  possible = {resized[y : y + 16, x : x + 16].tobytes() for y in range(5) for x in range(25)}
  config = make_config(crop='random', resize_small=20)
  crops = {augment(image, (16, 16), config, rng(seed)).tobytes() for seed in range(50)}
  assert crops <= possible and len(crops) > 20


@pytest.mark.parametrize('crop', ['inception', 'random', 'central'])
def test_only_what_is_needed_is_decoded(crop):
  image, boxes = random_image(1000, 40), []

  def decode(box, reduction):
    boxes.append(box)
    return crop_pixels(image, box)

  transforms.augment(LazyImage(1000, 40, decode), (16, 16), make_config(crop=crop), rng())
  ((left, top, right, bottom),) = boxes
  if crop == 'central':
    assert (top, bottom) == (340, 660)
  assert (right - left) * (bottom - top) <= 8 * 40 * 40 < image[..., 0].size


def test_jitter_changes_only_the_chosen_properties():
  gray, color = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8, 3), np.uint8) + [40, 90, 140]
  color = color.astype(np.uint8)
  jitter = lambda image, *strengths: transforms.color_jitter(image, strengths, rng(1))  # noqa: E731
  assert 50 <= jitter(gray, 0.5, 0, 0, 0)[0, 0, 0] <= 150 != 100
  np.testing.assert_array_equal(jitter(gray, 0, 0.9, 0.9, 0.5), gray)
  rotated = jitter(color, 0, 0, 0, 0.5)
  assert not np.array_equal(rotated, color)
  assert (rotated.min(), rotated.max()) == (40, 140)  # another hue, the same saturation


@pytest.mark.parametrize('noise', [False, True])
def test_erasing_replaces_a_rectangle(noise):
  image, shares = np.full((40, 60, 3), 7, np.uint8), []
  for seed in range(40):
    fields = dict(erase_probability=1.0, erase_area=(0.1, 0.3), erase_noise=noise)
    erased = augment(image, (40, 60), make_config(**fields), rng(seed))
    rows, columns = np.nonzero((erased != 7).any(axis=-1))
    box = erased[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    shares.append(box[..., 0].size / 2400)
    assert (len(np.unique(box)) > 100) if noise else set(box.ravel()) == {128}
    assert 0.25 < box.shape[0] / box.shape[1] < 3.8
  assert 0.09 < min(shares) < max(shares) < 0.31 and max(shares) - min(shares) > 0.1


def test_erasing_has_the_configured_probability():
  image = np.full((20, 20, 3), 7, np.uint8)
  erase = make_config(erase_probability=0.25)
  changed = [(augment(image, (20, 20), erase, rng(i)) != 7).any() for i in range(400)]
  assert 0.17 < np.mean(changed) < 0.33


SHAPES = [(1, 1), (1, 50), (70, 3), (8, 12), (64, 64)]


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('size', [(8, 12), (16, 16)])
@pytest.mark.parametrize('fraction', [0.3, 0.875, 1.0])
def test_central_crop_always_has_the_requested_size(shape, size, fraction):
  assert_example(central_crop(random_image(*shape), size, fraction), size)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('size', [(8, 12), (16, 16)])
@pytest.mark.parametrize('crop', CROPS)
@pytest.mark.parametrize(('pad', 'resize_small'), [(0, 0), (3, 0), (3, 4)])
def test_augment_always_returns_the_requested_size(shape, size, crop, pad, resize_small):
  fields = {'crop': crop, 'pad': pad, 'resize_small': resize_small}
  config = AugmentConfig(**EVERYTHING | fields)
  for seed in range(5):
    assert_example(augment(random_image(*shape), size, config, rng(seed)), size)


@pytest.mark.parametrize('channels', [1, 2, 4, 5, 200])
@pytest.mark.parametrize('crop', CROPS)
def test_channels_are_augmented_independently(channels, crop):
  config = AugmentConfig(
    **COLORLESS | {'crop': crop, 'jitter': (0.4, 0, 0, 0), 'erase_noise': False}
  )
  config.check_channels(channels)
  image = random_image(30, 40, channels)
  last_channel = np.ascontiguousarray(image[..., -1:])
  for antialias in (False, True):
    config = dataclasses.replace(config, antialias=antialias)
    augmented = augment(image, (16, 12), config, rng())
    assert augmented.shape == (16, 12, channels)
    expected = augment(last_channel, (16, 12), config, rng())
    np.testing.assert_array_equal(augmented[..., -1:], expected)
  assert central_crop(image, (8, 8), 0.9).shape == (8, 8, channels)


@pytest.mark.parametrize(
  'fields', [{'randaugment': 'timm'}, {'jitter': (0, 0, 0.1, 0)}, {'jitter': (0, 0, 0, 0.1)}]
)
def test_colors_need_three_channels(fields):
  make_config(**fields).check_channels(3)
  with pytest.raises(UserError, match=f'{next(iter(fields))} .*data.channels is 1, not 3'):
    make_config(**fields).check_channels(1)


def test_an_augment_config_survives_json():
  config, image = AugmentConfig(**EVERYTHING), random_image(40, 50)
  restored = AugmentConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
  assert restored == config
  images = (augment(image, (16, 24), each, rng(3)) for each in (config, restored))
  np.testing.assert_array_equal(*images)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'crop': 'centre'}, 'inception, resize, random, central'),
    ({'randaugment': 'auto'}, 'none, augreg, timm, timm_increasing'),
    ({'area': (0.0, 1.0)}, 'augment.area is'),
    ({'area': (0.5, 0.1)}, 'augment.area is'),
    ({'area': (0.5, 1.5)}, 'augment.area is'),
    ({'erase_area': (0.5,)}, 'erase_area'),
    ({'erase_ratio': (0.0, 1.0)}, 'erase_ratio'),
    ({'erase_probability': 1.1}, 'erase_probability'),
    ({'jitter': (0.1, 0.1, 0.1)}, 'jitter'),
    ({'jitter': (0.1, 0.1, 0.1, 0.6)}, 'jitter'),
    ({'pad': -1}, 'pad'),
    ({'scale': 1.0}, 'scale'),
  ],
)
def test_impossible_augmentations_are_rejected(fields, message):
  with pytest.raises(UserError, match=message):
    make_config(**fields)


@pytest.mark.parametrize(
  'fields',
  [
    {'resize_small': 12},
    {'pad': 9},
    {'resize_small': 4, 'pad': 3},
    {'crop': 'random', 'resize_small': 12},
  ],
  ids=str,
)
def test_crops_keep_the_aspect_ratio(fields):
  rows, columns = np.indices((80, 120))
  disc = np.where((rows - 39.5) ** 2 + (columns - 59.5) ** 2 < 30**2, 255, 0).astype(np.uint8)
  image, config = np.repeat(disc[..., None], 3, axis=2), make_config(**{'crop': 'central'} | fields)
  is_disc = augment(image, (32, 48), config, rng())[..., 0] == 255
  height, width = is_disc.any(1).sum(), is_disc.any(0).sum()
  assert height > 15 and abs(int(height) - int(width)) <= 2


@pytest.mark.parametrize(
  'fields',
  [
    {'jitter': (0.4, 'a', 0.4, 0.0)},
    {'area': ('a', 'b')},
    {'area': 0.3},
    {'pad': 100_000},
    {'shift': float('inf')},
    {'rotate': float('nan')},
  ],
  ids=str,
)
def test_malformed_values_are_rejected_in_a_sentence(fields):
  with pytest.raises(UserError, match=f'augment.{next(iter(fields))} is'):
    make_config(**fields)


def test_squashed_crops_are_parts_of_the_squashed_image():
  image = random_image(30, 50)
  config = make_config(crop='squash', resize_small=28, flip=False)
  squashed = resize(image, (28, 28), antialias=False)
  parts = {
    squashed[top : top + 24, left : left + 24].tobytes() for top in range(5) for left in range(5)
  }
  crops = {augment(image, (24, 24), config, rng(seed)).tobytes() for seed in range(200)}
  assert crops == parts  # all of them


def test_a_squashed_crop_without_a_larger_size_is_a_resize():
  image = random_image(30, 50)
  crop = augment(image, (16, 24), make_config(crop='squash', flip=False), rng())
  np.testing.assert_array_equal(crop, resize(image, (16, 24), antialias=False))
