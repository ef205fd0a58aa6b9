"""timm's layout: its `VisionTransformer`, hybrids of it with a ResNet, and BiT's `ResNetV2`."""

import re
from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from vit_jax.config import Preprocessing, height_width
from vit_jax.errors import UserError
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts import pytorch
from vit_jax.weights.layouts.released import ATTENTION, POSITIONS
from vit_jax.weights.metadata import ModelMetadata

# Name in timm: the linen parameter.
_PARAMETERS = {'cls_token': 'cls', 'pos_embed': POSITIONS, 'attn_pool.latent': 'MAPHead_0/probe'}
# Name of a layer in timm: the linen modules that it holds.
_VIT = {
  'patch_embed.proj': 'embedding',
  'norm': 'Transformer/encoder_norm',
  'head': 'head',
  'attn_pool.norm': 'MAPHead_0/LayerNorm_0',
  'attn_pool.mlp.fc1': 'MAPHead_0/MlpBlock_0/Dense_0',
  'attn_pool.mlp.fc2': 'MAPHead_0/MlpBlock_0/Dense_1',
  'attn_pool.q': f'MAPHead_0/{ATTENTION}/query',
  'attn_pool.kv': f'MAPHead_0/{ATTENTION}/key MAPHead_0/{ATTENTION}/value',
  'attn_pool.proj': f'MAPHead_0/{ATTENTION}/out',
}
_BLOCK = {
  'norm1': 'LayerNorm_0',
  'norm2': 'LayerNorm_1',
  'attn.qkv': f'{ATTENTION}/query {ATTENTION}/key {ATTENTION}/value',
  'attn.proj': f'{ATTENTION}/out',
  'mlp.fc1': 'MlpBlock_0/Dense_0',
  'mlp.fc2': 'MlpBlock_0/Dense_1',
}
_BACKBONE = 'patch_embed.backbone.'  # the ResNet of a hybrid: only a stem, or with stages
_STEM = {f'{_BACKBONE}conv': 'conv_root', f'{_BACKBONE}norm': 'gn_root'}
_STEM_OF_STAGES = {f'{_BACKBONE}stem.conv': 'conv_root', f'{_BACKBONE}stem.norm': 'gn_root'}
_BIT = {'stem.conv': 'root_block/conv_root', 'norm': 'norm-pre-head', 'head.fc': 'head'}
_UNIT = {'downsample.conv': 'conv_proj', 'downsample.norm': 'gn_proj'}
for _i in '123':
  _UNIT |= {f'conv{_i}': f'conv{_i}', f'norm{_i}': f'gn{_i}'}
# Of pixels in [0, 1]; timm's default (IMAGENET_DEFAULT_MEAN in timm/data/constants.py).
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LAYER_SCALE = re.compile(r'blocks\.(\d+)\.(?:ls([12])\.gamma|gamma_([12]))')


# --- reading --------------------------------------------------------------------------------


def detect(names: Container[str]) -> tuple[str, str] | None:
  """('timm' or 'timm BiT', prefix of all names) if the names are timm's, else None."""
  for prefix in pytorch.PREFIXES:
    if f'{prefix}patch_embed.proj.weight' in names:
      return 'timm', prefix
    if f'{prefix}stem.conv.weight' in names:
      return 'timm BiT', prefix
  return None


