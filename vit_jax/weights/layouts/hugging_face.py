"""The layout of Hugging Face Transformers: its `ViTForImageClassification` and `ViTModel`."""

import math
import re
from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from vit_jax.config import Preprocessing, height_width
from vit_jax.errors import UserError
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.formats.lazy_tensor import METADATA_KEY, Tensor
from vit_jax.weights.layouts import pytorch
from vit_jax.weights.layouts.released import ATTENTION, POSITIONS
from vit_jax.weights.metadata import HALF, ModelMetadata

# Name in Transformers: the linen parameter.
_PARAMETERS = {'embeddings.cls_token': 'cls', 'embeddings.position_embeddings': POSITIONS}
# Name of a layer in Transformers: the linen module.
_LAYERS = {
  'embeddings.patch_embeddings.projection': 'embedding',
  'layernorm': 'Transformer/encoder_norm',
  'classifier': 'head',
  'pooler.dense': 'pre_logits',
}
_BLOCK = {
  'layernorm_before': 'LayerNorm_0',
  'layernorm_after': 'LayerNorm_1',
  'attention.attention.query': f'{ATTENTION}/query',
  'attention.attention.key': f'{ATTENTION}/key',
  'attention.attention.value': f'{ATTENTION}/value',
  'attention.output.dense': f'{ATTENTION}/out',
  'intermediate.dense': 'MlpBlock_0/Dense_0',
  'output.dense': 'MlpBlock_0/Dense_1',
}
# The state dicts of Transformers 5 have other names than its files.
_NAMES_5 = (
  'layernorm_before layernorm_after attention.q_proj attention.k_proj attention.v_proj '
  'attention.o_proj mlp.fc1 mlp.fc2'
).split()
_BLOCK_5: dict[str, str] = dict(zip(_NAMES_5, _BLOCK.values(), strict=True))
_CONFIG_DEFAULTS = dict(  # of its ViTConfig
  hidden_act='gelu', image_size=224, layer_norm_eps=1e-12, num_attention_heads=12
)

# Pillow's numbers of interpolations.
_RESAMPLE: dict[int, Any] = dict(enumerate(('nearest', 'lanczos', 'bilinear', 'bicubic')))


# --- reading --------------------------------------------------------------------------------


def detect(names: Container[str]) -> tuple[str, str] | None:
  """('Hugging Face', prefix of all names) if the names are those of Transformers, else None."""
  for prefix in pytorch.PREFIXES:
    for inner in ('vit.', ''):
      if f'{prefix}{inner}embeddings.patch_embeddings.projection.weight' in names:
        return 'Hugging Face', prefix
  return None


