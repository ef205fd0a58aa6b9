"""The class of Hugging Face Transformers that has the architecture of a model.

Each of them has one architecture, or few. A model is written as the first class in
the table that has its own, whatever it was read from.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_jax.models.build import Model, architecture
from vit_jax.models.rotary import ROTARIES
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.layouts import pytorch
from vit_jax.weights.layouts.hugging_face_names import (
  AIMV2,
  CLIP,
  DEIT,
  DINOV2,
  DINOV2_WITH_REGISTERS,
  DINOV3,
  SIGLIP,
  TIPS,
  VIT,
  Names,
)

_DINO_ROTARY = ROTARIES['dinov3']
# The features that a class has unless its row says otherwise, as `_features` names them.
_PLAIN = dict(
  pool='token',
  pre_logits=False,
  class_token=False,
  registers=False,
  rotary=False,
  patch_bias=True,
  patch_norm=False,
  block_bias=True,
  pre_norm=False,
  norm='layer',
  mlp='gelu',
  layer_scale=False,
  final_norm='encoder',
  position_embedding='1d',
  position_entry='stem',
  axial=False,
)


@dataclasses.dataclass(frozen=True)
class TransformersClass:
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


_WITH_RATIO = ('dinov2', 'dinov2_with_registers', 'tipsv2_vision_model')
_DINO = dict(layer_scale=True, mlp=('gelu', 'swiglu'))
_DINOV3 = dict(registers=(False, True), rotary=True, position_embedding='none')
_CLIP = dict(patch_bias=False, pre_norm=True)
# Without a head the classes of ViT and DeiT with a head of no classes, which give its input:
# their encoders alone have a pooler.
_CLASSES = (
  TransformersClass('ViTForImageClassification', 'vit', VIT, 'classifier'),
  TransformersClass('ViTModel', 'vit', VIT, '', dict(pre_logits=True), prefix=''),
  TransformersClass(
    'DeiTForImageClassificationWithTeacher', 'deit', DEIT, 'cls_classifier', dict(pool='distilled')
  ),
  TransformersClass('DeiTForImageClassification', 'deit', DEIT, 'classifier', dict(registers=True)),
  TransformersClass(
    'DeiTModel', 'deit', DEIT, '', dict(registers=True, pre_logits=True), prefix=''
  ),
  TransformersClass(
    'Dinov2ForImageClassification', 'dinov2', DINOV2, 'classifier', _DINO | dict(pool='token_gap')
  ),
  TransformersClass('Dinov2Model', 'dinov2', DINOV2, '', _DINO, prefix=''),
  TransformersClass(
    'Tipsv2VisionModel', 'tipsv2_vision_model', TIPS, '', _DINO | dict(registers=True), prefix=''
  ),
  TransformersClass(
    'Dinov2WithRegistersForImageClassification',
    'dinov2_with_registers',
    DINOV2_WITH_REGISTERS,
    'classifier',
    _DINO | dict(registers=True, pool='token_gap'),
  ),
  TransformersClass(
    'Dinov2WithRegistersModel',
    'dinov2_with_registers',
    DINOV2_WITH_REGISTERS,
    '',
    _DINO | dict(registers=True),
    prefix='',
  ),
  TransformersClass('DINOv3ViTModel', 'dinov3_vit', DINOV3, '', _DINO | _DINOV3, prefix=''),
  TransformersClass(
    'SiglipForImageClassification',
    'siglip',
    SIGLIP,
    'classifier',
    dict(pool='gap'),
    is_nested=True,
    is_square=True,
  ),
  TransformersClass(
    'SiglipVisionModel',
    'siglip_vision_model',
    SIGLIP,
    '',
    dict(pool=('map', 'gap')),
    is_square=True,
  ),
  TransformersClass(
    'CLIPVisionModelWithProjection',
    'clip_vision_model',
    CLIP,
    'visual_projection',
    _CLIP,
    is_square=True,
  ),
  TransformersClass('CLIPVisionModel', 'clip_vision_model', CLIP, '', _CLIP, is_square=True),
  TransformersClass(
    'Aimv2VisionModel',
    'aimv2_vision_model',
    AIMV2,
    '',
    dict(
      pool=('attention', 'gap'), patch_norm=True, block_bias=(False, True), norm='rms', mlp='swiglu'
    ),
    is_square=True,
    prefix='',
  ),
  TransformersClass(
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
  'patch_norm': 'a normalization of its patches',
  'block_bias': 'biases in its blocks',
  'pre_norm': 'a LayerNorm before its blocks',
  'norm': 'the normalizations "{}"',
  'mlp': 'MLPs of the kind {}',
  'layer_scale': 'LayerScale',
  'final_norm': 'the final LayerNorm "{}"',
  'position_embedding': '{} position embeddings',
  'position_entry': 'position embeddings in its {}',
  'axial': 'axial blocks',
}


def _features(model: VisionTransformer) -> dict[str, Any]:
  fields = architecture(model)
  features = {name: fields[name] for name in _PLAIN}
  features |= {
    name: bool(fields[name]) for name in ('pre_logits', 'registers', 'layer_scale', 'rotary')
  }
  if model.pool == 'map' and not model.pool_mlp:
    features['pool'] = 'attention'
  if model.rotary is not None and dataclasses.replace(model.rotary, base=100.0) != _DINO_ROTARY:
    return features | {'rotary': 'other'}
  return features


def _differences(
  each: TransformersClass, model: VisionTransformer, size: tuple[int, int]
) -> list[str]:
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
  if each.names in (DEIT, TIPS) and each.features.get('registers') and model.registers > 1:
    differences.append(f'{model.registers} registers')
  if each.is_square and size[0] != size[1]:
    differences.append('images that are not square')
  is_integer = each.names is not TIPS
  if each.model_type in _WITH_RATIO and mlp_ratio(model, is_integer) is None:
    differences.append(f'MLPs of {model.mlp_dim} hidden units')
  return differences


def _describe(name: str, value: Any) -> str:
  if value is False or value is None:
    no = {'patch_bias': 'patches without bias', 'class_token': 'no class token'}
    return no.get(name, f'no {name.replace("_", " ")}')
  return _SAYINGS[name].format('with bias' if value is True else value)


def find_class(model: Model, size: tuple[int, int]) -> tuple[TransformersClass | None, str]:
  """(the class of a model, ''), or (None, what keeps it from the one that is most like it)."""
  if not isinstance(model, VisionTransformer):
    kinds = {'BiTResNet': 'a ResNet', 'MlpMixer': 'token-mixing MLPs', 'DETR': 'a ResNet'}
    return None, f'{kinds[type(model).__name__]}, which no class of Transformers has'
  if model.resnet_width:
    return None, 'a ResNet, which no class of Transformers has'
  compared = [(_differences(each, model, size), each) for each in _CLASSES]
  differences, nearest = min(compared, key=lambda pair: len(pair[0]))
  if not differences:
    return nearest, ''
  return None, f'{" and ".join(differences)}, which {nearest.name} does not support'


def unsupported_feature(model: Model, image_size: tuple[int, int]) -> str | None:
  """What keeps a model from being written, 'a ResNet, which …'; None: nothing."""
  return find_class(model, image_size)[1] or None


def mlp_ratio(model: VisionTransformer, is_integer: bool = True) -> float | None:
  """The `mlp_ratio` of DINOv2's configs, whose gated MLPs have 2/3 of the units (their code).

  None: there is none, or no integer where it must be one; a fraction is for plain MLPs only.
  """
  if model.mlp != 'swiglu':
    if model.mlp_dim % model.width == 0:
      return model.mlp_dim // model.width
    return None if is_integer else pytorch.ratio_of_widths(model.width, model.mlp_dim)
  for ratio in range(1, 2 * model.mlp_dim // model.width + 2):
    if (int(model.width * ratio * 2 / 3) + 7) // 8 * 8 == model.mlp_dim:
      return ratio
  return None
