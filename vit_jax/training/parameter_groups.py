"""The head and the backbone: their learning rates, and what is frozen."""

from typing import Any

import jax
import optax

from vit_jax.config import OptimizerConfig

# Modules of the head: with its hidden layer (Section 3.1), and that of masked patch prediction.
HEAD = ('head', 'pre_logits', 'prediction_head')


def in_head(path: tuple[Any, ...]) -> bool:
  """Whether the parameter at this path of a tree is one of the head."""
  return path[0].key in HEAD


def lr_multipliers(config: OptimizerConfig, params: Any) -> Any:
  """A tree of numbers: what multiplies the learning rate of each parameter; 0: it is frozen."""
  head, backbone = config.head_lr_multiplier, config.backbone_lr_multiplier
  return jax.tree_util.tree_map_with_path(
    lambda path, _: head if in_head(path) else backbone, params
  )


def stop_frozen_gradients(config: OptimizerConfig, params: Any) -> Any:
  """The parameters, to differentiate a loss of: gradients of frozen ones are zero, at no cost."""
  return jax.tree.map(
    lambda multiplier, x: x if multiplier else jax.lax.stop_gradient(x),
    lr_multipliers(config, params),
    params,
  )


def scale_groups(config: OptimizerConfig) -> optax.GradientTransformation:
  """Multiplies the update of each parameter by its multiplier."""
  return optax.stateless(
    lambda updates, params: jax.tree.map(
      lambda multiplier, x: multiplier * x, lr_multipliers(config, updates), updates
    )
  )


def without_frozen(
  rules: list[optax.GradientTransformation], config: OptimizerConfig
) -> list[optax.GradientTransformation]:
  """The rules without moments of frozen parameters; as they are if none is frozen."""
  if config.head_lr_multiplier and config.backbone_lr_multiplier:
    return rules
  is_trained = lambda tree: jax.tree.map(bool, lr_multipliers(config, tree))  # noqa: E731
  return [optax.masked(optax.chain(*rules), is_trained)]
