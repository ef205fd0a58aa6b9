"""What AIMv2 (arXiv 2411.14402) in Transformers has otherwise than the model here.

Its attention pooling has a query of its own where ours projects one, and the sizes of images that
it takes at their native resolution determine its positions.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts.released import ATTENTION, POSITIONS
from vit_jax.weights.metadata import ModelMetadata

_POOL = f'MAPHead_0/{ATTENTION}'
_BLOCK = 'Transformer/encoderblock_'


def complete(linen: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """The tensors with an identity for the projection of the query of its pooling, and with zeros.

  Zeros are the biases that only some dense layers of the blocks lack, and those of the pooling.
  """
  completed = dict(linen)
  has_biases = any(n.startswith(_BLOCK) and n.endswith('/bias') for n in linen)
  shape = linen[f'{_POOL}/key/kernel'].shape if f'{_POOL}/key/kernel' in linen else ()
  if shape and math.prod(shape[1:]) == shape[0]:
    completed[f'{_POOL}/query/kernel'] = Tensor.from_array(
      np.eye(shape[0], dtype=np.float32).reshape(shape)
    )
  for name, kernel in tuple(completed.items()):
    if name.endswith('/kernel') and name.startswith((_POOL, *((_BLOCK,) if has_biases else ()))):
      shape = kernel.shape[2:] if name.endswith('/out/kernel') else kernel.shape[1:]
      zeros = Tensor.from_array(np.zeros(shape, np.float32))
      completed.setdefault(name.replace('/kernel', '/bias'), zeros)
  return completed


def with_sincos_positions(
  tensors: Mapping[str, Tensor], metadata: ModelMetadata, image_size: tuple[int, int] | None
) -> tuple[dict[str, Tensor], ModelMetadata, tuple[str, ...]]:
  """A model of native resolution with the table of its fixed positions for one image size.

  Args:
    tensors, metadata: of a model of Transformers; others than such a model are left as they are.
    image_size: (height, width) that it is loaded for; None: that of its config.

  Returns:
    The tensors and the metadata for this size, and notes.
  """
  image_size = image_size or metadata.image_size or (224, 224)
  kernel = tensors.get('embedding/kernel')
  shape = (0,) if kernel is None else kernel.shape
  is_native = 'patch_norm/scale' in tensors and POSITIONS not in tensors
  if not is_native or len(shape) != 4 or shape[3] % 4:
    return dict(tensors), metadata, ()
  patch, _, _, width = shape
  grid = image_size[0] // patch, image_size[1] // patch
  shape = 1, grid[0] * grid[1], width
  table = Tensor(shape, np.dtype(np.float32), lambda rows: _sincos(*grid, width)[rows or ...])
  note = f'its fixed positions are a table for {grid[0]}x{grid[1]} patches; load it at each size'
  sized = dataclasses.replace(metadata, image_size=image_size)
  return {**tensors, POSITIONS: table}, sized, (note,)


def _sincos(rows: int, columns: int, width: int) -> np.ndarray:
  """(1, rows * columns, D): sine and cosine of the column, then of the row, of D/4 frequencies."""
  frequencies = 1 / 10_000 ** (np.arange(width // 4) / (width // 4))
  y, x = (each.reshape(-1, 1) * frequencies for each in np.mgrid[:rows, :columns])
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table[None].astype(np.float32)


def pooling_to_transformers(params: Any, has_biases: bool) -> Any:
  """The parameters with a probe that is the query, and with no biases of keys and values.

  The bias of keys changes no softmax; that of values is added to all outputs alike. They are kept
  with `has_biases`.
  """
  if 'MAPHead_0' not in params:
    return params
  head = params['MAPHead_0']
  layers = {name: dict(layer) for name, layer in head[ATTENTION].items()}
  query, value, out = layers['query'], layers['value'], layers['out']
  projected = np.asarray(head['probe']) @ np.asarray(query['kernel']).reshape(
    len(query['kernel']), -1
  )
  if not has_biases:
    out['bias'] = out['bias'] + np.tensordot(value.pop('bias'), out['kernel'], 2)
    del layers['key']['bias']
  probe = projected + np.asarray(query['bias']).reshape(-1)
  return {**params, 'MAPHead_0': {'probe': probe, ATTENTION: layers}}
