"""The layout of Hugging Face Transformers, written: tensors and config.json of a model's class."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.build import Model
from vit_jax.models.encoder_block import QKV_BIASES
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.layouts import aimv2, pytorch
from vit_jax.weights.layouts.hugging_face import placeholder_labels
from vit_jax.weights.layouts.hugging_face_classes import TransformersClass, find_class, mlp_ratio
from vit_jax.weights.layouts.hugging_face_names import (
  AIMV2,
  DEIT,
  DINOV2,
  DINOV2_WITH_REGISTERS,
  DINOV3,
  SIGLIP,
  TIPS,
  VIT,
)
from vit_jax.weights.metadata import ModelMetadata

_ACTIVATIONS = {'tanh': 'gelu_pytorch_tanh', 'exact': 'gelu', 'quick': 'quick_gelu'}
_PROBLEMS = {'softmax': 'single_label_classification', 'sigmoid': 'multi_label_classification'}
_WITH_QKV_BIAS = (VIT, DEIT, DINOV2, DINOV2_WITH_REGISTERS, TIPS)  # as a field of config.json
_DROPOUT = {'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0}


def write(
  model: Model, params: Any, metadata: ModelMetadata, channels: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """(the tensors, config.json) of a model, the latter without our own metadata.

  Args:
    model, params: the module, and its parameter tree in memory.
    metadata: with an image size.
    channels: of images.

  Raises:
    UserError: for a model that no class of Transformers has.
  """
  assert metadata.image_size is not None
  target, reason = find_class(model, metadata.image_size)
  if target is None:
    raise UserError(f'The model has {reason}; write an .npz, or a vit_jax folder (--layout=model).')
  assert isinstance(model, VisionTransformer)
  tensors = _from_linen(target, model, params)
  return tensors, _make_config(target, model, metadata, channels, tensors)


def _from_linen(
  target: TransformersClass, model: VisionTransformer, params: Any
) -> dict[str, np.ndarray]:
  """A parameter tree as the state dict of a class."""
  names, block = target.names, dict(target.names.block)
  if names is not DINOV3 and not (model.qkv_bias == 'none' and names in _WITH_QKV_BIAS):
    params = pytorch.with_qkv_biases(model, params)
  if model.mlp == 'swiglu' and names.gated:
    block = {n: x for n, x in block.items() if not n.startswith('mlp.')} | dict(names.gated)
  layers = {n: x for n, x in names.layers.items() if x != 'head' or n == target.head}
  for i in range(model.depth):
    layers |= pytorch.block_layers(names.block_prefix, block, i)
  if names is DEIT and model.pool != 'distilled':
    params = _with_distillation(params)
  if names is AIMV2:
    params = aimv2.pooling_to_transformers(params, model.block_bias)
  tensors = pytorch.from_linen(params, names.parameters, layers)
  for name in names.flat:
    tensors[name] = tensors[name].reshape(tensors[name].shape[1 if 'position' in name else 2 :])
  tensors |= _unused_tensors(target, model)
  prefix = names.backbone if target.prefix is None else target.prefix
  heads = (target.head or ' ', 'distillation_classifier')
  return {_rename(n) if n.startswith(heads) else prefix + _rename(n): x for n, x in tensors.items()}


def _rename(name: str) -> str:
  """The name in Transformers of a leaf that is called weight or bias here."""
  name = re.sub(r'(\.layer_scale\d)\.weight$', r'\1.lambda1', name)
  name = re.sub(r'(\.ls\d)\.weight$', r'\1.gamma', name)
  return re.sub(r'\.in_proj\.(weight|bias)$', r'.in_proj_\1', name)


def _with_distillation(params: Any) -> Any:
  """The register as a distillation token with a position of zeros."""
  posembed = params['Transformer']['posembed_input']
  positions = np.insert(np.asarray(posembed['pos_embedding']), 1, 0, axis=1)
  transformer = params['Transformer'] | {'posembed_input': {'pos_embedding': positions}}
  rest = {name: x for name, x in params.items() if name != 'registers'}
  return rest | {'Transformer': transformer, 'distillation': params['registers']}


def _unused_tensors(target: TransformersClass, model: VisionTransformer) -> dict[str, np.ndarray]:
  """Tensors that a class has and does not use here."""
  width, names = model.width, target.names
  if names in (DINOV2, DINOV2_WITH_REGISTERS):
    return {'embeddings.mask_token': np.zeros((1, width), np.float32)}
  if names is TIPS:
    return {'mask_token': np.zeros((1, width), np.float32)}
  if names is DINOV3:
    registers = {} if model.registers else {'embeddings.register_tokens': (1, 0, width)}
    shapes = {'embeddings.mask_token': (1, 1, width), **registers}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  if model.final_norm == 'none':
    weight, bias = np.ones(width, np.float32), np.zeros(width, np.float32)
    return {'post_layernorm.weight': weight, 'post_layernorm.bias': bias}
  return {}


def _make_config(
  target: TransformersClass,
  model: VisionTransformer,
  metadata: ModelMetadata,
  channels: int,
  tensors: Mapping[str, np.ndarray],
) -> dict[str, Any]:
  """The config.json of a class, without our own metadata."""
  assert metadata.image_size is not None
  height, width = metadata.image_size
  gelu = _ACTIVATIONS[metadata.gelu or 'exact']
  fields = {
    'hidden_size': model.width,
    'num_hidden_layers': model.depth,
    'num_attention_heads': model.num_heads,
    'intermediate_size': model.mlp_dim,
    'hidden_act': gelu,
    'layer_norm_eps': metadata.layer_norm_epsilon,
    'image_size': height if height == width else [height, width],
    'patch_size': model.patch_size,
    'num_channels': channels,
    **_special_fields(target, model, tensors),
  }
  if target.is_nested:
    fields = {'vision_config': {**fields, 'model_type': f'{target.model_type}_vision_model'}}
  heads = _label_fields(model, metadata) if 'classifier' in target.head else {}
  return {
    'architectures': [target.name],
    'model_type': target.model_type,
    **fields,
    **heads,
    'torch_dtype': 'float32',
  }


def _special_fields(
  target: TransformersClass, model: VisionTransformer, tensors: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """The fields of config.json that only some families have."""
  names, gated = target.names, model.mlp == 'swiglu'
  if names in (VIT, DEIT):
    pooler = {'pooler_output_size': model.pre_logits} if model.pre_logits else {}
    return {**_DROPOUT, 'qkv_bias': model.qkv_bias != 'none', **pooler}
  registers = {'num_register_tokens': model.registers}
  if names in (DINOV2, DINOV2_WITH_REGISTERS, TIPS):
    ratio = {'mlp_ratio': mlp_ratio(model, names is not TIPS), 'use_swiglu_ffn': gated}
    ratio['qkv_bias'] = model.qkv_bias != 'none'
    return {**_DROPOUT, **ratio, **({} if names is DINOV2 else registers)}
  if names is DINOV3:
    assert model.rotary is not None
    biases = {f'{name}_bias': name in QKV_BIASES[model.qkv_bias] for name in QKV_BIASES['all']}
    gate = {'use_gated_mlp': gated} | ({'hidden_act': 'silu'} if gated else {})
    return {**registers, **biases, **gate, 'rope_theta': model.rotary.base}
  if names is AIMV2:
    biases = {'qkv_bias': model.block_bias, 'mlp_bias': model.block_bias}
    epsilon = model.numerics.layer_norm_epsilon
    return {
      **biases,
      'rms_norm_eps': epsilon,
      'hidden_act': 'silu',
      'use_head': model.pool == 'map',
    }
  if names is SIGLIP:
    return {'vision_use_head': model.pool == 'map'}
  return {'projection_dim': model.num_classes} if target.head == 'visual_projection' else {}


def _label_fields(model: VisionTransformer, metadata: ModelMetadata) -> dict[str, Any]:
  labels = metadata.labels or placeholder_labels(model.num_classes)
  return {
    'problem_type': _PROBLEMS[metadata.loss],
    'id2label': {str(i): label for i, label in enumerate(labels)},
    'label2id': {label: i for i, label in enumerate(labels)},
  }
