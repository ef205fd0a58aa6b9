"""Preprocessing of noise and of very long images, against the originals (a golden file)."""

import json

import numpy as np
import PIL
import pytest

from tests.helpers import GOLDEN
from vit_jax.config import Preprocessing
from vit_jax.data.augmentation.preprocessing import preprocess

CASES = np.load(GOLDEN / 'preprocess_noise.npz')


@pytest.mark.parametrize('case', [name for name in CASES.files if '|' in name])
def test_it_agrees_within_one_gray_level(case):
  image, rule, size = case.split('|')
  preprocessing = Preprocessing(**json.loads(rule))
  if preprocessing.rounding == 'torchvision' and int(PIL.__version__.partition('.')[0]) < 13:
    pytest.skip('older versions may resize columns in another order')
  height, width = map(int, size.split('x'))
  ours = preprocess(CASES[image], (height, width), preprocessing)
  assert ours.shape == CASES[case].shape and ours.dtype == np.uint8
  # Pillow rounds between the axes and big_vision truncates at the end: two levels in pure noise.
  both_round = (preprocessing.rounding, preprocessing.interpolation) == ('tensorflow', 'bilinear')
  limit = 2 if both_round and preprocessing.antialias and image == 'noise' else 1
  assert np.abs(ours.astype(int) - CASES[case]).max() <= limit


@pytest.mark.parametrize('shape', [(1, 500_000), (500_000, 1)])
@pytest.mark.parametrize('rounding', ['tensorflow', 'transformers', 'torchvision'])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'area'])
def test_a_very_long_image_needs_little_memory(shape, rounding, interpolation):
  """Resized as a whole it would have a hundred million pixels and more."""
  image = np.resize(np.arange(256, dtype=np.uint8), (*shape, 3))
  rule = Preprocessing(interpolation=interpolation, rounding=rounding)
  resized = preprocess(image, (224, 224), rule)
  middle = np.resize(image, (max(shape), 3))[max(shape) // 2]
  assert resized.shape == (224, 224, 3)
  assert np.abs(resized[112, 112].astype(int) - middle).max() < 9
