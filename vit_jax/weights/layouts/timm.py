"""timm's layout: its `VisionTransformer`, hybrids of it with a ResNet, and BiT's `ResNetV2`."""

import re
from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from vit_jax.config import height_width
from vit_jax.errors import UserError
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts import pytorch
from vit_jax.weights.layouts.released import ATTENTION, POSITIONS, flatten
from vit_jax.weights.metadata import DEFAULT_CROP_FRACTION, HALF, ModelMetadata

# Name in timm: the linen parameter.
_PARAMETERS = {'cls_token': 'cls', 'pos_embed': POSITIONS, 'attn_pool.latent': 'MAPHead_0/probe'}
# Name of a layer in timm: the linen modules that it holds.
_VIT = {
  'patch_embed.proj': ('embedding',),
  'norm': ('Transformer/encoder_norm',),
  'head': ('head',),
  'attn_pool.norm': ('MAPHead_0/LayerNorm_0',),
  'attn_pool.mlp.fc1': ('MAPHead_0/MlpBlock_0/Dense_0',),
  'attn_pool.mlp.fc2': ('MAPHead_0/MlpBlock_0/Dense_1',),
  'attn_pool.q': (f'MAPHead_0/{ATTENTION}/query',),
  'attn_pool.kv': (f'MAPHead_0/{ATTENTION}/key', f'MAPHead_0/{ATTENTION}/value'),
  'attn_pool.proj': (f'MAPHead_0/{ATTENTION}/out',),
}
_HYBRID_STEM = {  # of a hybrid without further stages
  'patch_embed.backbone.conv': ('conv_root',),
  'patch_embed.backbone.norm': ('gn_root',),
}
_HYBRID_STAGES = {
  'patch_embed.backbone.stem.conv': ('conv_root',),
  'patch_embed.backbone.stem.norm': ('gn_root',),
}
_BIT = {'stem.conv': ('root_block/conv_root',), 'norm': ('norm-pre-head',), 'head.fc': ('head',)}
_BLOCK = {
  'norm1': ('LayerNorm_0',),
  'norm2': ('LayerNorm_1',),
  'attn.qkv': (f'{ATTENTION}/query', f'{ATTENTION}/key', f'{ATTENTION}/value'),
  'attn.proj': (f'{ATTENTION}/out',),
  'mlp.fc1': ('MlpBlock_0/Dense_0',),
  'mlp.fc2': ('MlpBlock_0/Dense_1',),
}
_UNIT = {
  **{f'conv{i}': f'conv{i}' for i in (1, 2, 3)},
  **{f'norm{i}': f'gn{i}' for i in (1, 2, 3)},
  'downsample.conv': 'conv_proj',
  'downsample.norm': 'gn_proj',
}
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
  tensors: Mapping[str, Tensor], layout: str, prefix: str, num_heads: int | None, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
  """Tensors of timm under the names and in the shapes of linen.

  Args:
    tensors: {name in the file: tensor}.
    layout, prefix: as `detect` returns them.
    num_heads: K; None: that of the published model of the same width.
    source: the name of the file, for error messages.

  Returns:
    {linen name: tensor}, the names in the file that lie outside of `prefix`, and notes on what
    was changed.

  Raises:
    UserError: for tensors that no supported model has, or shapes that contradict each other.
  """
  tensors, ignored = pytorch.split_prefix(tensors, prefix)
  if layout == 'timm BiT':
    return pytorch.translate(tensors, _bit_to_linen, 0, layout, source), ignored, ()
  heads = num_heads or pytorch.published_num_heads(tensors.get('pos_embed'), source)
  scales = {name: x for name, x in tensors.items() if _LAYER_SCALE.fullmatch(name)}
  layers = {name: x for name, x in tensors.items() if name not in scales}
  linen = pytorch.translate(layers, _vit_to_linen, heads, layout, source)
  if not scales:
    return linen, ignored, ()
  return _fold_layer_scale(linen, scales, source), ignored, ('LayerScale is folded into layers',)


