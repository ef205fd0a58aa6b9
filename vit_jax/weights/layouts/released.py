"""The published layouts of parameters: their names and shapes, to the ones in memory and back.

Read are the layouts of google-research/vision_transformer (with the older linen names), of
big_vision (position embeddings apart from the class token, scanned blocks) and of BiT
(`resnet/…`). Written are the first and the last. In memory parameters carry the names of
current linen.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from vit_jax.errors import UserError
from vit_jax.models.build import MAX_DEPTH
from vit_jax.weights.formats.lazy_tensor import MAX_TENSORS, Tensor
from vit_jax.weights.formats.npz_file import write_npz_file

POSITIONS = 'Transformer/posembed_input/pos_embedding'
_BLOCK = r'(Transformer/encoderblock_\d+/)'
_TO_LINEN = {
  'MultiHeadDotProductAttention_1': 'MultiHeadDotProductAttention_0',
  'LayerNorm_2': 'LayerNorm_1',
  'MlpBlock_3': 'MlpBlock_0',
}
_TO_PUBLISHED = {linen: published for published, linen in _TO_LINEN.items()}
# Where a checkpoint of a whole training state keeps the parameters of the image model.
_PREFIXES = ('', 'params/', 'opt/target/', 'params/img/', 'opt/target/img/')
_STACK = 'Transformer/encoderblock/'
_MAP_HEAD = ('probe', 'MlpBlock_0/', 'MultiHeadDotProductAttention_0/', 'LayerNorm_0/')
_GROUP_NORM = re.compile(r'(^|/)(gn\d|gn_root|gn_proj|norm-pre-head)/(scale|bias)$')
_BIT = {  # name in the files of BiT: name in memory
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
  match = re.match(_BLOCK + r'([^/]+)(/.*)', name)
  return f'{match[1]}{table.get(match[2], match[2])}{match[3]}' if match else name


def find_layout(tensors: Mapping[str, Any]) -> tuple[str, str] | None:
  """(layout, prefix of its names) when the names are of a published layout, else None."""
  for prefix in _PREFIXES:
    if f'{prefix}resnet/root_block/standardized_conv2d/kernel' in tensors:
      return 'BiT', prefix
    if f'{prefix}root_block/conv_root/kernel' in tensors:
      return 'big_vision', prefix
    if f'{prefix}embedding/kernel' in tensors:
      return 'released' if prefix + POSITIONS in tensors else 'big_vision', prefix
  return None


def to_linen(
  tensors: Mapping[str, Tensor], prefix: str, source: str
) -> tuple[dict[str, Tensor], list[str]]:
  """The tensors of a published layout under the names and in the shapes of memory.

  Args:
    tensors: {name in the file: tensor}.
    prefix: as `find_layout` tells.
    source: the name of the file, for error messages.

  Returns:
    {linen name: tensor}, and the names in the file that lie outside of `prefix`.

  Raises:
    UserError: when two names in the file mean the same parameter.
  """
  ignored = [name for name in tensors if not name.startswith(prefix)]
  found = {}
  for name, tensor in tensors.items():
    if name.startswith(prefix):
      for new_name, new_tensor in _translate(name.removeprefix(prefix), tensor):
        if new_name in found:
          raise UserError(f'{source} holds {new_name} twice, under an old and a new name.')
        found[new_name] = new_tensor
    if len(found) > MAX_TENSORS:
      raise UserError(f'{source} has more than {MAX_TENSORS:,} tensors.')
  return found, ignored


def _translate(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
  """One tensor of a file: a renamed one, or one for each block of a scanned stack."""
  if name.startswith('resnet/'):
    return [_from_bit(name, tensor)]
  if name.startswith(_STACK) and tensor.shape:
    shape = tensor.shape[1:]
    return [
      (
        _rename(f'Transformer/encoderblock_{i}/{name.removeprefix(_STACK)}', _TO_LINEN),
        tensor.rows(i, i + 1).map(shape, lambda x: x[0]),
      )
      for i in range(min(tensor.shape[0], MAX_DEPTH + 1))
    ]
  if name.startswith(_MAP_HEAD):  # as models of the time of ViT-G had them
    return [(f'MAPHead_0/{name}', tensor)]
  if name in ('pos_embedding', 'Transformer/pos_embedding'):
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


def to_published(params: Any) -> dict[str, np.ndarray]:
  """A parameter tree as {published name: array}, so that existing loaders read it."""
  tensors = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
  if 'root_block/conv_root/kernel' not in tensors:
    return {_rename(name, _TO_PUBLISHED): array for name, array in tensors.items()}
  to_bit = {linen: published for published, linen in _BIT.items()}
  unit = {linen: published for published, linen in _BIT_UNIT.items()}
  found = {}
  for name, array in tensors.items():
    if match := re.fullmatch(r'(block\d/unit\d\d)/(.*)', name):
      found[f'resnet/{match[1]}/{unit[match[2]]}'] = array
    else:
      found[to_bit[name]] = array[None, None] if name == 'head/kernel' else array
  return found


def write_npz(path: epath.PathLike, params: Any, facts: str = '') -> None:
  """Writes a parameter tree in the published layout; the facts are those of `npz_file`."""
  write_npz_file(path, to_published(params), facts)
