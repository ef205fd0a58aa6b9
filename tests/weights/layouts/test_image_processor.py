"""Preprocessing of Transformers and timm: followed to the pixel, from and to their configs."""

import io
import json
import re

import numpy as np
import PIL
import pytest
from PIL import Image

from tests.helpers import GOLDEN
from vit_jax.config import Preprocessing
from vit_jax.data.augmentation.preprocessing import preprocess
from vit_jax.weights.layouts import image_processor, timm_config
from vit_jax.weights.metadata import ModelMetadata, UnsupportedError

STORED = np.load(GOLDEN / 'preprocess_torch.npz')
CONFIGS = json.loads(str(STORED['configs']))
IMAGES = [name for name in STORED if name.startswith('image/')]


def stored_image(name: str) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(STORED[name].tobytes())))


def read(name: str) -> tuple[Preprocessing, tuple[int, int]]:
  """The rule of a stored config, and the size of its images."""
  if name.startswith('timm'):
    config = {'architecture': 'vit_tiny_patch16_224', 'pretrained_cfg': CONFIGS[name]}
    metadata = timm_config.read_config(config)
    assert metadata.preprocessing and metadata.image_size
    return metadata.preprocessing, metadata.image_size
  return image_processor.read_preprocessing(CONFIGS[name], (32, 32))


@pytest.mark.parametrize('name', CONFIGS)
def test_pixels_of_the_originals(name):
  rule, size = read(name)
  expected = np.split(stored_image(name), len(IMAGES))
  for image, pixels in zip(IMAGES, expected, strict=True):
    actual = preprocess(stored_image(image), size, rule)
    assert actual.shape == pixels.shape
    if int(PIL.__version__.partition('.')[0]) < 13 and name.startswith('timm_squash'):
      continue  # older versions, and timm with them, may resize columns in another order
    assert np.abs(actual.astype(int) - pixels).max() <= 1, image


# Content of a processor, and the same with everything said.
EQUAL = {
  'no config': ({}, dict(size={'height': 32, 'width': 32}, resample=2)),
  'old extractor': (
    dict(feature_extractor_type='ViTFeatureExtractor', size=32),
    dict(size={'height': 32, 'width': 32}, resample=2),
  ),
  'a list': (dict(size=[24, 40]), dict(size={'height': 24, 'width': 40}, resample=2)),
  'old DeiT': (
    dict(feature_extractor_type='DeiTFeatureExtractor', size=40, crop_size=32),
    dict(
      image_processor_type='DeiTImageProcessor',
      size={'height': 40, 'width': 40},
      crop_size={'height': 32, 'width': 32},
      do_center_crop=True,
      resample=3,
    ),
  ),
  'old CLIP': (
    dict(feature_extractor_type='CLIPFeatureExtractor', size=32, crop_size=32),
    dict(
      image_processor_type='CLIPImageProcessorFast',
      size={'shortest_edge': 32},
      crop_size={'height': 32, 'width': 32},
      do_center_crop=True,
      resample=3,
    ),
  ),
  'null': (
    dict(size={'height': 32, 'width': 32, 'shortest_edge': None}, resample=None),
    dict(size={'height': 32, 'width': 32}, resample=2),
  ),
  'PVT': (
    dict(image_processor_type='PvtImageProcessor'),
    dict(size={'height': 224, 'width': 224}, resample=3),
  ),
  'large ConvNeXt': (
    dict(image_processor_type='ConvNextImageProcessor', size={'shortest_edge': 384}),
    dict(size={'height': 384, 'width': 384}, resample=3),
  ),
}


@pytest.mark.parametrize('name', EQUAL)
def test_defaults_of_processors(name):
  one, two = (image_processor.read_preprocessing(content, (32, 32)) for content in EQUAL[name])
  assert one == two


REFUSED = {
  'does not resize': dict(do_resize=False),
  'interpolation box': dict(resample=4),
  'interpolation hamming': dict(resample=5),
  'interpolation nearest': dict(resample=0),
  'size of longest_edge': dict(size={'longest_edge': 32}),
  'longest_edge and shortest_edge': dict(size={'longest_edge': 32, 'shortest_edge': 16}),
  'one square size': dict(size={'shortest_edge': 32}),
  'crops 40x40 from 32x32': dict(size=32, do_center_crop=True, crop_size=40),
  'crops 32x16 from 40x40': dict(size=40, do_center_crop=True, crop_size=[32, 16]),
  'EfficientNetImageProcessor': dict(image_processor_type='EfficientNetImageProcessor'),
  'pads': dict(do_pad=True, pad_size={'height': 40, 'width': 40}),
}


