"""The names and shapes of timm and of Hugging Face Transformers, to ours and back.

Shapes: D width, K heads, M mlp_dim, C classes. PyTorch stores linear layers as (out, in) and
convolutions as (out, in, height, width); timm keeps query, key and value in one array (3 D, D).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoints.released import POSITIONS, flatten
from vit_jax.checkpoints.tensors import Tensor
from vit_jax.errors import UserError
from vit_jax.models.resnet import hybrid_stride

_ATTENTION = 'MultiHeadDotProductAttention_0'
LAYER_SCALE = re.compile(r'blocks\.(\d+)\.(?:ls([12])\.gamma|gamma_([12]))')
# (name in PyTorch without weight or bias, name of the module in linen)
_TIMM = {
    'patch_embed.proj': 'embedding',
    'norm': 'Transformer/encoder_norm',
    'head': 'head',
    'attn_pool.norm': 'MAPHead_0/LayerNorm_0',
    'attn_pool.mlp.fc1': 'MAPHead_0/MlpBlock_0/Dense_0',
    'attn_pool.mlp.fc2': 'MAPHead_0/MlpBlock_0/Dense_1',
    'attn_pool.q': f'MAPHead_0/{_ATTENTION}/query',
    'attn_pool.proj': f'MAPHead_0/{_ATTENTION}/out',
    'patch_embed.backbone.conv': 'conv_root',
    'patch_embed.backbone.norm': 'gn_root',
    'patch_embed.backbone.stem.conv': 'conv_root',
    'patch_embed.backbone.stem.norm': 'gn_root',
}
_TIMM_BLOCK = {
    'norm1': 'LayerNorm_0',
    'norm2': 'LayerNorm_1',
    'attn.proj': f'{_ATTENTION}/out',
    'mlp.fc1': 'MlpBlock_0/Dense_0',
    'mlp.fc2': 'MlpBlock_0/Dense_1',
}
_TIMM_UNIT = {
    **{f'conv{i}': f'conv{i}' for i in (1, 2, 3)},
    **{f'norm{i}': f'gn{i}' for i in (1, 2, 3)},
    'downsample.conv': 'conv_proj',
    'downsample.norm': 'gn_proj',
}
_TIMM_BIT = {'stem.conv': 'root_block/conv_root', 'norm': 'norm-pre-head', 'head.fc': 'head'}
_HUGGING_FACE = {
    'embeddings.patch_embeddings.projection': 'embedding',
    'layernorm': 'Transformer/encoder_norm',
    'classifier': 'head',
    'pooler.dense': 'pre_logits',
}
_HUGGING_FACE_BLOCK = {
    'layernorm_before': 'LayerNorm_0',
    'layernorm_after': 'LayerNorm_1',
    'attention.attention.query': f'{_ATTENTION}/query',
    'attention.attention.key': f'{_ATTENTION}/key',
    'attention.attention.value': f'{_ATTENTION}/value',
    'attention.output.dense': f'{_ATTENTION}/out',
    'intermediate.dense': 'MlpBlock_0/Dense_0',
    'output.dense': 'MlpBlock_0/Dense_1',
}
# Transformers 5 calls the same layers by other names in memory, and so in its state dicts.
_HUGGING_FACE_BLOCK_5 = {
    'layernorm_before': 'LayerNorm_0',
    'layernorm_after': 'LayerNorm_1',
    'attention.q_proj': f'{_ATTENTION}/query',
    'attention.k_proj': f'{_ATTENTION}/key',
    'attention.v_proj': f'{_ATTENTION}/value',
    'attention.o_proj': f'{_ATTENTION}/out',
    'mlp.fc1': 'MlpBlock_0/Dense_0',
    'mlp.fc2': 'MlpBlock_0/Dense_1',
}


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
      unit = _TIMM_UNIT.get(match[3])
      return unit and f'block{int(match[1]) + 1}/unit{int(match[2]) + 1:02d}/{unit}'
    return _TIMM_BIT.get(name)
  if layout == 'timm':
    if match := re.fullmatch(r'blocks\.(\d+)\.(.*)', name):
      part = _TIMM_BLOCK.get(match[2])
      return part and f'Transformer/encoderblock_{int(match[1])}/{part}'
    if match := re.fullmatch(r'patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.(.*)', name):
      unit = _TIMM_UNIT.get(match[3])
      return unit and f'block{int(match[1]) + 1}/unit{int(match[2]) + 1}/{unit}'
    return _TIMM.get(name)
  name = name.removeprefix('vit.')
  if match := re.fullmatch(r'(encoder\.layer|layers)\.(\d+)\.(.*)', name):
    table = _HUGGING_FACE_BLOCK if match[1] == 'encoder.layer' else _HUGGING_FACE_BLOCK_5
    part = table.get(match[3])
    return part and f'Transformer/encoderblock_{int(match[2])}/{part}'
  return _HUGGING_FACE.get(name)


def to_linen(
    tensors: Mapping[str, Tensor],
    layout: str,
    prefix: str,
    num_heads: int | None,
    source: str,
    image_size: tuple[int, int] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
  """Tensors of timm or Transformers under the names and in the shapes of memory.

  Args:
    tensors: {name in the file: tensor}.
    layout, prefix: as `find_layout` tells.
    num_heads: K, which the tensors do not tell; None only for a ResNet.
    source: the name of the file, for error messages.
    image_size: (height, width), where it is known; tells whether position embeddings whose
      number is a square have one for the class token among them.

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
  return (_class_position(found, image_size) if layout == 'timm' else found), ignored


