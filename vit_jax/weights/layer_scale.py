"""LayerScale (arXiv 2103.17239) folded into the layers before it, for what has no such factors."""

import re
from collections.abc import Mapping

import numpy as np

from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts.released import ATTENTION

_LAYERS = {'0': f'{ATTENTION}/out', '1': 'MlpBlock_0/Dense_1'}


def fold(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """The tensors of a model of the same outputs without LayerScale, in float32.

  Args:
    tensors: {linen name: tensor} of a model that may have it.
  """
  folded = dict(tensors)
  for name, scale in tensors.items():
    match = re.fullmatch(r'(Transformer/encoderblock_\d+/)LayerScale_([01])/scale', name)
    if match is None:
      continue
    del folded[name]
    for leaf in ('kernel', 'bias'):
      layer = f'{match[1]}{_LAYERS[match[2]]}/{leaf}'
      folded[layer] = _scaled(tensors[layer], scale)
  return folded


def _scaled(tensor: Tensor, scale: Tensor) -> Tensor:
  return tensor.map(tensor.shape, lambda x: np.asarray(x, np.float32) * scale.read())