@pytest.mark.parametrize('message', REFUSED)
def test_processors_that_cannot_be_followed(message):
  with pytest.raises(UnsupportedError, match=message):
    image_processor.read_preprocessing(REFUSED[message], (32, 32))


@pytest.mark.parametrize(
  ('field', 'value'), [('interpolation', 'random'), ('interpolation', 'box'), ('crop_pct', 1.1)]
)
def test_preprocessing_of_timm_that_cannot_be_followed(field, value):
  with pytest.raises(UnsupportedError, match=f'{field}|{value}'):
    timm_config.read_config({'architecture': 'vit_x', 'pretrained_cfg': {field: value}})


def test_defaults_of_timm():
  metadata = timm_config.read_config({'architecture': 'vit_x', 'num_classes': 3})
  assert metadata.mean == (0.485, 0.456, 0.406) and metadata.std == (0.229, 0.224, 0.225)
  assert metadata.preprocessing == Preprocessing(
    'crop', 0.875, 'bicubic', rounding='torchvision', fill=(124, 116, 104)
  )


@pytest.mark.parametrize(
  ('values', 'expected'),
  [
    ({}, ((0.5,) * 3, (0.5,) * 3)),
    (dict(do_normalize=False), ((0.0,) * 3, (1.0,) * 3)),
    (dict(do_rescale=False), ((0.5 / 255,) * 3, (0.5 / 255,) * 3)),
    (dict(do_normalize=False, rescale_factor=1 / 127.5), ((0.0,) * 3, (0.5,) * 3)),
    (dict(image_mean=0.4, image_std=0.2), ((0.4,), (0.2,))),
    (
      dict(image_processor_type='PvtImageProcessor'),
      ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ),
  ],
)
def test_normalization_of_processors(values, expected):
  for actual, values_expected in zip(
    image_processor.read_normalization(values, 3), expected, strict=True
  ):
    np.testing.assert_allclose(actual, values_expected, rtol=1e-12)


RULES = [
  Preprocessing('squash', 1.0, rounding='transformers'),
  Preprocessing('squash', 0.9, 'bicubic', rounding='transformers'),
  Preprocessing('crop', 0.875, 'lanczos', rounding='transformers'),
  Preprocessing('crop', 0.9, 'bicubic', rounding='transformers'),
]


@pytest.mark.parametrize('rule', RULES)
def test_a_processor_says_what_it_can(rule):
  content = image_processor.make_config((32, 32), rule)
  read_rule, size = image_processor.read_preprocessing(content, (32, 32))
  image = stored_image('image/97x131')
  np.testing.assert_array_equal(
    preprocess(image, size, read_rule), preprocess(image, (32, 32), rule)
  )
  assert image_processor.unexpressed(rule, (32, 32)) is None


@pytest.mark.parametrize(
  ('rule', 'in_processor', 'in_timm'),
  [
    (Preprocessing(), 'rounding as tensorflow', 'rounding as tensorflow'),
    (Preprocessing('squash', 1.0, antialias=False), 'antialiasing', 'antialiasing'),
    (Preprocessing('squash', 1.0, 'area'), 'interpolation area', 'interpolation area'),
    (Preprocessing('squash', 1.0, 'nearest'), 'interpolation nearest', None),
    (Preprocessing('border', 1.0, rounding='torchvision'), 'border', None),
    (Preprocessing('border', 1.0, rounding='torchvision', fill=(0,)), 'border', r'level \(0,\)'),
    (Preprocessing('squash', 1.0), None, None),
  ],
)
def test_what_other_layouts_cannot_say_is_said(rule, in_processor, in_timm):
  for text, expected in (
    (image_processor.unexpressed(rule, (32, 32)), in_processor),
    (timm_config.unexpressed(ModelMetadata(preprocessing=rule)), in_timm),
  ):
    assert (text is None) == (expected is None), text
    assert expected is None or re.search(expected, text or '')
