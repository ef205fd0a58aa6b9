"""Which parameters are trained, and how fast: head, backbone, layers, patterns, adapters."""

import difflib
import re
from typing import Any

import jax
import optax

from vit_jax.config import OptimizerConfig
from vit_jax.errors import UserError
from vit_jax.models.lora import ADAPTER, has_adapters

# Modules of the head: with its hidden layer (Section 3.1), and that of masked patch prediction.
HEAD = ('head', 'head_distillation', 'pre_logits', 'prediction_head')
_AFTER_BLOCKS = (*HEAD, 'encoder_norm', 'pre_head_layer_norm', 'pool_norm', 'MAPHead_0')
_BLOCK = re.compile(r'(?:encoderblock|MixerBlock)_(\d+)')


def in_head(path: tuple[Any, ...]) -> bool:
  """Whether the parameter at this path of a tree is one of the head."""
  return path[0].key in HEAD


def lr_multipliers(config: OptimizerConfig, params: Any) -> Any:
  """A tree of numbers: what multiplies the learning rate of each parameter; 0: it is frozen."""
  depth = _depth(params)
  freeze = [re.compile(pattern) for pattern in config.freeze]
  only_adapters = has_adapters(params)

  def multiplier(path: tuple[Any, ...], _: Any) -> float:
    if any(pattern.fullmatch(_name(path)) for pattern in freeze):
      return 0.0
    decay = config.layer_decay ** (depth + 1 - _layer(path, depth))
    if in_head(path):
      return config.head_lr_multiplier * decay
    is_adapted = only_adapters and path[-1].key not in ADAPTER
    return 0.0 if is_adapted else config.backbone_lr_multiplier * decay

  return jax.tree_util.tree_map_with_path(multiplier, params)


def trained_params(config: OptimizerConfig, params: Any) -> Any:
  """The parameters with None in place of frozen ones, which have no gradients and no moments."""
  return jax.tree.map(lambda rate, x: x if rate else None, lr_multipliers(config, params), params)


def with_trained(params: Any, trained: Any) -> Any:
  """All parameters, of which those that are not None in `trained` have the values there."""
  return jax.tree.map(
    lambda new, old: old if new is None else new, trained, params, is_leaf=lambda x: x is None
  )


def scale_groups(config: OptimizerConfig) -> optax.GradientTransformation:
  """Multiplies the update of each parameter, its weight decay included, by its multiplier."""
  return optax.stateless(
    lambda updates, params: jax.tree.map(
      lambda multiplier, x: multiplier * x, lr_multipliers(config, updates), updates
    )
  )


def check_groups(config: OptimizerConfig, params: Any) -> None:
  """Raises `UserError` for a pattern that matches nothing, or where nothing is trained.

  Args:
    config: of the run.
    params: its parameters; `ShapeDtypeStruct`s suffice.
  """
  names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  for pattern in config.freeze:
    if not any(re.fullmatch(pattern, name) for name in names):
      close = ', '.join(difflib.get_close_matches(pattern, names, n=3, cutoff=0.0))
      raise UserError(
        f'config.optimizer.freeze: no parameter is called {pattern!r}; close names: {close}.'
      )
  if config.layer_decay != 1 and not _depth(params):
    config.refuse('layer_decay', 'the model has no Transformer or Mixer blocks; set it to 1')
  if not any(jax.tree.leaves(lr_multipliers(config, params))):
    config.refuse('freeze', 'no parameter is left to train')


def _name(path: tuple[Any, ...]) -> str:
  """'Transformer/encoderblock_0/LayerNorm_0/bias' of the path to a leaf."""
  return '/'.join(each.key for each in path)


def _depth(params: Any) -> int:
  """The number of blocks."""
  names = (*params, *params.get('Transformer', {}))
  return sum(bool(_BLOCK.fullmatch(name)) for name in names)


def _layer(path: tuple[Any, ...], depth: int) -> int:
  """0 before the blocks, i + 1 in block i, depth + 1 after them.

  As in microsoft/unilm (beit/optim_factory.py), also for relative positions that the blocks share.
  """
  names = [each.key for each in path]
  for match in map(_BLOCK.fullmatch, names):
    if match:
      return int(match[1]) + 1
  is_after = any(name in _AFTER_BLOCKS for name in names) or names[-1] == 'relative_embedding'
  return depth + 1 if is_after else 0
