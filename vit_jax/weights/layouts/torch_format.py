"""Reads the names and shapes of timm and of Hugging Face Transformers as ours.

Shapes: D width, K heads. PyTorch stores linear layers as (out, in) and convolutions as (out, in,
height, width); timm keeps query, key and value in one array (3 D, D).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts.released import POSITIONS
from vit_jax.weights.layouts.torch_names import (
  ATTENTION,
  HUGGING_FACE,
  HUGGING_FACE_BLOCK,
  HUGGING_FACE_BLOCK_5,
  LAYER_SCALE,
  TIMM,
  TIMM_BIT,
  TIMM_BLOCK,
  TIMM_UNIT,
)


def find_layout(tensors: Mapping[str, Any]) -> tuple[str, str] | None:
  """(layout, prefix of its names) when the names are those of timm or Transformers, else None."""
  for prefix in ('', 'module.', 'model.'):
    if f'{prefix}patch_embed.proj.weight' in tensors:
      return 'timm', prefix
    if f'{prefix}stem.conv.weight' in tensors:
      return 'timm BiT', prefix
    for inner in ('vit.', ''):
      if f'{prefix}{inner}embeddings.patch_embeddings.projection.weight' in tensors:
        return 'Hugging Face', prefix
  return None


def _module(name: str, layout: str) -> str | None:
  """The linen module of a PyTorch one; None for one that no model of ours has."""
  if layout == 'timm BiT':
    if match := re.fullmatch(r'stages\.(\d+)\.blocks\.(\d+)\.(.*)', name):
      unit = TIMM_UNIT.get(match[3])
      return unit and f'block{int(match[1]) + 1}/unit{int(match[2]) + 1:02d}/{unit}'
    return TIMM_BIT.get(name)
  if layout == 'timm':
    if match := re.fullmatch(r'blocks\.(\d+)\.(.*)', name):
      part = TIMM_BLOCK.get(match[2])
      return part and f'Transformer/encoderblock_{int(match[1])}/{part}'
    if match := re.fullmatch(r'patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.(.*)', name):
      unit = TIMM_UNIT.get(match[3])
      return unit and f'block{int(match[1]) + 1}/unit{int(match[2]) + 1}/{unit}'
    return TIMM.get(name)
  name = name.removeprefix('vit.')
  if match := re.fullmatch(r'(encoder\.layer|layers)\.(\d+)\.(.*)', name):
    table = HUGGING_FACE_BLOCK if match[1] == 'encoder.layer' else HUGGING_FACE_BLOCK_5
    part = table.get(match[3])
    return part and f'Transformer/encoderblock_{int(match[2])}/{part}'
  return HUGGING_FACE.get(name)


def to_linen(
  tensors: Mapping[str, Tensor], layout: str, prefix: str, num_heads: int | None, source: str
) -> tuple[dict[str, Tensor], list[str]]:
  """Tensors of timm or Transformers under the names and in the shapes of memory.

  Args:
    tensors: {name in the file: tensor}.
    layout, prefix: as `find_layout` tells.
    num_heads: K, which the tensors do not tell; None only for a ResNet.
    source: the name of the file, for error messages.

  Returns:
    {linen name: tensor}, and the names in the file that lie outside of `prefix`.

  Raises:
    UserError: for tensors that no model of ours has, or shapes that do not fit together.
  """
  ignored = [name for name in tensors if not name.startswith(prefix)]
  names = {n.removeprefix(prefix): n for n in tensors if n.startswith(prefix)}
  tensors = {name: tensors[full] for name, full in names.items()}
  tensors, scales = _without_layer_scale(tensors)
  found, unknown = {}, []
  for name, tensor in tensors.items():
    try:
      new = _translate(name, tensor, layout, num_heads)
    except (ValueError, IndexError, ZeroDivisionError):
      raise UserError(
        f'{source}: {name} has the shape {tensor.shape}, which is not that of such a tensor in '
        f'a model of {num_heads} heads.'
      ) from None
    unknown += [name] if new is None else []
    if both := found.keys() & (new or {}).keys():
      raise UserError(f'{source} holds {sorted(both)[0]} twice, under two names.')
    found.update(new or {})
  if unknown:
    raise UserError(
      f'{source} is a {layout} model of another kind: it has {", ".join(unknown[:3])}'
      f'{", …" if len(unknown) > 3 else ""}, which no Vision Transformer here has.'
    )
  for module, scale in scales.items():
    for leaf in ('kernel', 'bias'):
      tensor = found.get(f'{module}/{leaf}')
      if tensor is None or tensor.shape[-1:] != scale.shape:
        raise UserError(f'{source} has a LayerScale that does not fit its {module}/{leaf}.')
      found[f'{module}/{leaf}'] = _scaled(tensor, scale)
  return found, ignored


def _without_layer_scale(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
  """Takes out LayerScale (arXiv 2103.17239), a factor that belongs to the layer before it."""
  rest, scales = {}, {}
  for name, tensor in tensors.items():
    if match := LAYER_SCALE.fullmatch(name):
      module = {'1': f'{ATTENTION}/out', '2': 'MlpBlock_0/Dense_1'}[match[2] or match[3]]
      scales[f'Transformer/encoderblock_{match[1]}/{module}'] = tensor
    else:
      rest[name] = tensor
  return rest, scales


def _scaled(tensor: Tensor, scale: Tensor) -> Tensor:
  return tensor.map(tensor.shape, lambda x: np.asarray(x, np.float32) * scale.read())


def _translate(
  name: str, tensor: Tensor, layout: str, num_heads: int | None
) -> dict[str, Tensor] | None:
  """The tensors of ours that one of PyTorch's becomes; None for an unknown one."""
  plain = {
    'cls_token': 'cls',
    'pos_embed': POSITIONS,
    'attn_pool.latent': 'MAPHead_0/probe',
    'embeddings.cls_token': 'cls',
    'embeddings.position_embeddings': POSITIONS,
  }
  if name.removeprefix('vit.') in plain:
    return {plain[name.removeprefix('vit.')]: tensor}
  module, _, leaf = name.rpartition('.')
  if leaf not in ('weight', 'bias'):
    return None
  if match := re.fullmatch(r'blocks\.(\d+)\.attn\.qkv', module):
    target = f'Transformer/encoderblock_{match[1]}/{ATTENTION}'
    return _split_heads(target, ('query', 'key', 'value'), leaf, tensor, num_heads)
  if module == 'attn_pool.kv':
    return _split_heads(f'MAPHead_0/{ATTENTION}', ('key', 'value'), leaf, tensor, num_heads)
  target = _module(module, layout)
  if target is None:
    return None
  if target.endswith(('/query', '/key', '/value')):
    target, _, part = target.rpartition('/')
    return _split_heads(target, (part,), leaf, tensor, num_heads)
  if leaf == 'bias':
    return {f'{target}/bias': tensor}
  if len(tensor.shape) == 1:
    return {f'{target}/scale': tensor}
  if target.endswith(f'{ATTENTION}/out'):
    width, inner = tensor.shape
    shape = (num_heads, inner // num_heads, width)
    return {f'{target}/kernel': tensor.map(shape, lambda x: x.T.reshape(shape))}
  if len(tensor.shape) == 4:
    out, into, height, width = tensor.shape
    if target == 'head':  # a 1 x 1 convolution in timm's BiT
      return {'head/kernel': tensor.map((into, out), lambda x: x[:, :, 0, 0].T)}
    shape = (height, width, into, out)
    return {f'{target}/kernel': tensor.map(shape, lambda x: x.transpose(2, 3, 1, 0))}
  return {f'{target}/kernel': tensor.map(tensor.shape[::-1], np.transpose)}


def _split_heads(
  target: str, parts: tuple[str, ...], leaf: str, tensor: Tensor, num_heads: int
) -> dict[str, Tensor]:
  """(len(parts) D, D) or (len(parts) D,) -> for each part (D, K, D/K) or (K, D/K)."""
  rows = tensor.shape[0] // len(parts)
  if rows * len(parts) != tensor.shape[0] or rows % num_heads:
    raise ValueError(tensor.shape)
  heads = (num_heads, rows // num_heads)
  found = {}
  for i, part in enumerate(parts):
    piece = tensor.rows(i * rows, (i + 1) * rows)
    if leaf == 'bias':
      found[f'{target}/{part}/bias'] = piece.map(heads, lambda x: x.reshape(heads))
    else:
      shape = (tensor.shape[1], *heads)
      found[f'{target}/{part}/kernel'] = piece.map(shape, lambda x, s=shape: x.T.reshape(s))
  return found
