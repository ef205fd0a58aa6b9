"""Gives a parameter tree the names and shapes of timm and of Hugging Face Transformers."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.weights.layouts.released import POSITIONS, flatten
from vit_jax.weights.layouts.torch_names import (
  ATTENTION,
  HUGGING_FACE,
  HUGGING_FACE_BLOCK,
  TIMM,
  TIMM_BIT,
  TIMM_BLOCK,
  TIMM_UNIT,
)


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
    attention = f'MAPHead_0/{ATTENTION}'
    found |= _with_name('attn_pool.kv', _fused(tensors, attention, ('key', 'value')))
  has_stages = 'block1/unit1/conv1/kernel' in tensors
  for name, module in TIMM.items():
    if name.startswith('patch_embed.backbone') and ('.stem.' in name) != has_stages:
      continue
    found |= _with_name(name, _to_torch(tensors, module))
  for unit in _units(tensors):
    stage, block = (int(number) - 1 for number in re.findall(r'\d+', unit))
    for name, part in TIMM_UNIT.items():
      prefix = f'patch_embed.backbone.stages.{stage}.blocks.{block}.{name}'
      found |= _with_name(prefix, _to_torch(tensors, f'{unit}/{part}'))
  for i in range(_depth(tensors)):
    block = f'Transformer/encoderblock_{i}'
    qkv = _fused(tensors, f'{block}/{ATTENTION}', ('query', 'key', 'value'))
    found |= _with_name(f'blocks.{i}.attn.qkv', qkv)
    for name, part in TIMM_BLOCK.items():
      found |= _with_name(f'blocks.{i}.{name}', _to_torch(tensors, f'{block}/{part}'))
  return found


def _to_timm_bit(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  found = {}
  for name, module in TIMM_BIT.items():
    found |= _with_name(name, _to_torch(tensors, module))
  if 'head.fc.weight' in found:
    found['head.fc.weight'] = found['head.fc.weight'][:, :, None, None]
  for unit in _units(tensors):
    stage, block = (int(number) - 1 for number in re.findall(r'\d+', unit))
    for name, part in TIMM_UNIT.items():
      prefix = f'stages.{stage}.blocks.{block}.{name}'
      found |= _with_name(prefix, _to_torch(tensors, f'{unit}/{part}'))
  return found


def _units(tensors: Mapping[str, Any]) -> list[str]:
  return sorted({m[0] for name in tensors if (m := re.match(r'block\d+/unit\d+', name))})


def _depth(tensors: Mapping[str, Any]) -> int:
  return len({m[1] for n in tensors if (m := re.match(r'Transformer/encoderblock_(\d+)/', n))})


def unlike_hugging_face(params: Any) -> str | None:
  """What a model has that Transformers' `ViTForImageClassification` does not; None: nothing."""
  names = flatten(params).keys()
  reasons = {
    'a ResNet': bool({'conv_root/kernel', 'root_block/conv_root/kernel'} & names),
    'no class token': 'cls' not in names,
    'a pre_logits layer': 'pre_logits/kernel' in names,
    'no head': 'head/kernel' not in names,
  }
  return next((reason for reason, holds in reasons.items() if holds), None)


def to_hugging_face(params: Any) -> dict[str, np.ndarray]:
  """A parameter tree as the state dict of Transformers' `ViTForImageClassification`.

  Raises:
    UserError: for a model that class does not have: without a class token, with `pre_logits` or
      with a ResNet.
  """
  if reason := unlike_hugging_face(params):
    raise UserError(
      f'The model has {reason}, which ViTForImageClassification does not know; write an .npz, '
      'or a folder of our own (layout model).'
    )
  tensors = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
  found = {
    'vit.embeddings.cls_token': tensors['cls'],
    'vit.embeddings.position_embeddings': tensors[POSITIONS],
  }
  for name, module in HUGGING_FACE.items():
    prefix = '' if name == 'classifier' else 'vit.'
    found |= _with_name(prefix + name, _to_torch(tensors, module))
  for i in range(_depth(tensors)):
    for name, part in HUGGING_FACE_BLOCK.items():
      module = f'Transformer/encoderblock_{i}/{part}'
      found |= _with_name(f'vit.encoder.layer.{i}.{name}', _to_torch(tensors, module))
  return found
