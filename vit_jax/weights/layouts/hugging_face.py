"""The layout of Hugging Face Transformers: its `ViTForImageClassification` and `ViTModel`."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vit_jax.config import Preprocessing, height_width
from vit_jax.errors import UserError
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.formats.lazy_tensor import METADATA_KEY, Tensor
from vit_jax.weights.layouts import hugging_face_names, image_processor, pytorch
from vit_jax.weights.layouts.hugging_face_names import Names
from vit_jax.weights.layouts.released import POSITIONS
from vit_jax.weights.metadata import ModelMetadata, UnsupportedError

# The state dicts of Transformers 5 have other names than its files: of ViT, in a block.
_NAMES_5 = (
  'layernorm_before layernorm_after attention.q_proj attention.k_proj attention.v_proj '
  'attention.o_proj mlp.fc1 mlp.fc2'
).split()
# Leaves that PyTorch calls neither weight nor bias.
_LEAVES = {r'\.lambda1$': '.weight', r'\.in_proj_(weight|bias)$': r'.in_proj.\1'}
_CONFIG_DEFAULTS = dict(
  hidden_act='gelu', pooler_act='tanh', image_size=224, num_channels=3, num_attention_heads=12
)
_TEXT_TOWER = re.compile(r'text_model\.|text_projection|text_embeds|logit_(scale|bias)$')


# --- reading --------------------------------------------------------------------------------


def detect(names: Collection[str]) -> tuple[str, list[str]] | None:
  """('Hugging Face', prefixes of all names, best first) for names of Transformers, else None."""
  for kind in hugging_face_names.ALL:
    for marker in kind.markers:
      for name in {f'{kind.backbone}{marker}': None, marker: None}:
        if prefixes := pytorch.find_prefixes(names, name):
          return 'Hugging Face', prefixes
  return None


def _kind(names: Collection[str]) -> Names:
  """The table of the tensors of these names, as `detect` has them."""
  for kind in hugging_face_names.ALL:
    if any(name in names for marker in kind.markers for name in (marker, kind.backbone + marker)):
      return kind
  raise ValueError(f'no Transformers names among {len(names)}')


def to_linen(
  tensors: Mapping[str, Tensor], num_heads: int | None, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """Translates tensors as `timm.to_linen` does."""
  kind, notes = _kind(tensors), []
  inside = {}
  for name, tensor in tensors.items():
    short = name.removeprefix(kind.backbone)
    if _TEXT_TOWER.match(name):
      notes = ['the image tower was taken; text towers are not supported']
    elif short not in kind.ignored:
      for pattern, replacement in _LEAVES.items():
        short = re.sub(pattern, replacement, short)
      inside[short] = _with_batch(short, tensor, kind)
  blocks = re.compile(re.escape(kind.block_prefix) + r'(\d+)\.')

  def find_modules(layer: str) -> str | None:
    if match := blocks.match(layer):
      return pytorch.block_layers(kind.block_prefix, kind.block, int(match[1])).get(layer)
    if kind is hugging_face_names.VIT and (match := re.match(r'layers\.(\d+)\.', layer)):
      block = dict(zip(_NAMES_5, kind.block.values(), strict=True))
      return pytorch.block_layers('layers.', block, int(match[1])).get(layer)
    return kind.layers.get(layer)

  linen = pytorch.to_linen(inside, kind.parameters, find_modules, num_heads, 'Hugging Face', source)
  return pytorch.with_key_biases(linen), tuple(notes)


def _with_batch(name: str, tensor: Tensor, kind: Names) -> Tensor:
  """CLIP and SigLIP store positions as (N, D) and the class token as (D,)."""
  missing = {POSITIONS: 3, 'cls': 3}.get(kind.parameters.get(name, ''), 0) - len(tensor.shape)
  if missing <= 0:
    return tensor
  shape = (*(1,) * missing, *tensor.shape)
  return tensor.map(shape, lambda x: x.reshape(shape))


def is_config(config: Mapping[str, Any]) -> bool:
  """Whether a config.json is one of Transformers."""
  return 'model_type' in config or 'architectures' in config


def read_config(config: Mapping[str, Any], processor: Mapping[str, Any]) -> ModelMetadata:
  """The metadata in config.json and preprocessor_config.json, within `damage_explained`.

  Raises:
    UnsupportedError: for another model, or a processor that cannot be followed.
  """
  model_type = config.get('model_type', 'vit')
  kind = next((kind for kind in hugging_face_names.ALL if model_type in kind.model_types), None)
  if kind is None:
    raise UnsupportedError(f'a model of the type {model_type}')
  config = {**_CONFIG_DEFAULTS, **kind.defaults, **config, **(config.get('vision_config') or {})}
  activation, size = config['hidden_act'], config['image_size']
  if activation != 'silu':  # of a gated MLP
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
    gelu=pytorch.GELUS.get(activation, 'exact'),
    rotary=kind.rotary and dataclasses.replace(kind.rotary, base=float(config['rope_theta'])),
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
  kind = hugging_face_names.VIT
  layers = dict(kind.layers)
  for i in range(pytorch.count_blocks(params)):
    layers |= pytorch.block_layers(kind.block_prefix, kind.block, i)
  state_dict = pytorch.from_linen(params, kind.parameters, layers)
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
