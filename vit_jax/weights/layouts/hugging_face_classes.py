"""The layout of Hugging Face Transformers, written: the class that has the architecture of a model.

Each class of Transformers has one architecture, or few. A model is written as the first class in
the table that has its own, whatever it was read from.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.build import Model, architecture
from vit_jax.models.rotary import ROTARIES
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.layouts import pytorch
from vit_jax.weights.layouts.hugging_face import placeholder_labels
from vit_jax.weights.layouts.hugging_face_names import (
  CLIP,
  DEIT,
  DINOV2,
  DINOV2_WITH_REGISTERS,
  DINOV3,
  SIGLIP,
  VIT,
  Names,
)
from vit_jax.weights.metadata import ModelMetadata

_ACTIVATIONS = {'tanh': 'gelu_pytorch_tanh', 'exact': 'gelu', 'quick': 'quick_gelu'}
_PROBLEMS = {'softmax': 'single_label_classification', 'sigmoid': 'multi_label_classification'}
_DROPOUT = {'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0}
_DINO_ROTARY = ROTARIES['dinov3']
# The features that a class has unless its row says otherwise, as `_features` names them.
_PLAIN = dict(
  pool='token',
  pre_logits=False,
  class_token=False,
  registers=False,
  rotary=False,
  patch_bias=True,
  pre_norm=False,
  mlp='gelu',
  layer_scale=False,
  final_norm='encoder',
  position_embedding='1d',
  position_entry='stem',
  axial=False,
)


@dataclasses.dataclass(frozen=True)
class _Class:
  """A class of Transformers.

  Attributes:
    name: 'ViTModel', …
    model_type: of its config.json.
    names: of its tensors.
    head: the layer of its head; '': it has none.
    features: its architecture, where it is not that of _PLAIN; several values are alternatives.
    is_nested: its config.json has the fields of the tower in `vision_config`.
    is_square: it takes images of one square size.
    prefix: of the names of the tower; None: that of the names.
  """

  name: str
  model_type: str
  names: Names
  head: str
  features: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  is_nested: bool = False
  is_square: bool = False
  prefix: str | None = None


_DINO = dict(layer_scale=True, mlp=('gelu', 'swiglu'))
_DINOV3 = dict(registers=(False, True), rotary=True, position_embedding='none')
_CLIP = dict(patch_bias=False, pre_norm=True)
# Without a head the classes of ViT and DeiT with a head of no classes, which give its input:
# their encoders alone have a pooler.
_CLASSES = (
  _Class('ViTForImageClassification', 'vit', VIT, 'classifier'),
  _Class('ViTModel', 'vit', VIT, '', dict(pre_logits=True), prefix=''),
  _Class(
    'DeiTForImageClassificationWithTeacher', 'deit', DEIT, 'cls_classifier', dict(pool='distilled')
  ),
  _Class('DeiTForImageClassification', 'deit', DEIT, 'classifier', dict(registers=True)),
  _Class('DeiTModel', 'deit', DEIT, '', dict(registers=True, pre_logits=True), prefix=''),
  _Class(
    'Dinov2ForImageClassification', 'dinov2', DINOV2, 'classifier', _DINO | dict(pool='token_gap')
  ),
  _Class('Dinov2Model', 'dinov2', DINOV2, '', _DINO, prefix=''),
  _Class(
    'Dinov2WithRegistersForImageClassification',
    'dinov2_with_registers',
    DINOV2_WITH_REGISTERS,
    'classifier',
    _DINO | dict(registers=True, pool='token_gap'),
  ),
  _Class(
    'Dinov2WithRegistersModel',
    'dinov2_with_registers',
    DINOV2_WITH_REGISTERS,
    '',
    _DINO | dict(registers=True),
    prefix='',
  ),
  _Class('DINOv3ViTModel', 'dinov3_vit', DINOV3, '', _DINO | _DINOV3, prefix=''),
  _Class(
    'SiglipForImageClassification',
    'siglip',
    SIGLIP,
    'classifier',
    dict(pool='gap'),
    is_nested=True,
    is_square=True,
  ),
  _Class(
    'SiglipVisionModel',
    'siglip_vision_model',
    SIGLIP,
    '',
    dict(pool=('map', 'gap')),
    is_square=True,
  ),
  _Class(
    'CLIPVisionModelWithProjection',
    'clip_vision_model',
    CLIP,
    'visual_projection',
    _CLIP,
    is_square=True,
  ),
  _Class('CLIPVisionModel', 'clip_vision_model', CLIP, '', _CLIP, is_square=True),
  _Class(
    'CLIPForImageClassification',
    'clip',
    CLIP,
    'classifier',
    _CLIP | dict(pool='gap', class_token=True, final_norm='none'),
    is_nested=True,
    is_square=True,
  ),
)
_SAYINGS = {  # about a model that has another value than a class
  'pool': 'the pooling {}',
  'pre_logits': 'a pre_logits layer',
  'class_token': 'a class token that is not pooled',
  'registers': 'registers',
  'rotary': 'rotary positions',
  'patch_bias': 'patches {}',
  'pre_norm': 'a LayerNorm before its blocks',
  'mlp': 'MLPs of the kind {}',
  'layer_scale': 'LayerScale',
  'final_norm': 'the final LayerNorm "{}"',
  'position_embedding': '{} position embeddings',
  'position_entry': 'position embeddings in its {}',
  'axial': 'axial blocks',
}


# --- which class ----------------------------------------------------------------------------


def _features(model: VisionTransformer) -> dict[str, Any]:
  fields = architecture(model)
  features = {name: fields[name] for name in _PLAIN}
  features |= {
    name: bool(fields[name]) for name in ('pre_logits', 'registers', 'layer_scale', 'rotary')
  }
  if model.rotary is not None and dataclasses.replace(model.rotary, base=100.0) != _DINO_ROTARY:
    return features | {'rotary': 'other'}
  return features


def _differences(each: _Class, model: VisionTransformer, size: tuple[int, int]) -> list[str]:
  """What a model has that a class does not: 'a pre_logits layer', …"""
  features, expected = _features(model), {**_PLAIN, **each.features}
  differences = []
  for name, value in expected.items():
    if features[name] not in (value if isinstance(value, tuple) else (value,)):
      differences.append(_describe(name, features[name]))
  if bool(model.num_classes) and not each.head:
    differences.append('a head')
  is_optional = each.names in (VIT, DEIT) and each.head == 'classifier'
  if not model.num_classes and each.head and not is_optional:
    differences.append('no head')
  if model.num_classes and each.head and model.head_bias != (each.head != 'visual_projection'):
    differences.append(f'a head with{"" if model.head_bias else "out"} bias')
  if each.names is DEIT and each.features.get('registers') and model.registers > 1:
    differences.append(f'{model.registers} registers')
  if each.is_square and size[0] != size[1]:
    differences.append('images that are not square')
  if each.names in (DINOV2, DINOV2_WITH_REGISTERS) and _mlp_ratio(model) is None:
    differences.append(f'MLPs of {model.mlp_dim} hidden units')
  return differences


def _describe(name: str, value: Any) -> str:
  if value is False or value is None:
    no = {'patch_bias': 'patches without bias', 'class_token': 'no class token'}
    return no.get(name, f'no {name.replace("_", " ")}')
  return _SAYINGS[name].format('with bias' if value is True else value)


def _find(model: Model, size: tuple[int, int]) -> tuple[_Class | None, str]:
  """(the class of a model, ''), or (None, what keeps it from the one that is most like it)."""
  if not isinstance(model, VisionTransformer):
    kinds = {'BiTResNet': 'a ResNet', 'MlpMixer': 'token-mixing MLPs', 'DETR': 'a ResNet'}
    return None, f'{kinds[type(model).__name__]}, which no class of Transformers has'
  if model.resnet_width:
    return None, 'a ResNet, which no class of Transformers has'
  found = [(_differences(each, model, size), each) for each in _CLASSES]
  differences, nearest = min(found, key=lambda pair: len(pair[0]))
  if not differences:
    return nearest, ''
  return None, f'{" and ".join(differences)}, which {nearest.name} does not support'


def unsupported_feature(model: Model, image_size: tuple[int, int]) -> str | None:
  """What keeps a model from being written, 'a ResNet, which …'; None: nothing."""
  return _find(model, image_size)[1] or None


def _mlp_ratio(model: VisionTransformer) -> int | None:
  """The `mlp_ratio` of DINOv2's configs, whose gated MLPs have 2/3 of the units (their code)."""
  if model.mlp != 'swiglu':
    return None if model.mlp_dim % model.width else model.mlp_dim // model.width
  for ratio in range(1, 2 * model.mlp_dim // model.width + 2):
    if (int(model.width * ratio * 2 / 3) + 7) // 8 * 8 == model.mlp_dim:
      return ratio
  return None


# --- writing --------------------------------------------------------------------------------


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
  found, reason = _find(model, metadata.image_size)
  if found is None:
    raise UserError(f'The model has {reason}; write an .npz, or a vit_jax folder (--layout=model).')
  assert isinstance(model, VisionTransformer)
  tensors = _from_linen(found, model, params)
  return tensors, _make_config(found, model, metadata, channels, tensors)


def _from_linen(found: _Class, model: VisionTransformer, params: Any) -> dict[str, np.ndarray]:
  """A parameter tree as the state dict of a class."""
  names, block = found.names, dict(found.names.block)
  if model.mlp == 'swiglu' and names.gated:
    block = {n: x for n, x in block.items() if not n.startswith('mlp.')} | dict(names.gated)
  layers = {n: x for n, x in names.layers.items() if x != 'head' or n == found.head}
  for i in range(model.depth):
    layers |= pytorch.block_layers(names.block_prefix, block, i)
  if names is DEIT and model.pool != 'distilled':
    params = _with_distillation(params)
  tensors = pytorch.from_linen(params, names.parameters, layers)
  for name in names.flat:
    tensors[name] = tensors[name].reshape(tensors[name].shape[1 if 'position' in name else 2 :])
  tensors |= _unused_tensors(found, model)
  if names is DINOV3:  # whose configs say which projections have a bias
    ends = tuple(f'.{name}_proj.bias' for name in 'qkv')
    tensors = {n: x for n, x in tensors.items() if not n.endswith(ends) or x.any()}
  prefix = names.backbone if found.prefix is None else found.prefix
  heads = (found.head or ' ', 'distillation_classifier')
  return {_rename(n) if n.startswith(heads) else prefix + _rename(n): x for n, x in tensors.items()}


def _rename(name: str) -> str:
  """The name in Transformers of a leaf that is called weight or bias here."""
  name = re.sub(r'(\.layer_scale\d)\.weight$', r'\1.lambda1', name)
  return re.sub(r'\.in_proj\.(weight|bias)$', r'.in_proj_\1', name)


def _with_distillation(params: Any) -> Any:
  """The register as a distillation token with a position of zeros."""
  posembed = params['Transformer']['posembed_input']
  positions = np.insert(np.asarray(posembed['pos_embedding']), 1, 0, axis=1)
  transformer = params['Transformer'] | {'posembed_input': {'pos_embedding': positions}}
  rest = {name: x for name, x in params.items() if name != 'registers'}
  return rest | {'Transformer': transformer, 'distillation': params['registers']}


def _unused_tensors(found: _Class, model: VisionTransformer) -> dict[str, np.ndarray]:
  """Tensors that a class has and does not use here."""
  width, names = model.width, found.names
  if names in (DINOV2, DINOV2_WITH_REGISTERS):
    return {'embeddings.mask_token': np.zeros((1, width), np.float32)}
  if names is DINOV3:
    registers = {} if model.registers else {'embeddings.register_tokens': (1, 0, width)}
    shapes = {'embeddings.mask_token': (1, 1, width), **registers}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  if model.final_norm == 'none':
    weight, bias = np.ones(width, np.float32), np.zeros(width, np.float32)
    return {'post_layernorm.weight': weight, 'post_layernorm.bias': bias}
  return {}


def _make_config(
  found: _Class,
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
    **_special_fields(found, model, tensors),
  }
  if found.is_nested:
    fields = {'vision_config': {**fields, 'model_type': f'{found.model_type}_vision_model'}}
  heads = _label_fields(model, metadata) if 'classifier' in found.head else {}
  return {
    'architectures': [found.name],
    'model_type': found.model_type,
    **fields,
    **heads,
    'torch_dtype': 'float32',
  }


def _special_fields(
  found: _Class, model: VisionTransformer, tensors: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """The fields of config.json that only some families have."""
  names, gated = found.names, model.mlp == 'swiglu'
  if names in (VIT, DEIT):
    pooler = {'pooler_output_size': model.pre_logits} if model.pre_logits else {}
    return {**_DROPOUT, 'qkv_bias': True, **pooler}
  registers = {'num_register_tokens': model.registers}
  if names is DINOV2 or names is DINOV2_WITH_REGISTERS:
    ratio = {'mlp_ratio': _mlp_ratio(model), 'use_swiglu_ffn': gated, 'qkv_bias': True}
    return {**_DROPOUT, **ratio, **({} if names is DINOV2 else registers)}
  if names is DINOV3:
    assert model.rotary is not None
    biases = {
      f'{name}_bias': any(n.endswith(f'.{name[0]}_proj.bias') for n in tensors)
      for name in ('query', 'key', 'value')
    }
    gate = {'use_gated_mlp': gated} | ({'hidden_act': 'silu'} if gated else {})
    return {**registers, **biases, **gate, 'rope_theta': model.rotary.base}
  if names is SIGLIP:
    return {'vision_use_head': model.pool == 'map'}
  return {'projection_dim': model.num_classes} if found.head == 'visual_projection' else {}


def _label_fields(model: VisionTransformer, metadata: ModelMetadata) -> dict[str, Any]:
  labels = metadata.labels or placeholder_labels(model.num_classes)
  return {
    'problem_type': _PROBLEMS[metadata.loss],
    'id2label': {str(i): label for i, label in enumerate(labels)},
    'label2id': {label: i for i, label in enumerate(labels)},
  }
