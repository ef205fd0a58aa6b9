"""timm's layout: its `VisionTransformer`, hybrids with a ResNet, `MlpMixer`, BiT's `ResNetV2`."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.build import Model
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts import pytorch, timm_vit
from vit_jax.weights.layouts.released import flatten

_MIXER = {'stem.proj': 'stem', 'norm': 'pre_head_layer_norm', 'head': 'head'}
_MIXER_MARKER = 'blocks.0.mlp_tokens.fc1.weight'
_MIXER_BLOCK = {
  'norm1': 'LayerNorm_0',
  'norm2': 'LayerNorm_1',
  'mlp_tokens.fc1': 'token_mixing/Dense_0',
  'mlp_tokens.fc2': 'token_mixing/Dense_1',
  'mlp_channels.fc1': 'channel_mixing/Dense_0',
  'mlp_channels.fc2': 'channel_mixing/Dense_1',
}
_BACKBONE = 'patch_embed.backbone.'  # the ResNet of a hybrid: only a stem, or with stages
_STEM = {f'{_BACKBONE}conv': 'conv_root', f'{_BACKBONE}norm': 'gn_root'}
_STEM_OF_STAGES = {f'{_BACKBONE}stem.conv': 'conv_root', f'{_BACKBONE}stem.norm': 'gn_root'}
_BIT = {'stem.conv': 'root_block/conv_root', 'norm': 'norm-pre-head', 'head.fc': 'head'}
_UNIT = {'downsample.conv': 'conv_proj', 'downsample.norm': 'gn_proj'}
for _i in '123':
  _UNIT |= {f'conv{_i}': f'conv{_i}', f'norm{_i}': f'gn{_i}'}


# --- reading --------------------------------------------------------------------------------


def detect(names: Collection[str]) -> tuple[str, list[str]] | None:
  """('timm' or 'timm BiT', prefixes of all names, best first) for timm's names, else None."""
  for layout, marker in (
    ('timm', 'patch_embed.proj.weight'),
    ('timm', _MIXER_MARKER),
    ('timm BiT', 'stem.conv.weight'),
  ):
    if prefixes := pytorch.find_prefixes(names, marker):
      return layout, prefixes
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
  if _MIXER_MARKER in tensors:
    linen = pytorch.to_linen(tensors, {}, _mixer_module, 0, 'timm Mixer', source)
    _refuse_gated_mlp(linen, 'MixerBlock_0/token_mixing', 'an MLP-Mixer', source)
    return linen, ()
  if any(name.startswith(_BACKBONE) for name in tensors):
    return pytorch.to_linen(
      tensors, timm_vit.PARAMETERS, _hybrid_modules, num_heads, 'timm', source
    ), ()
  return timm_vit.to_linen(tensors, num_heads, source)


def _refuse_gated_mlp(linen: Mapping[str, Tensor], mlp: str, model: str, source: str) -> None:
  """Raises `UserError` for timm's `SwiGLUPacked` or `GluMlp`, which have the names of an MLP."""
  first, second = (linen.get(f'{mlp}/Dense_{i}/kernel') for i in (0, 1))
  if first and second and first.shape[-1:] == tuple(2 * side for side in second.shape[:1]):
    raise UserError(
      f'{source} holds {model} with a gated MLP (SwiGLU), which vit_jax does not support.'
    )


def _hybrid_modules(layer: str) -> str | None:
  if layer.startswith(f'{_BACKBONE}stages.'):
    return _unit_module(layer.removeprefix(_BACKBONE), 'block{}/unit{}')
  return (_STEM | _STEM_OF_STAGES).get(layer) or timm_vit.find_modules(layer)


def _mixer_module(layer: str) -> str | None:
  if match := re.fullmatch(r'blocks\.(\d+)\.(.*)', layer):
    module = _MIXER_BLOCK.get(match[2])
    return module and f'MixerBlock_{int(match[1])}/{module}'
  return _MIXER.get(layer)


def _bit_modules(layer: str) -> str | None:
  return _unit_module(layer, 'block{}/unit{:02d}') or _BIT.get(layer)


def _unit_module(layer: str, unit_name: str) -> str | None:
  """'stages.0.blocks.1.conv2' -> 'block1/unit2/conv2'; None for another name."""
  match = re.fullmatch(r'stages\.(\d+)\.blocks\.(\d+)\.(.*)', layer)
  if match is None or match[3] not in _UNIT:
    return None
  return f'{unit_name.format(int(match[1]) + 1, int(match[2]) + 1)}/{_UNIT[match[3]]}'


# --- writing --------------------------------------------------------------------------------


def _unsupported_feature(params: Any) -> str | None:
  """The attention of a model with a ResNet, which no model of timm has; None: no attention."""
  modules = {module for name in flatten(params) for module in name.split('/')}
  names = {
    'input_projection': "classifier of DETR's encoder",
    'local_attention': 'BiT with local attention',
    'height_attention': 'BiT with axial attention',
    'non_local': 'BiT with non-local blocks',
  }
  return next((text for module, text in names.items() if module in modules), None)


def from_linen(model: Model, params: Any) -> dict[str, np.ndarray]:
  """A parameter tree as the state dict of the same model in timm; none has `pre_logits`."""
  if 'pre_logits' in params:
    raise UserError(
      'timm has no pre_logits layer; write an .npz, or replace the head (num_classes), which '
      'drops that layer.'
    )
  if 'stem' in params:
    layers = dict(_MIXER)
    for i in range(sum(name.startswith('MixerBlock_') for name in params)):
      layers |= {
        f'blocks.{i}.{n}': f'MixerBlock_{i}/{module}' for n, module in _MIXER_BLOCK.items()
      }
    return pytorch.from_linen(params, {}, layers)
  if feature := _unsupported_feature(params):
    raise UserError(f'timm has no {feature}; write an .npz, or a vit_jax folder (--layout=model).')
  if isinstance(model, VisionTransformer):
    if feature := timm_vit.unsupported_feature(model, params):
      raise UserError(
        f'The model has {feature}, which timm does not support; write an .npz, or a vit_jax folder '
        '(--layout=model).'
      )
    if not model.resnet_width:
      return timm_vit.from_linen(model, params)
  stages = [name for name in params if name.startswith('block')]
  units = [f'{stage}/{unit}' for stage in stages for unit in params[stage]]
  is_bit = 'root_block' in params
  layers = dict(_BIT) if is_bit else timm_vit.LAYERS | (_STEM_OF_STAGES if units else _STEM)
  for i in range(pytorch.count_blocks(params)):
    layers |= pytorch.block_layers('blocks.', timm_vit.PLAIN_BLOCK, i)
  for unit in units:
    stage, block = (int(number) - 1 for number in re.findall(r'\d+', unit))
    prefix = f'{"" if is_bit else _BACKBONE}stages.{stage}.blocks.{block}.'
    layers |= {f'{prefix}{name}': f'{unit}/{module}' for name, module in _UNIT.items()}
  state_dict = pytorch.from_linen(params, timm_vit.PARAMETERS, layers)
  if is_bit and 'head.fc.weight' in state_dict:
    state_dict['head.fc.weight'] = state_dict['head.fc.weight'][:, :, None, None]
  return state_dict
