"""Preprocessing against the operations of TensorFlow and big_vision (golden files)."""

import numpy as np
import pytest

from tests.helpers import GOLDEN
from vit_jax.config import Preprocessing
from vit_jax.data.augmentation.preprocessing import preprocess

CASES = np.load(GOLDEN / 'preprocess_tensorflow.npz')


@pytest.mark.parametrize('case', [name for name in CASES.files if '|' in name])
def test_it_agrees_within_one_gray_level(case):
  image, rule, fraction, interpolation, antialias, size = case.split('|')
  kept, _, of = fraction.partition('/')
  preprocessing = Preprocessing(
    resize=rule,
    crop_fraction=int(kept) / int(of or 1),
    interpolation=interpolation,
    antialias=antialias == 'antialiased',
    rounding='tensorflow',
  )
  height, width = map(int, size.split('x'))
  ours = preprocess(CASES[image], (height, width), preprocessing)
  expected = CASES[case]
  assert ours.shape == expected.shape and ours.dtype == np.uint8
  assert np.abs(ours.astype(int) - expected).max() <= 1
