"""State dicts that authors published, under the names that timm has for the same tensors.

Of OpenAI CLIP, OpenCLIP and MetaCLIP (open_clip/transformer.py), Perception Encoder
(core/vision_encoder/pe.py), DINOv2 and DINOv3 (layers/), EVA-02 (eva_clip/eva_vit_model.py). MAE
and DeiT have timm's names.
"""

import dataclasses
import re
from collections.abc import Collection

import numpy as np

from vit_jax.weights.formats.lazy_tensor import Tensor, TensorFile

# Applied in this order, to names beside a 'patch_embed.proj.weight'.
_TIMM = {
  r'(register|storage)_tokens$': 'reg_token',
  r'\.mlp\.w12\.': '.mlp.fc1.',
  r'\.mlp\.w1\.': '.mlp.fc1_g.',
  r'\.mlp\.w2\.': '.mlp.fc1_x.',
  r'\.mlp\.w3\.': '.mlp.fc2.',
  r'\.mlp\.ffn_ln\.': '.mlp.norm.',
  r'\.attn\.inner_attn_ln\.': '.attn.norm.',
}
# Those beside the marker of CLIP, in its image tower.
_CLIP_MARKER = 'transformer.resblocks.0.ln_1.weight'
_CLIP = {
  r'^conv1\.': 'patch_embed.proj.',
  r'^positional_embedding$': 'pos_embed',
  r'^class_embedding$': 'cls_token',
  r'^proj$': 'head.weight',
  r'^transformer\.resblocks\.': 'blocks.',
  r'^ln_pre\.': 'norm_pre.',
  r'^ln_post\.': 'norm.',
  r'\.ln_([12])\.': r'.norm\1.',
  r'\.ls_([12])\.gamma$': r'.ls\1.gamma',
  r'^attn_pool\.probe$': 'attn_pool.latent',
  r'^attn_pool\.layernorm\.': 'attn_pool.norm.',
  r'^attn_pool\.attn\.in_proj_': 'attn_pool.qkv.',
  r'^attn_pool\.attn\.out_proj\.': 'attn_pool.proj.',
  r'\.attn\.in_proj_': '.attn.qkv.',
  r'\.attn\.out_proj\.': '.attn.proj.',
  r'\.mlp\.c_fc\.': '.mlp.fc1.',
  r'\.mlp\.c_proj\.': '.mlp.fc2.',
}


def with_timm_names(file: TensorFile) -> TensorFile:
  """The file with timm's names for the tensors of these models; others keep theirs."""
  if any(n.endswith('register_tokens') and x.shape[1:2] == (1,) for n, x in file.tensors.items()):
    return file  # TIPS, whose names are those of DINOv2 with four registers
  if (prefix := _clip_prefix(file.tensors)) is not None:
    tensors = {}
    for name, tensor in file.tensors.items():
      if name.startswith(prefix):
        name = name.removeprefix(prefix)
        tensors |= {f'{prefix}{n}': x for n, x in _from_clip(_rename(name, _CLIP), tensor).items()}
      else:
        tensors[name] = tensor
  elif any(name.endswith('patch_embed.proj.weight') for name in file.tensors):
    tensors = {_rename(name, _TIMM): x for name, x in file.tensors.items()}
    if len(tensors) != len(file.tensors):  # some have two names for one tensor: nothing is lost
      return file
  else:
    return file
  return dataclasses.replace(file, tensors=tensors)


def _clip_prefix(names: Collection[str]) -> str | None:
  """What precedes the names of CLIP's image tower: 'visual.'; None: it is not CLIP."""
  prefixes = [name.removesuffix('conv1.weight') for name in names if name.endswith('conv1.weight')]
  towers = [prefix for prefix in prefixes if f'{prefix}{_CLIP_MARKER}' in names]
  return min(towers, key=len, default=None)


def _rename(name: str, table: dict[str, str]) -> str:
  for pattern, replacement in table.items():
    name = re.sub(pattern, replacement, name)
  return name


def _from_clip(name: str, tensor: Tensor) -> dict[str, Tensor]:
  """A tensor in the shapes of timm; that of a pooling's query, keys and values as two."""
  shape = tensor.shape
  if name == 'head.weight' and len(shape) == 2:
    return {name: tensor.map(shape[::-1], np.transpose)}
  missing = 3 - len(shape) if name in ('cls_token', 'pos_embed', 'attn_pool.latent') else 0
  if missing > 0:
    batch = (*(1,) * missing, *shape)
    return {name: tensor.map(batch, lambda x: x.reshape(batch))}
  if name.startswith('attn_pool.qkv.') and shape and shape[0] % 3 == 0:
    width, leaf = shape[0] // 3, name.rpartition('.')[2]
    return {
      f'attn_pool.q.{leaf}': tensor.rows(0, width),
      f'attn_pool.kv.{leaf}': tensor.rows(width, 3 * width),
    }
  return {name: tensor}