def to_linen(
  tensors: Mapping[str, Tensor], num_heads: int | None, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """Translates tensors as `timm.to_linen` does."""
  parameters = _PARAMETERS | {f'vit.{name}': linen for name, linen in _PARAMETERS.items()}
  return pytorch.to_linen(tensors, parameters, _find_modules, num_heads, 'Hugging Face', source), ()


def _find_modules(layer: str) -> str | None:
  layer = layer.removeprefix('vit.')
  if match := re.fullmatch(r'(encoder\.layer\.|layers\.)(\d+)\..*', layer):
    table = _BLOCK if match[1] == 'encoder.layer.' else _BLOCK_5
    return pytorch.block_layers(match[1], table, int(match[2])).get(layer)
  return _LAYERS.get(layer)


def is_config(config: Mapping[str, Any]) -> bool:
  """Whether a config.json is one of Transformers."""
  return 'model_type' in config or 'architectures' in config


def read_config(config: Mapping[str, Any], processor: Mapping[str, Any]) -> ModelMetadata:
  """The metadata in config.json and preprocessor_config.json, within `damage_explained`."""
  config = {**_CONFIG_DEFAULTS, **config}
  activation, size = config['hidden_act'], config['image_size']
  if activation not in pytorch.GELUS:
    raise ValueError(f'the activation {activation} is not supported')
  id2label = config.get('id2label') or {}
  labels = [id2label[str(i)] for i in range(len(id2label))]
  if labels == _placeholder_labels(len(labels)):
    labels = None
  ours = config.get(METADATA_KEY) or {}
  multi_label = config.get('problem_type') == 'multi_label_classification'
  mean, std = _normalization(processor)
  preprocessing = read_preprocessing(processor)
  if 'preprocessing' in ours:
    preprocessing = ModelMetadata.from_json(ours).preprocessing
  return ModelMetadata(
    image_size=height_width(size if isinstance(size, int) else tuple(size)),
    preprocessing=preprocessing,
    loss=ours.get('loss', 'sigmoid' if multi_label else 'softmax'),
    labels=labels,
    num_heads=config['num_attention_heads'],
    gelu=pytorch.GELUS[activation],
    layer_norm_epsilon=float(config['layer_norm_eps']),
    mean=mean,
    std=std,
  )


def _normalization(processor: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """(mean, std) for pixels in [0, 1]."""
  mean, std = processor.get('image_mean') or HALF, processor.get('image_std') or HALF
  if not processor.get('do_normalize', True):
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
  factor = processor.get('rescale_factor', 1 / 255) if processor.get('do_rescale', True) else 1
  if not abs(255 * factor - 1) <= 1e-6:  # pixels are not rescaled to [0, 1] first
    mean, std = ([x / (255 * factor) for x in values] for values in (mean, std))
  return tuple(map(float, mean)), tuple(map(float, std))


def read_preprocessing(processor: Mapping[str, Any]) -> Preprocessing:
  """What a processor of Transformers does; without a config, `ViTImageProcessor`'s defaults."""
  size, crop = processor.get('size'), processor.get('crop_size')
  resample = _RESAMPLE[processor.get('resample', 2)]
  fixed: Any = dict(interpolation=resample, rounding='transformers')
  is_crop = isinstance(size, dict) and 'shortest_edge' in size
  rule = 'crop' if is_crop else 'squash'
  if not processor.get('do_center_crop') or not isinstance(size, dict) or not crop:
    return Preprocessing(resize=rule, crop_fraction=1.0, **fixed)
  shorter_side = size.get('shortest_edge') or min(size['height'], size['width'])
  side = crop if isinstance(crop, int) else min(crop['height'], crop['width'])
  fraction = min(side / shorter_side, 1.0)
  if math.floor(side / fraction) < shorter_side:
    fraction = math.nextafter(fraction, 0)
  return Preprocessing(resize=rule, crop_fraction=fraction, **fixed)


def _placeholder_labels(num_classes: int) -> list[str]:
  """What Transformers writes for a model without class names."""
  return [f'LABEL_{i}' for i in range(num_classes)]


# --- writing --------------------------------------------------------------------------------


def unsupported_feature(params: Any) -> str | None:
  """What keeps a model from being a `ViTForImageClassification`: 'a ResNet', …, or None."""
  if {'conv_root', 'root_block'} & params.keys():
    return 'a ResNet'
  if 'cls' not in params:
    return 'no class token'
  if 'pre_logits' in params:
    return 'a pre_logits layer'
  return None if 'head' in params else 'no head'


def from_linen(params: Any) -> dict[str, np.ndarray]:
  """A parameter tree as the state dict of Transformers' `ViTForImageClassification`."""
  if feature := unsupported_feature(params):
    raise UserError(
      f'The model has {feature}, which ViTForImageClassification does not support; write an '
      '.npz, or a vit_jax folder (--layout=model).'
    )
  layers = dict(_LAYERS)
  for i in range(pytorch.count_blocks(params)):
    layers |= pytorch.block_layers('encoder.layer.', _BLOCK, i)
  state_dict = pytorch.from_linen(params, _PARAMETERS, layers)
  return {n if n.startswith('classifier.') else f'vit.{n}': x for n, x in state_dict.items()}


def make_config(
  model: VisionTransformer, metadata: ModelMetadata, image_size: tuple[int, int], channels: int
) -> dict[str, Any]:
  """The config.json of `ViTForImageClassification`, without our own metadata."""
  height, width = image_size
  labels = metadata.labels or _placeholder_labels(model.num_classes)
  problem = {'softmax': 'single_label_classification', 'sigmoid': 'multi_label_classification'}
  return {
    'architectures': ['ViTForImageClassification'],
    'model_type': 'vit',
    'hidden_size': model.width,
    'num_hidden_layers': model.depth,
    'num_attention_heads': model.num_heads,
    'intermediate_size': model.mlp_dim,
    'hidden_act': {'tanh': 'gelu_pytorch_tanh', 'exact': 'gelu'}[metadata.gelu],
    'layer_norm_eps': metadata.layer_norm_epsilon,
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
    'image_size': height if height == width else [height, width],
    'patch_size': model.patch_size,
    'num_channels': channels,
    'qkv_bias': True,
    'problem_type': problem[metadata.loss],
    'id2label': {str(i): label for i, label in enumerate(labels)},
    'label2id': {label: i for i, label in enumerate(labels)},
    'torch_dtype': 'float32',
  }


def make_preprocessor_config(
  image_size: tuple[int, int], preprocessing: Preprocessing, channels: int = 3
) -> dict[str, Any]:
  """The preprocessor_config.json that does what `preprocess` does, as far as one can.

  Processors always antialias, round as `rounding='transformers'` does, and cannot add a border:
  they cut instead. Exactly `preprocessing` is in config.json, where `read_config` finds it.
  """
  height, width = image_size
  fraction = preprocessing.crop_fraction
  to_integer = round if preprocessing.rounding == 'tensorflow' else math.floor
  size = {'height': to_integer(height / fraction), 'width': to_integer(width / fraction)}
  is_crop = preprocessing.resize != 'squash'
  if is_crop and height == width:
    size = {'shortest_edge': size['height']}
  return {
    'image_processor_type': 'BitImageProcessor' if is_crop else 'ViTImageProcessor',
    'do_convert_rgb': channels == 3,
    'do_resize': True,
    'size': size,
    'resample': {name: i for i, name in _RESAMPLE.items()}.get(preprocessing.interpolation, 2),
    'do_center_crop': is_crop or fraction < 1,
    'crop_size': {'height': height, 'width': width},
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': [0.5] * channels,
    'image_std': [0.5] * channels,
  }
