"""Reads the architecture of a model off the names and shapes of its tensors."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.attention.detr import DETR
from vit_jax.models.build import MAX_DEPTH, RELEASED_NUMERICS, Model
from vit_jax.models.encoder_block import QKV_BIASES
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.resnet import BiTResNet, hybrid_stride
from vit_jax.models.rotary import Rotary
from vit_jax.models.vit import Numerics, VisionTransformer

_MAX_STAGES, _MAX_UNITS = 8, 100  # of a ResNet, all of whose units are traced
TOKEN_MIXING = 'MixerBlock_0/token_mixing/Dense_0/kernel'  # of a Mixer: (patches, hidden units)
_MAX_WINDOW = 1023  # pixels
_BLOCK = 'Transformer/encoderblock_0'
_LAYER_SCALE = 1e-5  # initial factor of a new model of the same architecture (arXiv 2103.17239)
_ATTENTION = 'MultiHeadDotProductAttention_0'


def model_from_tensors(
  tensors: Mapping[str, Any],
  source: str,
  numerics: Numerics = RELEASED_NUMERICS,
  pool: str | None = None,
  rotary: Rotary | None = None,
  final_norm: str | None = None,
) -> Model:
  """Reads the architecture off parameter names and shapes.

  Args:
    tensors: {'embedding/kernel': array, …}, with current linen names.
    source: of the tensors, for error messages.
    numerics: of a Transformer or Mixer; its tensors do not determine them.
    pool: of a Transformer, where its tensors leave a choice; None: the class token.
    rotary: of a Transformer, which no tensor tells.
    final_norm: 'none' for a Transformer that lacks the LayerNorm on purpose.

  Raises:
    UserError: if they are not the tensors of one of the classes of `Model`.
  """
  try:
    if any(0 in tensor.shape for tensor in tensors.values()):
      raise ValueError(0)
    if 'root_block/conv_root/kernel' in tensors:
      return _resnet_from_tensors(tensors)
    if 'stem/kernel' in tensors:
      return _mixer_from_tensors(tensors, numerics)
    if 'input_projection/kernel' in tensors:
      return _detr_from_tensors(tensors)
    return _vit_from_tensors(tensors, numerics, pool, rotary, final_norm)
  except KeyError as error:
    raise UserError(
      f'{source} is not a Vision Transformer, MLP-Mixer, BiT or DETR encoder in a known layout: it '
      f'has no tensor {error}.'
    ) from None
  except (ValueError, IndexError):
    raise UserError(
      f'{source}: its tensors do not have the shapes of a Vision Transformer, MLP-Mixer, BiT or '
      'DETR encoder.'
    ) from None


def _vit_from_tensors(
  tensors: Mapping[str, Any],
  numerics: Numerics,
  pool: str | None,
  rotary: Rotary | None,
  final_norm: str | None,
) -> VisionTransformer:
  patch, columns, _, width = tensors['embedding/kernel'].shape
  axial = f'{_BLOCK}/row/{_ATTENTION}/query/kernel' in tensors
  block = f'{_BLOCK}/row' if axial else _BLOCK
  _, num_heads, head_dim = tensors[f'{block}/{_ATTENTION}/query/kernel'].shape
  _, mlp_dim = tensors[f'{block}/MlpBlock_0/Dense_0/kernel'].shape
  resnet_width, resnet_blocks = 0, ()
  if 'conv_root/kernel' in tensors:
    resnet_width, resnet_blocks = _resnet_sizes(tensors, 'conv_root/kernel')
  if columns != patch or width != num_heads * head_dim:
    raise ValueError(width)
  if rotary is not None and head_dim % 4:
    raise ValueError(head_dim)
  pool = _pool(tensors, width, pool)
  mlp = f'{block}/MlpBlock_0'
  norm = 'rms' if f'{block}/RMSNorm_0/scale' in tensors else 'layer'
  position_embedding, position_entry = _positions(tensors)
  return VisionTransformer(
    patch_size=patch * (hybrid_stride(resnet_blocks) if resnet_width else 1),
    width=width,
    depth=_count_modules(tensors, r'Transformer/encoderblock_(\d+)/'),
    mlp_dim=mlp_dim,
    num_heads=num_heads,
    num_classes=_num_outputs(tensors, 'head/kernel'),
    pool=pool,
    pre_logits=_num_outputs(tensors, 'pre_logits/kernel'),
    resnet_width=resnet_width,
    resnet_blocks=resnet_blocks,
    position_embedding=position_embedding,
    position_entry=position_entry,
    axial=axial,
    class_token='cls' in tensors and pool in ('gap', 'map'),
    registers=_num_tokens(tensors, 'registers'),
    rotary=rotary,
    patch_bias='embedding/bias' in tensors,
    patch_norm='patch_norm/scale' in tensors,
    block_bias=f'{block}/{_ATTENTION}/out/bias' in tensors,
    qkv_bias=_qkv_bias(tensors, f'{block}/{_ATTENTION}'),
    pre_norm='Transformer/pre_norm/scale' in tensors,
    mlp=(
      'swiglu_norm'
      if {f'{mlp}/LayerNorm_0/scale', f'{mlp}/RMSNorm_0/scale'} & tensors.keys()
      else 'swiglu'
      if f'{mlp}/gate/kernel' in tensors
      else 'gelu'
    ),
    layer_scale=_LAYER_SCALE if f'{block}/LayerScale_0/scale' in tensors else 0.0,
    final_norm=(
      'pooled' if 'pool_norm/scale' in tensors else 'none' if final_norm == 'none' else 'encoder'
    ),
    **_attention_pool(tensors, num_heads, mlp_dim),
    head_bias='head/kernel' not in tensors or 'head/bias' in tensors,
    numerics=dataclasses.replace(numerics, norm=norm),
  )


def _pool(tensors: Mapping[str, Any], width: int, stated: str | None) -> str:
  """The pooling of a Transformer: the stated one, where a class token need not be pooled."""
  if 'distillation' in tensors:
    return 'distilled'
  if 'MAPHead_0/probe' in tensors:
    return 'map'
  if 'cls' not in tensors:
    return 'gap'
  head = tensors.get('pre_logits/kernel', tensors.get('head/kernel'))
  if head is None:
    return stated if stated in ('gap', 'token_gap') else 'token'
  if head.shape[0] == 2 * width:
    return 'token_gap'
  return 'gap' if stated == 'gap' else 'token'


def _qkv_bias(tensors: Mapping[str, Any], attention: str) -> str:
  """The projections that have biases; 'all' in a block without any."""
  if f'{attention}/out/bias' not in tensors:
    return 'all'
  names = tuple(name for name in QKV_BIASES['all'] if f'{attention}/{name}/bias' in tensors)
  return next((kind for kind, each in QKV_BIASES.items() if each == names), 'all')


def _attention_pool(tensors: Mapping[str, Any], num_heads: int, mlp_dim: int) -> dict[str, Any]:
  """The sizes of pool map where they are not those of the blocks."""
  if 'MAPHead_0/probe' not in tensors:
    return {}
  _, heads, _ = tensors[f'MAPHead_0/{_ATTENTION}/query/kernel'].shape
  sizes: dict[str, Any] = {'pool_num_heads': 0 if heads == num_heads else heads}
  if 'MAPHead_0/MlpBlock_0/Dense_0/kernel' not in tensors:
    return sizes | {'pool_mlp': False}
  _, hidden = tensors['MAPHead_0/MlpBlock_0/Dense_0/kernel'].shape
  return sizes | {'pool_mlp_dim': 0 if hidden == mlp_dim else hidden}


def _num_tokens(tensors: Mapping[str, Any], name: str) -> int:
  return tensors[name].shape[1] if name in tensors else 0


def _mixer_from_tensors(tensors: Mapping[str, Any], numerics: Numerics) -> MlpMixer:
  patch, columns, _, width = tensors['stem/kernel'].shape
  _, token_mlp_dim = tensors[TOKEN_MIXING].shape
  _, mlp_dim = tensors['MixerBlock_0/channel_mixing/Dense_0/kernel'].shape
  if columns != patch:
    raise ValueError(columns)
  return MlpMixer(
    patch_size=patch,
    width=width,
    depth=_count_modules(tensors, r'MixerBlock_(\d+)/'),
    token_mlp_dim=token_mlp_dim,
    mlp_dim=mlp_dim,
    num_classes=_num_outputs(tensors, 'head/kernel'),
    numerics=numerics,
  )


def _positions(tensors: Mapping[str, Any]) -> tuple[str, str]:
  """(position_embedding, position_entry) of a Transformer; ('none', 'stem') without positions."""
  modules = {
    'Transformer/posembed_input': 'stem',
    'Transformer/posembed_layers': 'layers_shared',
    f'{_BLOCK}/posembed_input': 'layers',
    f'{_BLOCK}/row/posembed_input': 'stem',
  }
  kinds = {'pos_embedding': '1d', 'x_embedding': '2d', 'relative_embedding': 'relative'}
  for module, entry in modules.items():
    for name, kind in kinds.items():
      if f'{module}/{name}' in tensors:
        return kind, 'stem' if (kind, entry) == ('relative', 'layers') else entry
  return 'none', 'stem'


def _resnet_from_tensors(tensors: Mapping[str, Any]) -> BiTResNet:
  width, blocks = _resnet_sizes(tensors, 'root_block/conv_root/kernel')
  spatial, window, num_heads = _spatial_attention(tensors)
  if window > _MAX_WINDOW or (window and (window % 2 == 0 or width % (2 * num_heads))):
    raise ValueError(window)
  non_local = [match for name in tensors if (match := re.match(r'block(\d+)/non_local/(.*)', name))]
  return BiTResNet(
    width,
    blocks,
    num_classes=_num_outputs(tensors, 'head/kernel'),
    spatial=spatial,
    window=window,
    num_heads=num_heads,
    non_local_stages=tuple(sorted({int(match[1]) for match in non_local})),
    non_local_subsample=any(match[2] == 'pooled_key/kernel' for match in non_local),
  )


def _spatial_attention(tensors: Mapping[str, Any]) -> tuple[str, int, int]:
  """(spatial, window, num_heads) of a `BiTResNet`, read off its first unit."""
  unit = 'block1/unit01/'
  if f'{unit}local_attention/rows' in tensors:
    num_heads, window, _ = tensors[f'{unit}local_attention/rows'].shape
    return 'local', window, num_heads
  if f'{unit}height_attention/query_positions' in tensors:
    _, num_heads, _ = tensors[f'{unit}height_attention/query/kernel'].shape
    window, _ = tensors[f'{unit}height_attention/query_positions'].shape
    return 'axial', window, num_heads
  return 'conv', 0, 0


def _detr_from_tensors(tensors: Mapping[str, Any]) -> DETR:
  width, num_heads, head_dim = tensors[f'{_BLOCK}/{_ATTENTION}/query/kernel'].shape
  _, mlp_dim = tensors[f'{_BLOCK}/MlpBlock_0/Dense_0/kernel'].shape
  resnet_width, resnet_blocks = _resnet_sizes(tensors, 'conv_root/kernel')
  if width % 4 or width != num_heads * head_dim:
    raise ValueError(width)
  return DETR(
    width=width,
    depth=_count_modules(tensors, r'Transformer/encoderblock_(\d+)/'),
    mlp_dim=mlp_dim,
    num_heads=num_heads,
    num_classes=_num_outputs(tensors, 'head/kernel'),
    resnet_width=resnet_width,
    resnet_blocks=resnet_blocks,
  )


def _num_outputs(tensors: Mapping[str, Any], name: str) -> int:
  """The number of columns of a kernel; 0 without that kernel."""
  if name not in tensors:
    return 0
  _, num_outputs = tensors[name].shape
  return num_outputs


def _count_modules(tensors: Mapping[str, Any], pattern: str) -> int:
  """The number of distinct first groups of a pattern that matches the start of names."""
  count = len({match[1] for name in tensors if (match := re.match(pattern, name))})
  if count > MAX_DEPTH:
    raise ValueError(count)
  return count


def _resnet_sizes(tensors: Mapping[str, Any], root: str) -> tuple[int, tuple[int, ...]]:
  """The width of a ResNet, whose first kernel is called `root`, and the units of each stage."""
  width = tensors[root].shape[3]
  if width < 32 or width % 32:
    raise ValueError(width)
  num_stages = _count_modules(tensors, r'block(\d+)/')
  if num_stages > _MAX_STAGES:
    raise ValueError(num_stages)
  units = tuple(_count_modules(tensors, rf'block{i + 1}/unit(\d+)/') for i in range(num_stages))
  if sum(units) > _MAX_UNITS:
    raise ValueError(units)
  return width, units
