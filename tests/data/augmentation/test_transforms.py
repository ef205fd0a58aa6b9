"""Crops, flips, shifts, resizing, jitter and erasing of one image."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import default
from tests.helpers import GOLDEN
from vit_jax.data.augmentation import image_ops, transforms
from vit_jax.data.decoding.images import LazyImage, cut, of_pixels
from vit_jax.errors import UserError

NONE = dict(default.get_config().data.augment) | dict(crop='resize', flip=False)
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


def augment(image: np.ndarray, size, how, generator) -> np.ndarray:
  return transforms.augment(of_pixels(image), size, how, generator)


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
  np.testing.assert_array_equal(image_ops.resize(image, (9, 13), antialias=False), image)


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('name', ['down', 'down_odd', 'up', 'mixed', 'gray', 'many'])
def test_resizing_is_that_of_tensorflow(name, antialias):
  with np.load(GOLDEN / 'resize.npz') as golden:
    image = golden[name]
    expected = golden[f'{name}_{"antialiased" if antialias else "plain"}'].astype(int)
  found = image_ops.resize(image, expected.shape[:2], antialias)
  assert (found.shape, found.dtype) == (expected.shape, np.uint8)
  assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize('crop', transforms.CROPS)
def test_training_images_are_antialiased_only_if_asked(crop):
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[:, ::4] = 255
  fields = dict(crop=crop, area=(1.0, 1.0))
  plain, smooth = (
    augment(stripes, (8, 8), how(**fields, antialias=antialias), rng())
    for antialias in (False, True)
  )
  assert np.abs(smooth[:, 1:-1].astype(int) - 64).max() < 8
  assert np.abs(plain.astype(int) - 128).max() <= 1  # the two middle pixels of eight


@pytest.mark.parametrize('area', [(0.05, 1.0), (0.3, 0.4)])
@pytest.mark.parametrize(('height', 'width'), [(100, 100), (120, 80)])
def test_inception_boxes_stay_in_bounds_and_ranges(height, width, area):
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
def test_inception_boxes_are_distributed_as_tensorflows(name):
  height, width = map(int, name.split('x'))
  generator = rng()
  boxes = [transforms.inception_box(height, width, (0.05, 1.0), generator) for _ in range(4000)]
  left, top, right, bottom = np.array(boxes).T
  h, w = bottom - top, right - left
  shares, steps = (h * w / (height * width), w / h, left / width, top / height), np.arange(1, 20)
  found = np.quantile(shares, steps / 20, axis=1).T
  with np.load(GOLDEN / 'inception_boxes.npz') as golden:
    assert np.abs(found - golden[name]).max() < 0.04


def test_inception_box_that_cannot_fit_is_the_whole_image():
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
  image, augmentation = random_image(40, 50), how(**fields)
  before = image.copy()
  one, again, two = (augment(image, (16, 24), augmentation, rng(seed)) for seed in (1, 1, 2))
  np.testing.assert_array_equal(one, again)
  assert np.abs(one.astype(int) - two).mean() > 1
  np.testing.assert_array_equal(image, before)


def test_augmentation_without_any_change_is_a_resize():
  image = random_image(40, 50)
  found = augment(image, (16, 24), how(), rng())
  np.testing.assert_array_equal(found, image_ops.resize(image, (16, 24), antialias=False))


def test_flips_mirror_left_and_right_half_of_the_time():
  image = random_image(8, 12)
  found, again = (
    [augment(image, (8, 12), how(flip=True), rng(i)) for i in range(200)] for _ in range(2)
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
    transforms.central_crop(image, (10, 20), 1.0), image_ops.resize(image, (10, 20), antialias=True)
  )


def test_sizes_and_places_of_central_crops_are_those_of_big_vision():
  with np.load(GOLDEN / 'central_crops.npz') as golden:
    rows = golden['rows'].tolist()
  for height, width, shorter, size, new_height, new_width, top, left in rows:
    image = np.zeros((height, width, 1), np.uint8)
    y, x = np.indices((height, width))
    image[..., 0] = 255 * ((y * 2 < height) ^ (x * 2 < width))
    resized = image_ops.resize(image, (new_height, new_width), antialias=True)
    expected = resized[top : top + size, left : left + size]
    found = transforms.central_crop(image, (size, size), size / shorter)
    np.testing.assert_array_equal(found, expected)
    central = how(crop='central', resize_small=shorter, antialias=True)
    np.testing.assert_array_equal(augment(image, (size, size), central, rng()), expected)


def test_padded_random_crops_move_by_whole_pixels():
  image, places = random_image(8, 8), set()
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), constant_values=128)
  every = {padded[y : y + 8, x : x + 8].tobytes(): (y, x) for y in range(5) for x in range(5)}
  for seed in range(200):
    found = augment(image, (8, 8), how(crop='random', pad=2), rng(seed))
    places.add(every[found.tobytes()])
    assert_example(found, (8, 8))
  assert len(places) == 25


def test_random_crops_are_cut_from_the_resized_image():
  image = random_image(30, 60)
  resized = image_ops.resize(image, (20, 40), antialias=False)
  every = {resized[y : y + 16, x : x + 16].tobytes() for y in range(5) for x in range(25)}
  random = how(crop='random', resize_small=20)
  found = {augment(image, (16, 16), random, rng(seed)).tobytes() for seed in range(50)}
  assert found <= every and len(found) > 20


@pytest.mark.parametrize('crop', ['inception', 'random', 'central'])
def test_only_what_is_needed_is_decoded(crop):
  image, boxes = random_image(1000, 40), []

  def decode(box, reduction):
    boxes.append(box)
    return cut(image, box)

  transforms.augment(LazyImage(1000, 40, decode), (16, 16), how(crop=crop), rng())
  ((left, top, right, bottom),) = boxes
  if crop == 'central':
    assert (top, bottom) == (340, 660)
  assert (right - left) * (bottom - top) <= 8 * 40 * 40 < image[..., 0].size


def test_jitter_changes_what_it_says():
  gray, color = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8, 3), np.uint8) + [40, 90, 140]
  color = color.astype(np.uint8)
  jitter = lambda image, *strengths: transforms.color_jitter(image, strengths, rng(1))  # noqa: E731
  assert 50 <= jitter(gray, 0.5, 0, 0, 0)[0, 0, 0] <= 150 != 100
  np.testing.assert_array_equal(jitter(gray, 0, 0.9, 0.9, 0.5), gray)
  turned = jitter(color, 0, 0, 0, 0.5)
  assert not np.array_equal(turned, color)
  assert (turned.min(), turned.max()) == (40, 140)  # another hue, as bright and as pale


@pytest.mark.parametrize('noise', [False, True])
def test_erasing_replaces_a_rectangle(noise):
  image, shares = np.full((40, 60, 3), 7, np.uint8), []
  for seed in range(40):
    fields = dict(erase_probability=1.0, erase_area=(0.1, 0.3), erase_noise=noise)
    found = augment(image, (40, 60), how(**fields), rng(seed))
    rows, columns = np.nonzero((found != 7).any(axis=-1))
    box = found[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    shares.append(box[..., 0].size / 2400)
    assert (len(np.unique(box)) > 100) if noise else set(box.ravel()) == {128}
    assert 0.25 < box.shape[0] / box.shape[1] < 3.8
  assert 0.09 < min(shares) < max(shares) < 0.31 and max(shares) - min(shares) > 0.1


def test_erasing_happens_as_often_as_it_should():
  image = np.full((20, 20, 3), 7, np.uint8)
  erase = how(erase_probability=0.25)
  changed = [(augment(image, (20, 20), erase, rng(i)) != 7).any() for i in range(400)]
  assert 0.17 < np.mean(changed) < 0.33


SHAPES = [(1, 1), (1, 50), (70, 3), (8, 12), (64, 64)]


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('size', [(8, 12), (16, 16)])
@pytest.mark.parametrize('fraction', [0.3, 0.875, 1.0])
def test_central_crop_always_gives_the_size(shape, size, fraction):
  assert_example(transforms.central_crop(random_image(*shape), size, fraction), size)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('size', [(8, 12), (16, 16)])
@pytest.mark.parametrize('crop', transforms.CROPS)
@pytest.mark.parametrize(('pad', 'resize_small'), [(0, 0), (3, 0), (3, 4)])
def test_augment_always_gives_the_size(shape, size, crop, pad, resize_small):
  fields = {'crop': crop, 'pad': pad, 'resize_small': resize_small}
  augmentation = transforms.Augmentation(**EVERYTHING | fields)
  for seed in range(5):
    assert_example(augment(random_image(*shape), size, augmentation, rng(seed)), size)


@pytest.mark.parametrize('channels', [1, 2, 4, 5, 200])
@pytest.mark.parametrize('crop', transforms.CROPS)
def test_any_number_of_channels(channels, crop):
  """Each is treated as if it were alone."""
  augmentation = transforms.Augmentation(
    **COLORLESS | {'crop': crop, 'jitter': (0.4, 0, 0, 0), 'erase_noise': False}
  )
  augmentation.check_channels(channels)
  image = random_image(30, 40, channels)
  for antialias in (False, True):
    found = augment(image, (16, 12), how(**vars(augmentation) | {'antialias': antialias}), rng())
    assert found.shape == (16, 12, channels)
    last = np.ascontiguousarray(image[..., -1:])
    alone = augment(last, (16, 12), how(**vars(augmentation) | {'antialias': antialias}), rng())
    np.testing.assert_array_equal(found[..., -1:], alone)
  assert transforms.central_crop(image, (8, 8), 0.9).shape == (8, 8, channels)


@pytest.mark.parametrize(
  'fields', [{'randaugment': 'timm'}, {'jitter': (0, 0, 0.1, 0)}, {'jitter': (0, 0, 0, 0.1)}]
)
def test_colors_need_three_channels(fields):
  how(**fields).check_channels(3)
  with pytest.raises(UserError, match=f'{next(iter(fields))}.* 1 channel,'):
    how(**fields).check_channels(1)


def test_an_augmentation_travels_as_json():
  sent = json.loads(json.dumps(vars(transforms.Augmentation(**EVERYTHING))))
  image = random_image(40, 50)
  one, two = (augment(image, (16, 24), how(**fields), rng(3)) for fields in (EVERYTHING, sent))
  np.testing.assert_array_equal(one, two)


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
def test_augmentations_that_cannot_be(fields, message):
  with pytest.raises(UserError, match=message):
    how(**fields)


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
  picture = of_pixels(np.repeat(disc[..., None], 3, axis=2))
  augmentation = how(**{'crop': 'central'} | fields)
  found = transforms.augment(picture, (32, 48), augmentation, rng())[..., 0] == 255
  height, width = found.any(1).sum(), found.any(0).sum()
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
def test_values_of_no_use_are_refused_in_a_sentence(fields):
  with pytest.raises(UserError, match=f'augment.{next(iter(fields))} is'):
    how(**fields)
