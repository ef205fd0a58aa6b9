"""The layouts of Google's JAX code, and the names of parameters in memory.

Reads google-research/vision_transformer (whose older linen numbered modules differently),
big_vision (position embeddings outside `posembed_input`, stacked blocks), BiT (`resnet/…`), and the
image tower of LiT (`img/…`).
Writes the first, and the last for a BiT ResNet. In memory parameters have the names that current
linen gives them.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from vit_jax.errors import UserError
from vit_jax.models.build import MAX_DEPTH
from vit_jax.weights.formats.lazy_tensor import MAX_TENSORS, Tensor
from vit_jax.weights.formats.npz_file import write_npz_file

POSITIONS = 'Transformer/posembed_input/pos_embedding'
ATTENTION = 'MultiHeadDotProductAttention_0'
_BIG_VISION_POSITIONS = ('pos_embedding', 'Transformer/pos_embedding')
_TO_LINEN = {
  'MultiHeadDotProductAttention_1': ATTENTION,
  'LayerNorm_2': 'LayerNorm_1',
  'MlpBlock_3': 'MlpBlock_0',
}
_FROM_LINEN = {linen: released for released, linen in _TO_LINEN.items()}
IMAGE_TOWER = 'img/'  # of LiT (arXiv 2111.07991), beside the text tower txt/
# Where a checkpoint keeps the parameters of the image model, among those of a training state.
_STATES = ('', 'params/', 'opt/target/')
_PREFIXES = (*_STATES, *(f'{state}{IMAGE_TOWER}' for state in _STATES))
_STACK = 'Transformer/encoderblock/'
_MAP_HEAD = ('probe', 'MlpBlock_0/', f'{ATTENTION}/', 'LayerNorm_0/')
_GROUP_NORM = re.compile(r'(^|/)(gn\d|gn_root|gn_proj|norm-pre-head)/(scale|bias)$')
_BIT = {  # name in BiT's files: name in memory
  'resnet/root_block/standardized_conv2d/kernel': 'root_block/conv_root/kernel',
  'resnet/group_norm/gamma': 'norm-pre-head/scale',
  'resnet/group_norm/beta': 'norm-pre-head/bias',
  'resnet/head/conv2d/kernel': 'head/kernel',
  'resnet/head/conv2d/bias': 'head/bias',
}
_BIT_UNIT = {'a/proj/standardized_conv2d/kernel': 'conv_proj/kernel'}
for _i, _letter in enumerate('abc', 1):
  _BIT_UNIT[f'{_letter}/standardized_conv2d/kernel'] = f'conv{_i}/kernel'
  _BIT_UNIT[f'{_letter}/group_norm/gamma'] = f'gn{_i}/scale'
  _BIT_UNIT[f'{_letter}/group_norm/beta'] = f'gn{_i}/bias'


def flatten(params: Any) -> dict[str, Any]:
  """A parameter tree as {'embedding/kernel': leaf, …}."""
  return traverse_util.flatten_dict(params, sep='/')


def unflatten(tensors: Mapping[str, Any]) -> Any:
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(dict(tensors), sep='/')


def _rename(name: str, table: Mapping[str, str]) -> str:
  match = re.match(r'(Transformer/encoderblock_\d+/)([^/]+)(/.*)', name)
  return f'{match[1]}{table.get(match[2], match[2])}{match[3]}' if match else name


# --- reading --------------------------------------------------------------------------------


def detect(names: Collection[str]) -> tuple[str, list[str]] | None:
  """('released', 'big_vision' or 'BiT', [prefix of all names]) for names of these, else None."""
  for prefix in _PREFIXES:
    if f'{prefix}resnet/root_block/standardized_conv2d/kernel' in names:
      return 'BiT', [prefix]
    if f'{prefix}stem/kernel' in names:  # MLP-Mixer
      return 'released', [prefix]
    if f'{prefix}root_block/conv_root/kernel' in names:
      return 'big_vision', [prefix]
    if f'{prefix}embedding/kernel' in names:
      is_big_vision = any(prefix + name in names for name in _BIG_VISION_POSITIONS)
      return 'big_vision' if is_big_vision else 'released', [prefix]
  return None


def to_linen(
  tensors: Mapping[str, Tensor], num_heads: int | None, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """Translates tensors as `timm.to_linen` does; their shapes determine the number of heads."""
  linen: dict[str, Tensor] = {}
  for name, tensor in tensors.items():
    for new_name, new_tensor in _translate(name, tensor):
      if new_name in linen:
        raise UserError(f'{source} has {new_name} twice, under an old and a new name.')
      linen[new_name] = new_tensor
    if len(linen) > MAX_TENSORS:
      raise UserError(f'{source} has more than {MAX_TENSORS:,} tensors.')
  return linen, ()


def _translate(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
  """One tensor of a file: a renamed one, or one for each block of a stack."""
  if name.startswith('resnet/'):
    return [_from_bit(name, tensor)]
  if name.startswith(_STACK) and tensor.shape:
    blocks, *shape = tensor.shape
    name = name.removeprefix(_STACK)
    return [
      (
        _rename(f'Transformer/encoderblock_{i}/{name}', _TO_LINEN),
        tensor.rows(i, i + 1).map(tuple(shape), lambda x: x[0]),
      )
      for i in range(min(blocks, MAX_DEPTH + 1))
    ]
  if name.startswith(_MAP_HEAD):  # models from the time of ViT-G have no MAPHead_0
    return [(f'MAPHead_0/{name}', tensor)]
  if name in _BIG_VISION_POSITIONS:
    return [(POSITIONS, tensor)]
  if _GROUP_NORM.search(name) and tensor.shape[:-1] == (1, 1, 1):
    return [(name, tensor.map(tensor.shape[-1:], np.ravel))]
  return [(_rename(name, _TO_LINEN), tensor)]


def _from_bit(name: str, tensor: Tensor) -> tuple[str, Tensor]:
  name = re.sub(r'/standardized_conv2d_\d+/', '/standardized_conv2d/', name)
  name = _BIT.get(name, name)
  if match := re.fullmatch(r'resnet/(block\d/unit\d\d)/(.*)', name):
    name = f'{match[1]}/{_BIT_UNIT.get(match[2], match[2])}'
  if name == 'head/kernel' and tensor.shape[:2] == (1, 1):
    tensor = tensor.map(tensor.shape[2:], lambda x: x[0, 0])
  return name, tensor


# --- writing --------------------------------------------------------------------------------


def from_linen(params: Any) -> dict[str, np.ndarray]:
  """A parameter tree as {released name: array}, so that existing loaders read it."""
  tensors = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
  if 'root_block/conv_root/kernel' not in tensors:
    return {_rename(name, _FROM_LINEN): array for name, array in tensors.items()}
  to_bit, to_bit_unit = ({new: old for old, new in table.items()} for table in (_BIT, _BIT_UNIT))
  arrays = {}
  for name, array in tensors.items():
    if match := re.fullmatch(r'(block\d/unit\d\d)/(.*)', name):
      arrays[f'resnet/{match[1]}/{to_bit_unit[match[2]]}'] = array
    else:
      arrays[to_bit[name]] = array[None, None] if name == 'head/kernel' else array
  return arrays


def write_npz(path: epath.PathLike, params: Any, metadata: str = '') -> None:
  """Writes a parameter tree in the released layout; `metadata` as in `write_npz_file`."""
  write_npz_file(path, from_linen(params), metadata)
