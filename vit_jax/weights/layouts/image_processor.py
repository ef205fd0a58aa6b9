"""The image processors of Transformers: preprocessor_config.json, read and written.

Followed is their default backend, torchvision, which resizes uint8 with antialiasing; their Pillow
backend rounds in another order, which moves some bicubic pixels by several gray levels.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from vit_jax.config import Preprocessing
from vit_jax.weights.metadata import HALF, UnsupportedError

# Of pixels in [0, 1].
IMAGENET_PIXELS: dict[str, Any] = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLIP_PIXELS: dict[str, Any] = dict(
  mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
_IMAGENET, _CLIP = (
  {f'image_{name}': values for name, values in each.items()}
  for each in (IMAGENET_PIXELS, CLIP_PIXELS)
)
_SQUASH = dict(size={'height': 224, 'width': 224}, resample=3)
_CROP = dict(size={'shortest_edge': 224}, resample=3, do_center_crop=True, crop_size=224)
# The defaults of the processors that resize, crop, rescale and normalize, and nothing else:
# models/*/image_processing_*.py of Transformers 5.24. The common ones:
_DEFAULTS = dict(
  do_resize=True,
  do_center_crop=False,
  crop_size=None,
  do_rescale=True,
  rescale_factor=1 / 255,
  do_normalize=True,
  do_pad=False,
  image_mean=HALF,
  image_std=HALF,
)
_PROCESSORS: dict[str, dict[str, Any]] = {
  'ViT': _SQUASH | {'resample': 2},
  'DeiT': _CROP | {'size': {'height': 256, 'width': 256}},
  'Bit': _CROP | _CLIP,
  'CLIP': _CROP | _CLIP,
  'ChineseCLIP': _CROP | _CLIP,
  'Blip': _SQUASH | _CLIP | {'size': {'height': 384, 'width': 384}},
  'Siglip': _SQUASH,
  'Tipsv2': {'size': {'height': 448, 'width': 448}, 'resample': 2, 'do_normalize': False},
  'DINOv3ViT': _SQUASH | _IMAGENET | {'resample': 2},  # not rounded to gray levels when resized
  'Pvt': _SQUASH | _IMAGENET,
  'MobileNetV1': _CROP | {'size': {'shortest_edge': 256}, 'resample': 2},
  'ConvNext': {'size': {'shortest_edge': 384}, 'resample': 3, 'crop_pct': 224 / 256},
}
_INTEGER_IS_SHORTEST_EDGE = ('Bit', 'CLIP', 'ChineseCLIP', 'Siglip', 'MobileNetV1', 'ConvNext')
# Pillow's numbers of interpolations. Nearest differs between the backends.
_RESAMPLE: dict[int, Any] = {1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}
_UNSUPPORTED_RESAMPLE = {0: 'nearest', 4: 'box', 5: 'hamming'}


# --- reading --------------------------------------------------------------------------------


def _complete(processor: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
  """(kind, all fields); without a kind, a `ViTImageProcessor`.

  Raises:
    UnsupportedError: for a processor that does other things, or does them differently.
  """
  name = processor.get('image_processor_type') or processor.get('feature_extractor_type') or 'ViT'
  kind = re.sub(r'(ImageProcessor(Fast|Pil)?|FeatureExtractor)$', '', name)
  if kind == 'Siglip2':
    raise UnsupportedError('the image processor of NaFlex, whose images keep their aspect ratio')
  if kind not in _PROCESSORS:
    raise UnsupportedError(f'the image processor {name}')
  stated = {key: value for key, value in processor.items() if value is not None}
  return kind, {**_DEFAULTS, **_PROCESSORS[kind], **stated}


def read_normalization(
  processor: Mapping[str, Any], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """(mean, std) for pixels in [0, 1], one for each channel or one for all."""
  fields = _complete(processor)[1]
  pair = [fields['image_mean'], fields['image_std']]
  mean, std = (tuple(map(float, x if isinstance(x, (list, tuple)) else [x])) for x in pair)
  if not fields['do_normalize']:
    mean, std = (0.0,) * channels, (1.0,) * channels
  factor = fields['rescale_factor'] if fields['do_rescale'] else 1
  if not abs(255 * factor - 1) <= 1e-6:  # pixels are not rescaled to [0, 1] first
    mean, std = (tuple(x / (255 * factor) for x in values) for values in (mean, std))
  return mean, std


def read_preprocessing(
  processor: Mapping[str, Any], image_size: tuple[int, int]
) -> tuple[Preprocessing, tuple[int, int]]:
  """What a processor does; absent fields have the defaults of its class.

  Args:
    processor: the content of preprocessor_config.json; {} stands for a `ViTImageProcessor` of
      images of `image_size`.
    image_size: (height, width) of the model.

  Returns:
    The rule, and the (height, width) of the images that it makes.

  Raises:
    UnsupportedError: for a processor that cannot be followed exactly.
  """
  if not processor:
    processor = {'size': list(image_size)}
  kind, fields = _complete(processor)
  if not fields['do_resize']:
    raise UnsupportedError('an image processor that does not resize (do_resize)')
  if fields['do_pad'] and fields.get('pad_size'):
    raise UnsupportedError('an image processor that pads (pad_size)')
  if fields['resample'] not in _RESAMPLE:
    name = _UNSUPPORTED_RESAMPLE.get(fields['resample'], fields['resample'])
    raise UnsupportedError(f'an image processor with the interpolation {name}')
  interpolation = _RESAMPLE[fields['resample']]
  size, shortest = _read_size(fields['size'], kind in _INTEGER_IS_SHORTEST_EDGE)
  crop = _read_size(fields['crop_size'], False)[0] if fields['do_center_crop'] else None
  if kind == 'ConvNext':
    if not shortest or crop:
      raise UnsupportedError('a ConvNextImageProcessor without a shortest_edge, or with a crop')
    size = crop = (shortest, shortest)
    shortest = int(shortest / fields['crop_pct']) if shortest < 384 else None
  if shortest:
    if crop is None or crop[0] != crop[1]:
      raise UnsupportedError('an image processor whose images are not all of one square size')
    squash = _squash(crop, (shortest, shortest), interpolation)
    return dataclasses.replace(squash, resize='crop'), crop
  assert size is not None
  return _squash(crop or size, size, interpolation), crop or size


def _read_size(size: Any, is_shortest_edge: bool) -> tuple[tuple[int, int] | None, int | None]:
  """((height, width), None), or (None, length of the shorter side)."""
  if isinstance(size, int):
    size = {'shortest_edge': size} if is_shortest_edge else {'height': size, 'width': size}
  elif isinstance(size, (list, tuple)):
    size = dict(zip(('height', 'width'), size, strict=True))
  size = {key: value for key, value in size.items() if value is not None}
  if not all(type(value) is int and value > 0 for value in size.values()):
    raise ValueError(f'the size {size} is not positive')
  if size.keys() == {'shortest_edge'}:
    return None, size['shortest_edge']
  if size.keys() == {'height', 'width'}:
    return (size['height'], size['width']), None
  raise UnsupportedError(f'an image processor with a size of {" and ".join(sorted(size))}')


def _squash(crop: tuple[int, int], resized: tuple[int, int], interpolation: Any) -> Preprocessing:
  """Resizes to `resized`, then crops to `crop`, both (height, width)."""
  pairs = list(zip(crop, resized, strict=True))
  # The fractions for which both sides are rounded down, or to the nearest integer, to `resized`.
  rules: Any = (('transformers', math.floor, 0, 1), ('tensorflow', round, 0.5, 0.5))
  for rounding, to_integer, below, above in rules:
    least = max(new / (old + above) for new, old in pairs)
    most = min(new / (old - below) for new, old in pairs)
    simple = [new / old for new, old in pairs]
    for fraction in (*simple, math.nextafter(most, 0), (least + most) / 2):
      sizes = [to_integer(side / fraction) for side in crop]
      if sizes == list(resized) and 0.05 <= fraction <= 1:
        return Preprocessing('squash', fraction, interpolation, rounding=rounding)
  raise UnsupportedError(
    f'an image processor that crops {crop[0]}x{crop[1]} from {resized[0]}x{resized[1]} pixels'
  )


# --- writing --------------------------------------------------------------------------------


def make_config(
  image_size: tuple[int, int],
  preprocessing: Preprocessing,
  channels: int = 3,
  mean: tuple[float, ...] | None = None,
  std: tuple[float, ...] | None = None,
) -> dict[str, Any]:
  """The preprocessor_config.json that does what `preprocess` does, as far as one can.

  `unexpressed` says what it cannot. The mean and std are of pixels in [0, 1]; None: 0.5.
  """
  height, width = image_size
  fraction = preprocessing.crop_fraction
  to_integer = round if preprocessing.rounding == 'tensorflow' else math.floor
  size = {'height': to_integer(height / fraction), 'width': to_integer(width / fraction)}
  is_crop = preprocessing.resize != 'squash'
  if is_crop and height == width:
    size = {'shortest_edge': size['height']}
  resample = {name: number for number, name in _RESAMPLE.items()}
  return {
    'image_processor_type': 'BitImageProcessor' if is_crop else 'ViTImageProcessor',
    'do_convert_rgb': channels == 3,
    'do_resize': True,
    'size': size,
    'resample': resample.get(preprocessing.interpolation, resample['bilinear']),
    'do_center_crop': is_crop or fraction < 1,
    'crop_size': {'height': height, 'width': width},
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(mean or [0.5] * channels),
    'image_std': list(std or [0.5] * channels),
  }


def unexpressed(preprocessing: Preprocessing, image_size: tuple[int, int]) -> str | None:
  """What `make_config` cannot say: 'no antialiasing', …; None: it says everything."""
  height, width = image_size
  rule, interpolation = preprocessing.resize, preprocessing.interpolation
  is_whole = rule == 'squash' and preprocessing.crop_fraction == 1
  return (
    ', '.join(
      name
      for name, is_lost in (
        ('the border', rule == 'border'),
        ('the aspect ratio, for images that are not square', rule == 'crop' and height != width),
        (f'the interpolation {interpolation}', interpolation not in _RESAMPLE.values()),
        ('resizing without antialiasing', not preprocessing.antialias),
        (
          f'rounding as {preprocessing.rounding} does, which may move pixels by one',
          preprocessing.rounding != 'transformers' and not is_whole,
        ),
      )
      if is_lost
    )
    or None
  )