def to_linen(
  tensors: Mapping[str, Tensor], num_heads: int | None, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """Translates tensors to linen's names and shapes; also returns notes on what was changed.

  Raises:
    UserError: for tensors that no supported model has, or shapes that contradict each other.
  """
  if 'stem.conv.weight' in tensors:
    return pytorch.to_linen(tensors, {}, _bit_modules, 0, 'timm BiT', source), ()
  scales = {name: match for name in tensors if (match := _LAYER_SCALE.fullmatch(name))}
  layers = {name: x for name, x in tensors.items() if name not in scales}
  linen = pytorch.to_linen(layers, _PARAMETERS, _vit_modules, num_heads, 'timm', source)
  for name, match in scales.items():
    _fold_layer_scale(linen, match, tensors[name], source)
  return linen, ('LayerScale is folded into layers',) if scales else ()


def _fold_layer_scale(
  linen: dict[str, Tensor], match: re.Match[str], scale: Tensor, source: str
) -> None:
  """Multiplies LayerScale (arXiv 2103.17239) into the layer before it."""
  layer = f'{ATTENTION}/out' if '1' in match.groups()[1:] else 'MlpBlock_0/Dense_1'
  for leaf in ('kernel', 'bias'):
    parameter = f'Transformer/encoderblock_{match[1]}/{layer}/{leaf}'
    tensor = linen.get(parameter)
    if tensor is None or tensor.shape[-1:] != scale.shape:
      raise UserError(f'{source} has a LayerScale that does not match its {parameter}.')
    linen[parameter] = tensor.map(tensor.shape, lambda x: np.asarray(x, np.float32) * scale.read())


def _vit_modules(layer: str) -> str | None:
  if match := re.fullmatch(r'blocks\.(\d+)\.(.*)', layer):
    return pytorch.block_layers('blocks.', _BLOCK, int(match[1])).get(layer)
  if layer.startswith(f'{_BACKBONE}stages.'):
    return _unit_module(layer.removeprefix(_BACKBONE), 'block{}/unit{}')
  return (_VIT | _STEM | _STEM_OF_STAGES).get(layer)


def _bit_modules(layer: str) -> str | None:
  return _unit_module(layer, 'block{}/unit{:02d}') or _BIT.get(layer)


def _unit_module(layer: str, unit_name: str) -> str | None:
  """'stages.0.blocks.1.conv2' -> 'block1/unit2/conv2'; None for another name."""
  match = re.fullmatch(r'stages\.(\d+)\.blocks\.(\d+)\.(.*)', layer)
  if match is None or match[3] not in _UNIT:
    return None
  return f'{unit_name.format(int(match[1]) + 1, int(match[2]) + 1)}/{_UNIT[match[3]]}'


def is_config(config: Mapping[str, Any]) -> bool:
  """Whether a config.json is timm's."""
  return 'architecture' in config or 'pretrained_cfg' in config


def read_config(config: Mapping[str, Any]) -> ModelMetadata:
  """The metadata in timm's config.json; call it within `damage_explained`."""
  pretrained = config.get('pretrained_cfg') or {}
  arguments = config.get('model_args') or {}
  size = arguments.get('img_size') or (pretrained.get('input_size') or [3, 224, 224])[1:]
  return ModelMetadata(
    image_size=height_width(size if isinstance(size, int) else tuple(size)),
    preprocessing=_read_preprocessing(pretrained),
    labels=config.get('label_names') or pretrained.get('label_names'),
    num_heads=arguments.get('num_heads'),
    gelu=pytorch.GELUS[arguments.get('act_layer', 'gelu_tanh')],
    mean=tuple(map(float, pretrained.get('mean') or _IMAGENET_MEAN)),
    std=tuple(map(float, pretrained.get('std') or _IMAGENET_STD)),
  )


def _read_preprocessing(pretrained: Mapping[str, Any]) -> Preprocessing:
  """What timm's `create_transform` makes of `pretrained_cfg`; its defaults where that is silent."""
  rules: dict[str, Any] = {'center': 'crop', 'squash': 'squash', 'border': 'border'}
  return Preprocessing(
    resize=rules[pretrained.get('crop_mode') or 'center'],
    crop_fraction=float(pretrained.get('crop_pct') or 0.875),
    interpolation=pretrained.get('interpolation') or 'bicubic',
    rounding='torchvision',
    fill=tuple(round(255 * x) for x in pretrained.get('mean') or _IMAGENET_MEAN),
  )


# --- writing --------------------------------------------------------------------------------


def from_linen(params: Any) -> dict[str, np.ndarray]:
  """A parameter tree as the state dict of the same model in timm; none has `pre_logits`."""
  if 'pre_logits' in params:
    raise UserError(
      'timm has no pre_logits layer; write an .npz, or replace the head (num_classes), which '
      'drops that layer.'
    )
  stages = [name for name in params if name.startswith('block')]
  units = [f'{stage}/{unit}' for stage in stages for unit in params[stage]]
  is_bit = 'root_block' in params
  layers = dict(_BIT) if is_bit else _VIT | (_STEM_OF_STAGES if units else _STEM)
  for i in range(pytorch.count_blocks(params)):
    layers |= pytorch.block_layers('blocks.', _BLOCK, i)
  for unit in units:
    stage, block = (int(number) - 1 for number in re.findall(r'\d+', unit))
    prefix = f'{"" if is_bit else _BACKBONE}stages.{stage}.blocks.{block}.'
    layers |= {f'{prefix}{name}': f'{unit}/{module}' for name, module in _UNIT.items()}
  state_dict = pytorch.from_linen(params, _PARAMETERS, layers)
  if is_bit and 'head.fc.weight' in state_dict:
    state_dict['head.fc.weight'] = state_dict['head.fc.weight'][:, :, None, None]
  return state_dict
