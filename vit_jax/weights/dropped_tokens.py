"""Tokens of a Vision Transformer that another one lacks: registers, class, distillation token."""

from collections.abc import Mapping

import numpy as np

from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.formats.lazy_tensor import Tensor

_POSITIONS = '/pos_embedding'


def can_drop(old: VisionTransformer, new: VisionTransformer) -> bool:
  """Whether `new` is `old` without some of its tokens, or pools other tokens of the same ones.

  Attention pooling has parameters of its own, which the other pools lack. A register is like any
  other, so that none or all of them are dropped.
  """
  return (
    {*new.prefix_names} <= {*old.prefix_names}
    and (new.pool == 'map') == (old.pool == 'map')
    and new.registers in (0, old.registers)
    and (new.prefix_names == old.prefix_names or old.position_embedding in ('1d', 'none'))
  )


def without_tokens(
  tensors: Mapping[str, Tensor], old: VisionTransformer, new: VisionTransformer
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """The tensors of a model without the tokens that another one lacks.

  Args:
    tensors: {linen name: tensor} of `old`.
    old, new: of which `can_drop` is true.

  Returns:
    The tensors, without the positions of the tokens and the head of a distillation token, and the
    names of those that are dropped.
  """
  names = {name for name in old.prefix_names if name not in new.prefix_names}
  rows = [i for i, name in enumerate(old.prefix_names) if name not in names]
  if old.registers and not new.registers:
    names.add('registers')
  if 'distillation' in names:
    names |= {name for name in tensors if name.startswith('head_distillation/')}
  kept = {name: tensor for name, tensor in tensors.items() if name not in names}
  for name, tensor in kept.items():
    if len(rows) < len(old.prefix_names) and name.endswith(_POSITIONS):
      kept[name] = _with_rows(tensor, rows, len(old.prefix_names))
  return kept, tuple(sorted(names & tensors.keys()))


def _with_rows(positions: Tensor, rows: list[int], num_prefix: int) -> Tensor:
  """Position embeddings (1, N, D) of only some of the tokens before the patches."""
  batch, count, width = positions.shape
  shape = (batch, count - num_prefix + len(rows), width)
  return positions.map(shape, lambda x: np.concatenate([x[:, rows], x[:, num_prefix:]], axis=1))
