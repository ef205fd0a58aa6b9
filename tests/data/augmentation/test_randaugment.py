"""The operations of RandAugment against published implementations, and its policies."""

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


class ConstantRandom:
  """A generator that always draws the same number: below 0.5 a positive sign, else a negative."""

  def __init__(self, number: float):
    self.number = number

  def random(self) -> float:
    return self.number


def rng(seed: int) -> np.random.Generator:
  return np.random.default_rng(seed)


def is_same(a: np.ndarray, b: np.ndarray) -> bool:
  return a.shape == b.shape and bool((a == b).all())


def name_of(op) -> str:
  return getattr(op, 'func', op).__name__.lstrip('_')


def apply(policy: str, name: str, magnitude: float, random: float = 0.0) -> np.ndarray:
  """Applies one operation of a policy."""
  ((op, draw_arguments),) = (row for row in ra.POLICIES[policy] if name_of(row[0]) == name)
  return op(IMAGE, *draw_arguments(magnitude, IMAGE, ConstantRandom(random)))


@pytest.mark.parametrize('name', GOLDEN)
def test_augreg_operations_equal_the_published_ones(name):
  op, _, magnitude = name.partition('-')
  # Ours rotates the other way; the sign is random.
  random = 0.9 if op == 'rotate' else 0.0
  actual = apply('augreg', op, float(magnitude or 0), random)
  expected = GOLDEN[name].astype(int)
  tolerance = 3 if op in ('color', 'sharpness') else 0  # rounding, magnified up to 3.7 times
  assert np.abs(actual - expected).max() <= tolerance
  assert np.abs(actual - expected).mean() < 0.6


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
def test_timm_operations_equal_those_of_pillow(name):
  function, magnitude = PILLOW[name]
  expected = np.asarray(function(Image.fromarray(IMAGE))).astype(int)
  actual = apply('timm', name, magnitude)
  inside = np.abs(actual - expected)[2:-2, 2:-2]  # OpenCV blends the border with the gray
  if name in ('rotate', 'translate_x', 'translate_y'):
    assert np.quantile(inside, 0.97) <= 1
  else:
    assert inside.max() <= 1


def test_increasing_operations_grow_with_the_magnitude():
  def changes(name, magnitude):
    return np.abs(apply('timm_increasing', name, magnitude).astype(int) - IMAGE).mean()

  for name in ('posterize', 'solarize', 'color', 'contrast', 'brightness', 'sharpness'):
    weak, medium, strong = (changes(name, magnitude) for magnitude in (0, 5, 10))
    assert weak <= medium < strong
    if name != 'posterize':  # keeps four bits at least
      assert weak < 1


def test_geometric_arguments_have_either_sign():
  for name in ('rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y'):
    assert not is_same(apply('augreg', name, 3, 0.0), apply('augreg', name, 3, 0.9))


def test_cutout_is_a_square_around_its_center():
  filled = ops.cutout(IMAGE, 5, 0.5, 0.01)
  expected = IMAGE.copy()
  expected[15:25, :5] = 128
  assert is_same(filled, expected)


def test_a_third_of_the_color_wheel_leads_from_red_to_green():
  red = np.zeros((4, 4, 3), np.uint8) + np.uint8([200, 0, 0])
  for turns, expected in ((1 / 3, [0, 200, 0]), (-1 / 3, [0, 0, 200]), (0.5, [0, 200, 200])):
    assert np.abs(ops.hue(red, turns).astype(int) - expected).max() <= 5


@pytest.mark.parametrize('policy', ra.POLICIES)
def test_every_operation_of_a_policy_is_equally_frequent(policy, monkeypatch):
  counts, table = {}, ra.POLICIES[policy]

  def counting(i):
    def op(image, *arguments):
      counts[i] = counts.get(i, 0) + 1
      return image

    return op

  rows = tuple((counting(i), draw_arguments) for i, (_, draw_arguments) in enumerate(table))
  monkeypatch.setitem(ra.POLICIES, policy, rows)
  generator = rng(0)
  for _ in range(1500):
    ra.randaugment(IMAGE, policy, 2, 9, 0.5, generator)
  applied = 3000 * (1.0 if policy == 'augreg' else 0.5)
  assert 0.93 < sum(counts.values()) / applied < 1.07
  assert sorted(counts) == list(range(len(table)))
  assert max(counts.values()) < 2.2 * min(counts.values())


def test_timm_magnitudes_are_normal_and_clipped_at_ten(monkeypatch):
  magnitudes = []
  row = (lambda image, x: image, lambda x, *_: (magnitudes.append(x) or x,))
  monkeypatch.setitem(ra.POLICIES, 'timm', (row,))
  generator = rng(0)
  for magnitude, std in ((5, 0.5), (10, 1.0)):
    magnitudes.clear()
    for _ in range(600):
      ra.randaugment(IMAGE, 'timm', 2, magnitude, std, generator)
    if magnitude == 5:
      assert abs(np.mean(magnitudes) - 5) < 0.1 and abs(np.std(magnitudes) - 0.5) < 0.1
  assert max(magnitudes) == 10 and 0.4 < np.mean(np.array(magnitudes) == 10) < 0.6


@pytest.mark.parametrize('policy', ra.POLICIES)
def test_randaugment_is_a_function_of_image_and_rng(policy):
  results = set()
  for seed in range(60):
    first, second = (ra.randaugment(IMAGE, policy, 2, 9, 0.5, rng(seed)) for _ in range(2))
    assert is_same(first, second) and (first.shape, first.dtype) == (IMAGE.shape, np.uint8)
    results.add(first.tobytes())
  assert len(results) > 35
  assert is_same(IMAGE, BEFORE)


def test_zero_layers_change_nothing():
  assert is_same(ra.randaugment(IMAGE, 'augreg', 0, 9, 0, rng(0)), IMAGE)


@pytest.mark.parametrize('preset', augreg.PRESETS)
def test_presets_apply_to_any_config(preset):
  config = augreg.apply(default.get_config(), preset)
  layers, magnitude, alpha = augreg.PRESETS[preset]
  augment = config.data.augment
  assert augment.randaugment == ('none' if preset == 'none' else 'augreg')
  assert (augment.randaugment_layers, augment.randaugment_magnitude) == (layers, magnitude)
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
def test_augreg_configs_have_the_published_values(argument, expected):
  config = augreg.get_config(argument)
  assert expected == (
    config.total_steps,
    config.optimizer.weight_decay,
    config.data.augment.randaugment_magnitude,
    config.mixup_alpha,
    config.data.num_classes,
  )


@pytest.mark.parametrize('argument', ['b99', 'b16,loud', 'b16,best,jft', 'b16,best,imagenet,x'])
def test_unknown_augreg_configs_are_rejected(argument):
  with pytest.raises(ValueError):
    augreg.get_config(argument)