def _fold_layer_scale(
  linen: Mapping[str, Tensor], scales: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
  """Multiplies LayerScale (arXiv 2103.17239) into the layer before it."""
  folded = dict(linen)
  for name, scale in scales.items():
    match = _LAYER_SCALE.fullmatch(name)
    assert match is not None
    layer = {'1': f'{ATTENTION}/out', '2': 'MlpBlock_0/Dense_1'}[match[2] or match[3]]
    for leaf in ('kernel', 'bias'):
      parameter = f'Transformer/encoderblock_{match[1]}/{layer}/{leaf}'
      tensor = folded.get(parameter)
      if tensor is None or tensor.shape[-1:] != scale.shape:
        raise UserError(f'{source} has a LayerScale that does not match its {parameter}.')
      folded[parameter] = _scaled(tensor, scale)
  return folded


def _scaled(tensor: Tensor, scale: Tensor) -> Tensor:
  return tensor.map(tensor.shape, lambda x: np.asarray(x, np.float32) * scale.read())


def _vit_to_linen(name: str, tensor: Tensor, num_heads: int) -> dict[str, Tensor] | None:
  if name in _PARAMETERS:
    return {_PARAMETERS[name]: tensor}
  layer, _, leaf = name.rpartition('.')
  if match := re.fullmatch(r'blocks\.(\d+)\.(.*)', layer):
    block = f'Transformer/encoderblock_{int(match[1])}'
    modules = tuple(f'{block}/{module}' for module in _BLOCK.get(match[2], ()))
  elif layer.startswith('patch_embed.backbone.stages.'):
    modules = _unit_modules(layer.removeprefix('patch_embed.backbone.'), 'block{}/unit{}')
  else:
    modules = (_VIT | _HYBRID_STEM | _HYBRID_STAGES).get(layer, ())
  if not modules or leaf not in ('weight', 'bias'):
    return None
  return pytorch.layer_to_linen(modules, leaf, tensor, num_heads)


def _bit_to_linen(name: str, tensor: Tensor, num_heads: int) -> dict[str, Tensor] | None:
  layer, _, leaf = name.rpartition('.')
  modules = _unit_modules(layer, 'block{}/unit{:02d}') or _BIT.get(layer, ())
  if not modules or leaf not in ('weight', 'bias'):
    return None
  if modules == ('head',) and len(tensor.shape) == 4:  # a 1 x 1 convolution
    tensor = tensor.map(tensor.shape[:2], lambda x: x[:, :, 0, 0])
  return pytorch.layer_to_linen(modules, leaf, tensor, num_heads)


def _unit_modules(layer: str, unit_name: str) -> tuple[str, ...]:
  """'stages.0.blocks.1.conv2' -> ('block1/unit2/conv2',); () for another name."""
  match = re.fullmatch(r'stages\.(\d+)\.blocks\.(\d+)\.(.*)', layer)
  if match is None or match[3] not in _UNIT:
    return ()
  unit = unit_name.format(int(match[1]) + 1, int(match[2]) + 1)
  return (f'{unit}/{_UNIT[match[3]]}',)


def is_config(config: Mapping[str, Any]) -> bool:
  """Whether a config.json is timm's."""
  return 'architecture' in config or 'pretrained_cfg' in config


def read_config(config: Mapping[str, Any]) -> ModelMetadata:
  """The metadata in timm's config.json.

  Raises:
    LookupError, TypeError, ValueError, …: for a damaged one (`metadata.damage_explained`).
  """
  pretrained = config.get('pretrained_cfg') or {}
  arguments = config.get('model_args') or {}
  size = arguments.get('img_size') or (pretrained.get('input_size') or [3, 224, 224])[1:]
  return ModelMetadata(
    image_size=height_width(size if isinstance(size, int) else tuple(size)),
    crop_fraction=pretrained.get('crop_pct') or DEFAULT_CROP_FRACTION,
    labels=config.get('label_names') or pretrained.get('label_names'),
    num_heads=arguments.get('num_heads'),
    gelu=pytorch.GELUS[arguments.get('act_layer', 'gelu_tanh')],
    mean=tuple(map(float, pretrained.get('mean') or HALF)),
    std=tuple(map(float, pretrained.get('std') or HALF)),
  )


# --- writing --------------------------------------------------------------------------------


def from_linen(params: Any) -> dict[str, np.ndarray]:
  """A parameter tree as the state dict of the same model in timm.

  Raises:
    UserError: for a model with `pre_logits`, which timm does not have.
  """
  tensors = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
  if 'pre_logits/kernel' in tensors:
    raise UserError(
      'timm has no pre_logits layer; write an .npz, or replace the head (num_classes), which '
      'drops that layer.'
    )
  is_bit = 'root_block/conv_root/kernel' in tensors
  state_dict = _bit_from_linen(tensors) if is_bit else _vit_from_linen(tensors)
  stages = 'stages' if is_bit else 'patch_embed.backbone.stages'
  for unit in pytorch.unit_names(tensors):
    stage, block = (int(number) - 1 for number in re.findall(r'\d+', unit))
    for name, module in _UNIT.items():
      layer = f'{stages}.{stage}.blocks.{block}.{name}'
      state_dict |= pytorch.layer_from_linen(tensors, layer, (f'{unit}/{module}',))
  return state_dict


def _vit_from_linen(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  state_dict = {name: tensors[linen] for name, linen in _PARAMETERS.items() if linen in tensors}
  layers = _VIT | (_HYBRID_STAGES if pytorch.unit_names(tensors) else _HYBRID_STEM)
  for i in range(pytorch.block_count(tensors)):
    for name, modules in _BLOCK.items():
      prefixed = tuple(f'Transformer/encoderblock_{i}/{module}' for module in modules)
      layers[f'blocks.{i}.{name}'] = prefixed
  for name, modules in layers.items():
    state_dict |= pytorch.layer_from_linen(tensors, name, modules)
  return state_dict


def _bit_from_linen(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  state_dict = {}
  for name, modules in _BIT.items():
    state_dict |= pytorch.layer_from_linen(tensors, name, modules)
  if 'head.fc.weight' in state_dict:
    state_dict['head.fc.weight'] = state_dict['head.fc.weight'][:, :, None, None]
  return state_dict
