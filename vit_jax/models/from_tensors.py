"""Reads the architecture of a model off the names and shapes of its tensors."""

import re
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.build import MAX_DEPTH, RELEASED_NUMERICS, Model
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.resnet import BiTResNet, hybrid_stride
from vit_jax.models.vit import Numerics, VisionTransformer

_MAX_STAGES, _MAX_UNITS = 8, 100  # of a ResNet, all of whose units are traced
TOKEN_MIXING = 'MixerBlock_0/token_mixing/Dense_0/kernel'  # of a Mixer: (patches, hidden units)
_BLOCK = 'Transformer/encoderblock_0'
_ATTENTION = 'MultiHeadDotProductAttention_0'


def model_from_tensors(
  tensors: Mapping[str, Any], source: str, numerics: Numerics = RELEASED_NUMERICS
) -> Model:
  """Reads the architecture off parameter names and shapes.

  Args:
    tensors: {'embedding/kernel': array, …}, with current linen names.
    source: of the tensors, for error messages.
    numerics: of a Transformer or Mixer; its tensors do not determine them.

  Raises:
    UserError: if they are not the tensors of a `VisionTransformer`, `MlpMixer` or `BiTResNet`.
  """
  try:
    if any(0 in tensor.shape for tensor in tensors.values()):
      raise ValueError(0)
    if 'root_block/conv_root/kernel' in tensors:
      return _resnet_from_tensors(tensors)
    if 'stem/kernel' in tensors:
      return _mixer_from_tensors(tensors, numerics)
    return _vit_from_tensors(tensors, numerics)
  except KeyError as error:
    raise UserError(
      f'{source} is not a Vision Transformer, MLP-Mixer or BiT in a known layout: it has no tensor '
      f'{error}.'
    ) from None
  except (ValueError, IndexError):
    raise UserError(
      f'{source}: its tensors do not have the shapes of a Vision Transformer, MLP-Mixer or BiT.'
    ) from None


def _vit_from_tensors(tensors: Mapping[str, Any], numerics: Numerics) -> VisionTransformer:
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
  pool = 'token' if 'cls' in tensors else 'map' if 'MAPHead_0/probe' in tensors else 'gap'
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
    numerics=numerics,
  )


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
  return BiTResNet(width, blocks, num_classes=_num_outputs(tensors, 'head/kernel'))


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
