"""Biases of queries, keys and values that a model lacks, for one that has them."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.models.encoder_block import QKV_BIASES
from vit_jax.weights.layouts.released import ATTENTION

_KERNEL = re.compile(rf'(Transformer/encoderblock_\d+/{ATTENTION}/(query|key|value)/)kernel')


def missing_biases(tensors: Mapping[str, Any], qkv_bias: str = 'all') -> dict[str, np.ndarray]:
  """{name: zeros} of the biases that blocks with another `qkv_bias` have besides.

  Args:
    tensors: {linen name: array or tensor}.
    qkv_bias: a key of QKV_BIASES.
  """
  missing = {}
  for name, kernel in tensors.items():
    match = _KERNEL.fullmatch(name)
    if match and match[2] in QKV_BIASES[qkv_bias] and f'{match[1]}bias' not in tensors:
      missing[f'{match[1]}bias'] = np.zeros(kernel.shape[1:], np.float32)
  return missing
