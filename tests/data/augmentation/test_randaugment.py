"""The operations on one image, against published ones, and the policies that draw them."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from configs import augreg, default
from tests import helpers
from vit_jax.data.augmentation import image_ops as ops
from vit_jax.data.augmentation import randaugment as ra

with np.load(helpers.GOLDEN / 'augreg_ops.npz') as golden:
  GOLDEN = dict(golden)
IMAGE = GOLDEN.pop('image')
BEFORE = IMAGE.copy()


class Fixed:
  """A generator that always draws the same: the positive sign, or the negative one."""

  def __init__(self, draw: float):
    self.draw = draw

  def random(self) -> float:
    return self.draw


def rng(seed: int) -> np.random.Generator:
  return np.random.default_rng(seed)


def same(a: np.ndarray, b: np.ndarray) -> bool:
  return a.shape == b.shape and bool((a == b).all())


def name_of(op) -> str:
  return getattr(op, 'func', op).__name__.lstrip('_')


def apply(policy: str, name: str, level: float, draw: float = 0.0) -> np.ndarray:
  """One row of a table at a magnitude."""
  ((op, argument),) = (row for row in ra.POLICIES[policy] if name_of(row[0]) == name)
  return op(IMAGE, *argument(level, IMAGE, Fixed(draw)))


@pytest.mark.parametrize('name', GOLDEN)
def test_augreg_operations_are_the_published_ones(name):
  op, _, level = name.partition('-')
  # Ours turns the other way; the sign is random.
  draw = 0.9 if op == 'rotate' else 0.0
  found = apply('augreg', op, float(level or 0), draw)
  expected = GOLDEN[name].astype(int)
  most = 3 if op in ('color', 'sharpness') else 0  # a rounding, magnified up to 3.7 times
  assert np.abs(found - expected).max() <= most
  assert np.abs(found - expected).mean() < 0.6


PILLOW = {
  'autocontrast': (ImageOps.autocontrast, 5),
  'equalize': (ImageOps.equalize, 5),
  'invert': (ImageOps.invert, 5),
  'posterize': (lambda x: ImageOps.posterize(x, 2), 6),
  'solarize': (lambda x: ImageOps.solarize(x, 128), 5),
  'color': (lambda x: ImageEnhance.Color(x).enhance(1.54), 8),
  'contrast': (lambda x: ImageEnhance.Contrast(x).enhance(1.54), 8),
  'brightness': (lambda x: ImageEnhance.Brightness(x).enhance(1.54), 8),
  'sharpness': (lambda x: ImageEnhance.Sharpness(x).enhance(1.54), 8),
  'rotate': (lambda x: x.rotate(-15, Image.Resampling.BILINEAR, fillcolor=(128,) * 3), 5),
  'translate_x': (
    lambda x: x.transform(
      x.size,
      Image.Transform.AFFINE,
      (1, 0, 0.225 * x.width, 0, 1, 0),
      Image.Resampling.BILINEAR,
      fillcolor=(128,) * 3,
    ),
    5,
  ),
  'translate_y': (
    lambda x: x.transform(
      x.size,
      Image.Transform.AFFINE,
      (1, 0, 0, 0, 1, 0.225 * x.height),
      Image.Resampling.BILINEAR,
      fillcolor=(128,) * 3,
    ),
    5,
  ),
}


@pytest.mark.parametrize('name', PILLOW)
def test_timm_operations_are_pillows(name):
  function, level = PILLOW[name]
  expected = np.asarray(function(Image.fromarray(IMAGE))).astype(int)
  found = apply('timm', name, level)
  inside = np.abs(found - expected)[2:-2, 2:-2]  # at borders OpenCV blends with the gray
  if name in ('rotate', 'translate_x', 'translate_y'):
    assert np.quantile(inside, 0.97) <= 1
  else:
    assert inside.max() <= 1


def test_increasing_operations_grow_with_the_magnitude():
  def changes(name, level):
    return np.abs(apply('timm_increasing', name, level).astype(int) - IMAGE).mean()

  for name in ('posterize', 'solarize', 'color', 'contrast', 'brightness', 'sharpness'):
    weak, medium, strong = (changes(name, level) for level in (0, 5, 10))
    assert weak <= medium < strong
    if name != 'posterize':  # keeps four bits at least
      assert weak < 1


def test_arguments_go_either_way():
  for name in ('rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y'):
    assert not same(apply('augreg', name, 3, 0.0), apply('augreg', name, 3, 0.9))


def test_cutout_is_a_square_around_its_centre():
  found = ops.cutout(IMAGE, 5, 0.5, 0.01)
  expected = IMAGE.copy()
  expected[15:25, :5] = 128
  assert same(found, expected)


def test_a_third_of_the_colour_circle_leads_from_red_to_green():
  red = np.zeros((4, 4, 3), np.uint8) + np.uint8([200, 0, 0])
  for turns, expected in ((1 / 3, [0, 200, 0]), (-1 / 3, [0, 0, 200]), (0.5, [0, 200, 200])):
    assert np.abs(ops.hue(red, turns).astype(int) - expected).max() <= 5


@pytest.mark.parametrize('policy', ra.POLICIES)
def test_every_operation_of_a_policy_comes_equally_often(policy, monkeypatch):
  counts, table = {}, ra.POLICIES[policy]

  def counting(i):
    def op(image, *arguments):
      counts[i] = counts.get(i, 0) + 1
      return image

    return op

  rows = tuple((counting(i), argument) for i, (_, argument) in enumerate(table))
  monkeypatch.setitem(ra.POLICIES, policy, rows)
  generator = rng(0)
  for _ in range(1500):
    ra.randaugment(IMAGE, policy, 2, 9, 0.5, generator)
  applied = 3000 * (1.0 if policy == 'augreg' else 0.5)
  assert 0.93 < sum(counts.values()) / applied < 1.07
  assert sorted(counts) == list(range(len(table)))
  assert max(counts.values()) < 2.2 * min(counts.values())


def test_timm_magnitudes_are_normal_and_cut_at_ten(monkeypatch):
  levels = []
  row = (lambda image, level: image, lambda level, *_: (levels.append(level) or level,))
  monkeypatch.setitem(ra.POLICIES, 'timm', (row,))
  generator = rng(0)
  for magnitude, std in ((5, 0.5), (10, 1.0)):
    levels.clear()
    for _ in range(600):
      ra.randaugment(IMAGE, 'timm', 2, magnitude, std, generator)
    if magnitude == 5:
      assert abs(np.mean(levels) - 5) < 0.1 and abs(np.std(levels) - 0.5) < 0.1
  assert max(levels) == 10 and 0.4 < np.mean(np.array(levels) == 10) < 0.6


@pytest.mark.parametrize('policy', ra.POLICIES)
def test_randaugment_is_a_function_of_image_and_rng(policy):
  results = set()
  for seed in range(60):
    one, again = (ra.randaugment(IMAGE, policy, 2, 9, 0.5, rng(seed)) for _ in range(2))
    assert same(one, again) and (one.shape, one.dtype) == (IMAGE.shape, np.uint8)
    results.add(one.tobytes())
  assert len(results) > 35
  assert same(IMAGE, BEFORE)


def test_no_layers_change_nothing():
  assert same(ra.randaugment(IMAGE, 'augreg', 0, 9, 0, rng(0)), IMAGE)


@pytest.mark.parametrize('preset', augreg.PRESETS)
def test_presets_go_into_any_config(preset):
  config = augreg.apply(default.get_config(), preset)
  layers, magnitude, alpha = augreg.PRESETS[preset]
  found = config.data.augment
  assert found.randaugment == ('none' if preset == 'none' else 'augreg')
  assert (found.randaugment_layers, found.randaugment_magnitude) == (layers, magnitude)
  assert config.mixup_alpha == alpha


@pytest.mark.parametrize(
  ('argument', 'expected'),
  [
    ('b16', (1_039_828, 0.1, 15, 0.2, 21_843)),
    ('s16', (1_039_828, 0.03, 0, 0.0, 21_843)),
    ('b16,best,imagenet', (93_835, 0.1, 15, 0.5, 1000)),
    ('l16,strong2,imagenet', (93_835, 0.1, 20, 0.8, 1000)),
  ],
)
def test_the_augreg_recipe(argument, expected):
  config = augreg.get_config(argument)
  assert expected == (
    config.total_steps,
    config.optimizer.weight_decay,
    config.data.augment.randaugment_magnitude,
    config.mixup_alpha,
    config.data.num_classes,
  )


@pytest.mark.parametrize('argument', ['b99', 'b16,loud', 'b16,best,jft', 'b16,best,imagenet,x'])
def test_recipes_that_are_not_there(argument):
  with pytest.raises(ValueError):
    augreg.get_config(argument)
