"""The tensors of timm's `VisionTransformer`, `VisionTransformerDistilled` and `Eva`.

What they leave out is zero here: biases of queries, keys and values, positions of the class token.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts import pytorch
from vit_jax.weights.layouts.released import ATTENTION, POSITIONS, flatten, unflatten
from vit_jax.weights.layouts.timm_architectures import class_of

# Name in timm: the linen parameter.
PARAMETERS = {
  'cls_token': 'cls',
  'dist_token': 'distillation',
  'reg_token': 'registers',
  'pos_embed': POSITIONS,
  'attn_pool.latent': 'MAPHead_0/probe',
}
# Name of a layer in timm: the linen modules that it holds.
LAYERS = {
  'patch_embed.proj': 'embedding',
  'patch_embed.norm': 'patch_norm',
  'norm_pre': 'Transformer/pre_norm',
  'norm': 'Transformer/encoder_norm',
  'fc_norm': 'pool_norm',
  'head': 'head',
  'head_dist': 'head_distillation',
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
  'attn.proj': f'{ATTENTION}/out',
  'mlp.fc2': 'MlpBlock_0/Dense_1',
  'ls1': 'LayerScale_0',
  'ls2': 'LayerScale_1',
}
_FUSED = {'attn.qkv': f'{ATTENTION}/query {ATTENTION}/key {ATTENTION}/value'}
_SEPARATE = {f'attn.{name[0]}_proj': f'{ATTENTION}/{name}' for name in ('query', 'key', 'value')}
_MLP = {'mlp.fc1': 'MlpBlock_0/Dense_0'}
_GATED = {'mlp.fc1_g': 'MlpBlock_0/gate', 'mlp.fc1_x': 'MlpBlock_0/Dense_0'}
_PACKED_NAME = 'mlp.fc1_packed'  # here only: timm calls it fc1, too
_PACKED = {_PACKED_NAME: 'MlpBlock_0/gate MlpBlock_0/Dense_0'}  # SwiGLUPacked: act(first) * second
_NORM = {'mlp.norm': 'MlpBlock_0/LayerNorm_0'}
_RMS = {'norm1': 'RMSNorm_0', 'norm2': 'RMSNorm_1'}
PLAIN_BLOCK = _BLOCK | _FUSED | _MLP
_ALL_OF_BLOCK = _BLOCK | _FUSED | _SEPARATE | _MLP | _GATED | _PACKED | _NORM
# Leaves that are neither 'weight' nor 'bias', by what they are called here.
_TO_LEAVES = {
  r'\.ls([12])\.gamma$': r'.ls\1.weight',
  r'\.gamma_([12])$': r'.ls\1.weight',
  r'\.([qv])_bias$': r'.\1_proj.bias',
}
_IGNORED = re.compile(
  r'mask_token|rope_embed\.periods|.*\.bias_mask|.*rope\.freqs_(cos|sin)$|local_cls_norm\.|decoder_|'
  r'lm_head\.|(dino|ibot)_head\.'
)
POOL_HEADS_OF_PERCEPTION_ENCODER = 8


# --- reading --------------------------------------------------------------------------------


def to_linen(
  tensors: Mapping[str, Tensor], num_heads: int | None, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """As `timm.to_linen`, of a Vision Transformer."""
  packed = _packed_blocks(tensors)
  named, ignored = {}, unused(tensors)
  for name, tensor in tensors.items():
    if name in ignored:
      continue
    for pattern, leaf in _TO_LEAVES.items():
      name = re.sub(pattern, leaf, name)
    block, _, rest = name.partition('.mlp.fc1.')
    named[f'{block}.{_PACKED_NAME}.{rest}' if rest and block in packed else name] = tensor
  if {'norm.weight', 'fc_norm.weight'} <= named.keys():
    raise UserError(
      f'{source} holds a Vision Transformer with a normalization before and one after pooling '
      '(fc_norm), which vit_jax does not support.'
    )
  linen = pytorch.to_linen(named, PARAMETERS, find_modules, num_heads, 'timm', source)
  if 'patch_norm/scale' in linen:  # AIMv2, the only one that families.py lets pass
    linen = _with_rms_norms(linen)
  else:
    linen = pytorch.with_biases(_without_masked_biases(linen, tensors), source)
    pytorch.check_biases(linen, source)
  if 'norm_pre.weight' in named and 'attn_pool.latent' in named:
    linen = with_pool_heads(linen, POOL_HEADS_OF_PERCEPTION_ENCODER, source)
  return linen, ()


def unused(names: Collection[str]) -> tuple[str, ...]:
  """The names of parts of pretraining, and of buffers."""
  return tuple(filter(_IGNORED.match, names))


def _with_rms_norms(linen: Mapping[str, Tensor]) -> dict[str, Tensor]:
  return {re.sub(r'/LayerNorm_(\d/scale)$', r'/RMSNorm_\1', name): x for name, x in linen.items()}


def _without_masked_biases(
  linen: Mapping[str, Tensor], names: Collection[str]
) -> dict[str, Tensor]:
  """The tensors without the biases of keys, if DINOv3's own code multiplies them by 0."""
  if not any(name.endswith('.qkv.bias_mask') for name in names):
    return dict(linen)
  return {name: x for name, x in linen.items() if not name.endswith(f'{ATTENTION}/key/bias')}