def _without_layer_scale(
    tensors: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
  """Takes out LayerScale (arXiv 2103.17239), a factor that belongs to the layer before it."""
  rest, scales = {}, {}
  for name, tensor in tensors.items():
    if match := LAYER_SCALE.fullmatch(name):
      module = {'1': f'{_ATTENTION}/out', '2': 'MlpBlock_0/Dense_1'}[match[2] or match[3]]
      scales[f'Transformer/encoderblock_{match[1]}/{module}'] = tensor
    else:
      rest[name] = tensor
  return rest, scales


def _scaled(tensor: Tensor, scale: Tensor) -> Tensor:
  return tensor.map(tensor.shape, lambda x: np.asarray(x, np.float32) * scale.read())


def _class_position(
    tensors: dict[str, Tensor], image_size: tuple[int, int] | None
) -> dict[str, Tensor]:
  """timm's `no_embed_class` models have no position embedding for the class token: zeros."""
  positions = tensors.get(POSITIONS)
  if 'cls' not in tensors or positions is None or len(positions.shape) != 3:
    return tensors
  batch, count, width = positions.shape
  patches = image_size and _patches(tensors, image_size)
  is_square = round(count**0.5) ** 2 == count
  if patches == count - 1 or not (patches == count or is_square):
    return tensors
  longer = positions.map(
      (batch, count + 1, width),
      lambda x: np.concatenate([np.zeros_like(x[:, :1]), x], axis=1),
  )
  return {**tensors, POSITIONS: longer}


def _patches(tensors: Mapping[str, Tensor], image_size: tuple[int, int]) -> int | None:
  """How many patches images of that size have; None when the tensors do not tell."""
  kernel = tensors.get('embedding/kernel')
  patch = kernel.shape[0] if kernel is not None and len(kernel.shape) == 4 else 0
  if 'conv_root/kernel' in tensors:
    patch *= hybrid_stride({unit.partition('/')[0] for unit in _units(tensors)})
  return (image_size[0] // patch) * (image_size[1] // patch) if patch else None


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
    target = f'Transformer/encoderblock_{match[1]}/{_ATTENTION}'
    return _split_heads(target, ('query', 'key', 'value'), leaf, tensor, num_heads)
  if module == 'attn_pool.kv':
    return _split_heads(f'MAPHead_0/{_ATTENTION}', ('key', 'value'), leaf, tensor, num_heads)
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
  if target.endswith(f'{_ATTENTION}/out'):
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


# --- writing --------------------------------------------------------------------------------


def _to_torch(tensors: Mapping[str, np.ndarray], module: str) -> dict[str, np.ndarray]:
  """{'weight', 'bias'} of a linen module, in PyTorch's shapes."""
  found = {}
  if f'{module}/scale' in tensors:
    found['weight'] = tensors[f'{module}/scale']
  if f'{module}/kernel' in tensors:
    kernel = tensors[f'{module}/kernel']
    if module.endswith(('/query', '/key', '/value')):  # (D, K, D/K)
      kernel = kernel.reshape(kernel.shape[0], -1).T
    elif module.endswith('/out'):  # (K, D/K, D)
      kernel = kernel.reshape(-1, kernel.shape[-1]).T
    elif kernel.ndim == 4:
      kernel = kernel.transpose(3, 2, 0, 1)
    else:
      kernel = kernel.T
    found['weight'] = kernel
  if f'{module}/bias' in tensors:
    found['bias'] = tensors[f'{module}/bias'].reshape(-1)
  return found


def _fused(tensors: Mapping[str, np.ndarray], module: str, parts: tuple[str, ...]):
  pieces = [_to_torch(tensors, f'{module}/{part}') for part in parts]
  return {leaf: np.concatenate([piece[leaf] for piece in pieces]) for leaf in ('weight', 'bias')}


def _with_name(name: str, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {f'{name}.{leaf}': np.ascontiguousarray(array) for leaf, array in leaves.items()}


def to_timm(params: Any) -> dict[str, np.ndarray]:
  """A parameter tree as the state dict of timm's model of it.

  Raises:
    UserError: for a model with `pre_logits`, which timm does not have.
  """
  tensors = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
  if 'pre_logits/kernel' in tensors:
    raise UserError(
        'timm has no pre_logits layer; write an .npz, or drop the head and it with a new one '
        '(num_classes).'
    )
  if 'root_block/conv_root/kernel' in tensors:
    return _to_timm_bit(tensors)
  found = {'pos_embed': tensors[POSITIONS]}
  if 'cls' in tensors:
    found['cls_token'] = tensors['cls']
  if 'MAPHead_0/probe' in tensors:
    found['attn_pool.latent'] = tensors['MAPHead_0/probe']
    attention = f'MAPHead_0/{_ATTENTION}'
    found |= _with_name('attn_pool.kv', _fused(tensors, attention, ('key', 'value')))
  has_stages = 'block1/unit1/conv1/kernel' in tensors
  for name, module in _TIMM.items():
    if name.startswith('patch_embed.backbone') and ('.stem.' in name) != has_stages:
      continue
    found |= _with_name(name, _to_torch(tensors, module))
  for unit in _units(tensors):
    stage, block = (int(number) - 1 for number in re.findall(r'\d+', unit))
    for name, part in _TIMM_UNIT.items():
      prefix = f'patch_embed.backbone.stages.{stage}.blocks.{block}.{name}'
      found |= _with_name(prefix, _to_torch(tensors, f'{unit}/{part}'))
  for i in range(_depth(tensors)):
    block = f'Transformer/encoderblock_{i}'
    qkv = _fused(tensors, f'{block}/{_ATTENTION}', ('query', 'key', 'value'))
    found |= _with_name(f'blocks.{i}.attn.qkv', qkv)
    for name, part in _TIMM_BLOCK.items():
      found |= _with_name(f'blocks.{i}.{name}', _to_torch(tensors, f'{block}/{part}'))
  return found


def _to_timm_bit(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  found = {}
  for name, module in _TIMM_BIT.items():
    found |= _with_name(name, _to_torch(tensors, module))
  if 'head.fc.weight' in found:
    found['head.fc.weight'] = found['head.fc.weight'][:, :, None, None]
  for unit in _units(tensors):
    stage, block = (int(number) - 1 for number in re.findall(r'\d+', unit))
    for name, part in _TIMM_UNIT.items():
      prefix = f'stages.{stage}.blocks.{block}.{name}'
      found |= _with_name(prefix, _to_torch(tensors, f'{unit}/{part}'))
  return found


def _units(tensors: Mapping[str, Any]) -> list[str]:
  return sorted({m[0] for name in tensors if (m := re.match(r'block\d+/unit\d+', name))})


def _depth(tensors: Mapping[str, Any]) -> int:
  return len({m[1] for n in tensors if (m := re.match(r'Transformer/encoderblock_(\d+)/', n))})


def to_hugging_face(params: Any) -> dict[str, np.ndarray]:
  """A parameter tree as the state dict of Transformers' `ViTForImageClassification`.

  Raises:
    UserError: for a model that class does not have: without a class token, with `pre_logits` or
      with a ResNet.
  """
  tensors = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
  reasons = {
      'a ResNet': 'conv_root/kernel' in tensors or 'root_block/conv_root/kernel' in tensors,
      'no class token': 'cls' not in tensors,
      'a pre_logits layer': 'pre_logits/kernel' in tensors,
      'no head': 'head/kernel' not in tensors,
  }
  for reason, holds in reasons.items():
    if holds:
      raise UserError(
          f'The model has {reason}, which ViTForImageClassification does not know; write an .npz, '
          'or a folder of our own with layout="model".'
      )
  found = {
      'vit.embeddings.cls_token': tensors['cls'],
      'vit.embeddings.position_embeddings': tensors[POSITIONS],
  }
  for name, module in _HUGGING_FACE.items():
    prefix = '' if name == 'classifier' else 'vit.'
    found |= _with_name(prefix + name, _to_torch(tensors, module))
  for i in range(_depth(tensors)):
    for name, part in _HUGGING_FACE_BLOCK.items():
      module = f'Transformer/encoderblock_{i}/{part}'
      found |= _with_name(f'vit.encoder.layer.{i}.{name}', _to_torch(tensors, module))
  return found
