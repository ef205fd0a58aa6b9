"""OpenCLIP's open_clip_config.json: what it says of the image tower, read.

`CLIPVisionCfg` in open_clip/model.py and `PreprocessCfg` in transform.py have the defaults. A tower
of timm is described by the name of its architecture.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_jax.config import Preprocessing, height_width
from vit_jax.weights.layouts import timm_config
from vit_jax.weights.layouts.image_processor import CLIP_PIXELS
from vit_jax.weights.metadata import ModelMetadata, UnsupportedError

CONFIG = 'open_clip_config.json'
WEIGHTS = ('open_clip_model.safetensors', 'open_clip_pytorch_model.bin')
_RESIZE = {'shortest': 'crop', 'squash': 'squash', 'longest': 'border'}
# Parts of a tower that are not in ours.
_UNSUPPORTED = (
  'attentional_pool qk_norm scaled_cosine_attn scale_heads scale_attn_inner scale_attn scale_fc'
).split()


def read_config(config: Mapping[str, Any]) -> ModelMetadata:
  """The metadata in open_clip_config.json; call it within `damage_explained`.

  Raises:
    UnsupportedError: for a tower or a preprocessing with other features.
  """
  model, pixels = config['model_cfg'], config.get('preprocess_cfg') or {}
  vision = model['vision_cfg']
  size = vision.get('image_size', 224)
  image_size = height_width(size if isinstance(size, int) else tuple(size))
  mean, std = (tuple(pixels.get(name) or CLIP_PIXELS[name]) for name in ('mean', 'std'))
  interpolation = pixels.get('interpolation') or 'bicubic'
  mode = pixels.get('resize_mode') or 'shortest'
  if mode not in _RESIZE or interpolation not in ('bicubic', 'bilinear', 'random'):
    raise UnsupportedError(f'the resize_mode {mode} with the interpolation {interpolation}')
  preprocessing = Preprocessing(
    resize=_RESIZE[mode],  # pyright: ignore[reportArgumentType]
    crop_fraction=1.0,
    interpolation='bilinear' if interpolation == 'bilinear' else 'bicubic',
    rounding='torchvision',
    fill=(pixels.get('fill_color') or 0,) * len(mean),
  )
  if vision.get('timm_model_name'):
    metadata = _read_timm(vision, image_size, mean, std)
    return dataclasses.replace(metadata, preprocessing=preprocessing)
  if used := [name for name in _UNSUPPORTED if vision.get(name)]:
    raise UnsupportedError(f'the {used[0]} of OpenCLIP')
  pool, layers = vision.get('pool_type', 'tok'), vision.get('layers', 12)
  if pool != 'tok' or not isinstance(layers, int):
    part = 'a ResNet' if pool == 'tok' else f'the pooling {pool}'
    raise UnsupportedError(f'{part} as the image tower of OpenCLIP')
  width, activation = vision.get('width', 768), vision.get('act_kwargs') or {}
  is_tanh = activation.get('approximate') == 'tanh'
  return ModelMetadata(
    image_size=image_size,
    preprocessing=preprocessing,
    num_heads=width // vision.get('head_width', 64),
    gelu='quick' if model.get('quick_gelu') else 'tanh' if is_tanh else 'exact',
    layer_norm_epsilon=(vision.get('norm_kwargs') or {}).get('eps', 1e-5),
    mean=mean,
    std=std,
    pool='token',
    position_resize='bicubic_antialias',  # resize_pos_embed in open_clip/model.py
    sizes={'width': width, 'depth': layers, 'patch_size': vision.get('patch_size', 16)},
  )


def _read_timm(
  vision: Mapping[str, Any],
  image_size: tuple[int, int],
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> ModelMetadata:
  """The metadata of an image tower that timm builds."""
  pool, projection = vision.get('timm_pool'), vision.get('timm_proj', 'linear')
  metadata = timm_config.read_config(
    {
      'architecture': vision['timm_model_name'],
      'model_args': vision.get('timm_model_kwargs') or {},
      'pretrained_cfg': {'input_size': [3, *image_size], 'mean': mean, 'std': std},
    }
    | ({'global_pool': pool} if pool else {})
  )
  if projection in ('linear', 'mlp'):
    note = f'the {projection} projection of OpenCLIP is left out: the features are those before it'
    metadata = dataclasses.replace(metadata, notes=(*metadata.notes, note))
  return metadata