def _packed_blocks(tensors: Mapping[str, Tensor]) -> set[str]:
  """The blocks, 'blocks.0', …, whose `mlp.fc1` has the rows of a gate and of the hidden units."""
  packed = set()
  for name, tensor in tensors.items():
    block, _, rest = name.partition('.mlp.fc1.')
    second = tensors.get(f'{block}.mlp.fc2.weight')
    if rest == 'weight' and second is not None and len(second.shape) == 2:
      packed |= {block} if tensor.shape[0] == 2 * second.shape[1] else set()
  return packed


def find_modules(layer: str) -> str | None:
  """The linen modules in a layer of that name; None: an unknown layer."""
  if match := re.fullmatch(r'blocks\.(\d+)\.(.*)', layer):
    return pytorch.block_layers('blocks.', _ALL_OF_BLOCK, int(match[1])).get(layer)
  return LAYERS.get(layer)


def with_pool_heads(linen: Mapping[str, Tensor], num_heads: int, source: str) -> dict[str, Tensor]:
  """The tensors with another number of heads in pool map than in the blocks."""
  changed = dict(linen)
  for name, tensor in linen.items():
    if not name.startswith(f'MAPHead_0/{ATTENTION}/') or name.endswith('/out/bias'):
      continue
    at = {'out/kernel': 0}.get('/'.join(name.split('/')[-2:]), len(tensor.shape) - 2)
    width = tensor.shape[at] * tensor.shape[at + 1]
    if width % num_heads:
      raise UserError(
        f'{source} has {num_heads} heads in its pooling, which do not divide {width}.'
      )
    shape = (*tensor.shape[:at], num_heads, width // num_heads, *tensor.shape[at + 2 :])
    changed[name] = tensor.map(shape, lambda x, shape=shape: x.reshape(shape))
  return changed


# --- writing --------------------------------------------------------------------------------


def unsupported_feature(model: VisionTransformer, params: Any) -> str | None:
  """What no class of timm has: 'axial blocks', …, or None."""
  if feature := pytorch.unsupported_encoder(params):
    if model.position_embedding != 'none' or model.axial:
      return feature
  if model.pool == 'token_gap':
    return 'class token and average as its features'
  if model.rotary is not None and model.rotary.truncated_periods:
    return 'rotary periods in bfloat16'
  if model.pre_norm and model.patch_bias:
    return 'a bias of its patches before a normalization'
  if model.pool == 'distilled' and (model.rotary or model.registers or model.mlp != 'gelu'):
    return 'a distillation token beside rotary positions, registers or a gated MLP'
  return _unsupported_norms(model)


def _unsupported_norms(model: VisionTransformer) -> str | None:
  """timm's AIMv2 has all of its features; no other class has one of them."""
  if model.pool == 'map' and not model.pool_mlp:
    return 'attention pooling without an MLP'
  features = {
    'RMSNorm': model.norm == 'rms',
    'a normalization of its patches': model.patch_norm,
    'blocks without biases': not model.block_bias,
  }
  if not any(features.values()):
    return None
  if missing := [name for name, has in features.items() if not has]:
    return f'{next(name for name, has in features.items() if has)} but not {missing[0]}'
  if model.mlp != 'swiglu' or model.rotary or model.numerics.layer_norm_epsilon != 1e-5:
    return 'RMSNorm beside other parts, or with another epsilon, than AIMv2'
  return None


def from_linen(model: VisionTransformer, params: Any) -> dict[str, np.ndarray]:
  """A parameter tree as the state dict of timm's class for the model."""
  params = pytorch.with_qkv_biases(model, params)
  tensors = {name: np.asarray(x, np.float32) for name, x in flatten(params).items()}
  _complete(model, tensors)
  kind = class_of(model)
  _shorten_positions(model, tensors)
  is_separate = kind == 'eva' and model.mlp == 'swiglu_norm'
  block = dict(_BLOCK) | (_SEPARATE if is_separate else _FUSED)
  if model.mlp == 'gelu':
    block |= _MLP
  elif model.norm == 'rms':
    block |= _GATED | _RMS
  elif model.mlp == 'swiglu_norm' or (model.rotary and model.rotary.coordinates == 'centered'):
    block |= _GATED | _NORM
  else:
    block |= _PACKED
  scale = r'.gamma_\1' if kind == 'eva' else r'.ls\1.gamma'
  layers = dict(LAYERS)
  for i in range(model.depth):
    layers |= pytorch.block_layers('blocks.', block, i)
  state_dict = {}
  for name, array in pytorch.from_linen(unflatten(tensors), PARAMETERS, layers).items():
    name = re.sub(r'\.ls([12])\.weight$', scale, name.replace(_PACKED_NAME, 'mlp.fc1'))
    state_dict[name] = np.ascontiguousarray(array)
  return _without_biases(model, kind, state_dict)


def _complete(model: VisionTransformer, tensors: dict[str, np.ndarray]) -> None:
  """Adds the biases that timm's layers always have."""
  if not model.patch_bias and not model.pre_norm:
    tensors['embedding/bias'] = np.zeros(model.width, np.float32)
  if 'head/kernel' in tensors and 'head/bias' not in tensors:
    tensors['head/bias'] = np.zeros(model.num_classes, np.float32)


def _shorten_positions(model: VisionTransformer, tensors: dict[str, np.ndarray]) -> None:
  """Leaves out the position of the class token where timm's architectures do.

  They do so with registers, and DeiT III does; the position is then added to the token itself.
  """
  if POSITIONS not in tensors:
    return
  positions, prefix = tensors[POSITIONS], len(model.prefix_names)
  of_prefix = positions[:, :prefix]
  if not model.registers and (not model.layer_scale or of_prefix.any()):
    return
  if model.prefix_names and of_prefix.any():
    tensors['cls'] = tensors['cls'] + of_prefix[:, :1]
  tensors[POSITIONS] = positions[:, prefix:]


def _without_biases(
  model: VisionTransformer, kind: str, state_dict: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Leaves out the biases of queries, keys and values that the model lacks."""
  if model.qkv_bias == 'all' or (model.qkv_bias == 'query_value' and kind != 'eva'):
    return state_dict
  changed = dict(state_dict)
  for i in range(model.depth):
    attention = f'blocks.{i}.attn.'
    bias = changed.pop(f'{attention}qkv.bias', None)
    if model.qkv_bias == 'none':
      for letter in 'qkv':
        changed.pop(f'{attention}{letter}_proj.bias', None)
    elif bias is None:
      del changed[f'{attention}k_proj.bias']
    else:
      width = model.width
      changed |= {f'{attention}q_bias': bias[:width], f'{attention}v_bias': bias[-width:]}
  return changed
