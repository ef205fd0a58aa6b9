"""The layout of Hugging Face Transformers: its `ViTForImageClassification` and `ViTModel`."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vit_jax.config import Preprocessing, height_width
from vit_jax.errors import UserError
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.formats.lazy_tensor import METADATA_KEY, Tensor
from vit_jax.weights.layouts import image_processor, pytorch
from vit_jax.weights.layouts.released import ATTENTION, POSITIONS
from vit_jax.weights.metadata import ModelMetadata, UnsupportedError

_MARKER = 'embeddings.patch_embeddings.projection.weight'
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
  model_type='vit',
  hidden_act='gelu',
  pooler_act='tanh',
  image_size=224,
  num_channels=3,
  layer_norm_eps=1e-12,
  num_attention_heads=12,
)

# Of Transformers, with the forward pass of its `ViTModel` (and, for vit_mae, without masks).
_MODEL_TYPES = ('vit', 'vit_msn', 'vit_mae')


# --- reading --------------------------------------------------------------------------------


def detect(names: Collection[str]) -> tuple[str, list[str]] | None:
  """('Hugging Face', prefixes of all names, best first) for names of Transformers, else None."""
  for marker in ('vit.' + _MARKER, _MARKER):
    if prefixes := pytorch.find_prefixes(names, marker):
      return 'Hugging Face', prefixes
  return None


def to_linen(
  tensors: Mapping[str, Tensor], num_heads: int | None, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """Translates tensors as `timm.to_linen` does."""
  parameters = _PARAMETERS | {f'vit.{name}': linen for name, linen in _PARAMETERS.items()}
  tensors = {n: x for n, x in tensors.items() if not n.endswith('embeddings.mask_token')}
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
  """The metadata in config.json and preprocessor_config.json, within `damage_explained`.

  Raises:
    UnsupportedError: for another model, or a processor that cannot be followed.
  """
  config = {**_CONFIG_DEFAULTS, **config}
  activation, size = config['hidden_act'], config['image_size']
  if config['model_type'] not in _MODEL_TYPES:
    raise UnsupportedError(f'a model of the type {config["model_type"]}')
  pytorch.check_activation(activation)
  if config['pooler_act'] != 'tanh':
    raise UnsupportedError(f'a pooler with the activation {config["pooler_act"]}')
  id2label = config.get('id2label') or {}
  labels = [id2label[str(i)] for i in range(len(id2label))]
  if labels == _placeholder_labels(len(labels)):
    labels = None
  image_size = height_width(size if isinstance(size, int) else tuple(size))
  channels = config['num_channels']
  preprocessing, processed_size = image_processor.read_preprocessing(processor, image_size)
  notes = []
  if not processor:
    notes.append("there is no preprocessor_config.json: ViTImageProcessor's defaults are assumed")
  elif processed_size != image_size:
    notes.append(f'its image processor makes images of {processed_size}, it takes {image_size}')
  ours = config.get(METADATA_KEY) or {}
  if ours.get('preprocessing'):
    written = ModelMetadata.from_json(ours).preprocessing or Preprocessing()
    content = image_processor.make_config(image_size, written, channels)
    if image_processor.read_preprocessing(content, image_size)[0] == preprocessing:
      preprocessing = written  # nobody has changed the processor
  mean, std = image_processor.read_normalization(processor, channels)
  multi_label = config.get('problem_type') == 'multi_label_classification'
  return ModelMetadata(
    image_size=image_size,
    preprocessing=preprocessing,
    loss='sigmoid' if multi_label else 'softmax',
    labels=labels,
    num_heads=config['num_attention_heads'],
    gelu=pytorch.GELUS[activation],
    layer_norm_epsilon=float(config['layer_norm_eps']),
    dtype=ours.get('dtype'),
    mean=mean,
    std=std,
    notes=tuple(notes),
  )


def _placeholder_labels(num_classes: int) -> list[str]:
  """What Transformers writes for a model without class names."""
  return [f'LABEL_{i}' for i in range(num_classes)]


# --- writing --------------------------------------------------------------------------------


def unsupported_feature(params: Any) -> str | None:
  """What keeps a model from being a `ViTForImageClassification`: 'a ResNet', …, or None."""
  if {'conv_root', 'root_block'} & params.keys():
    return 'a ResNet'
  if 'stem' in params:
    return 'token-mixing MLPs'
  if 'cls' not in params:
    return 'no class token'
  if 'pre_logits' in params:
    return 'a pre_logits layer'
  if 'head' not in params:
    return 'no head'
  return pytorch.unsupported_encoder(params)


def from_linen(params: Any) -> dict[str, np.ndarray]:
  """A parameter tree as the state dict of Transformers' `ViTForImageClassification`."""
  if 'stem' in params:
    raise UserError(
      'Transformers has no MLP-Mixer; write an .npz, timm.safetensors, or a vit_jax folder '
      '(--layout=model).'
    )
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
    'hidden_act': {'tanh': 'gelu_pytorch_tanh', 'exact': 'gelu'}[metadata.gelu or 'exact'],
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
