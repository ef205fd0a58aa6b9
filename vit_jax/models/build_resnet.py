"""Builds ResNets and DETRs from a config, and checks their sizes."""

from collections.abc import Callable
from typing import Any

import jax

from vit_jax.config import ModelConfig
from vit_jax.errors import UserError
from vit_jax.models.attention.axial_attention import AXIAL_WINDOW
from vit_jax.models.attention.detr import DETR
from vit_jax.models.attention.local_attention import LOCAL_WINDOW
from vit_jax.models.dot_product_attention import Attend
from vit_jax.models.resnet import BiTResNet
from vit_jax.models.variants import DETR_VARIANTS, RESNET_VARIANTS

_NUM_HEADS = 8  # of the attention in a ResNet, as in both papers


def resnet_from_config(
  config: ModelConfig, num_classes: int, constrain: Callable[[jax.Array], jax.Array], dtype: Any
) -> BiTResNet:
  """A ResNet of a row of `RESNET_VARIANTS`; arguments and errors as `build.model_from_config`."""
  variant = RESNET_VARIANTS[config.variant]
  window, num_heads = 0, 0
  if config.resnet_spatial != 'conv':
    default = {'local': LOCAL_WINDOW, 'axial': AXIAL_WINDOW}[config.resnet_spatial]
    window, num_heads = config.resnet_window or default, config.num_heads or _NUM_HEADS
  model = BiTResNet(
    width=config.resnet_width or variant.width,
    blocks=config.resnet_blocks or variant.blocks,
    num_classes=num_classes,
    head_bias_init=config.head_bias_init,
    dtype=dtype,
    constrain=constrain,
    spatial=config.resnet_spatial,
    window=window,
    num_heads=num_heads,
    non_local_stages=tuple(sorted(set(config.non_local_stages))),
    non_local_subsample=config.non_local_subsample,
  )
  if model.width % 32:
    config.refuse('resnet_width', 'a ResNet needs a multiple of 32 features')
  if num_heads and model.width % (2 * num_heads):
    raise UserError(
      f'config.model.resnet_width={model.width} is not a multiple of 2 num_heads='
      f'{2 * num_heads}, as resnet_spatial={model.spatial} needs it.'
    )
  stages = range(1, len(model.blocks) + 1)
  if not set(model.non_local_stages) <= set(stages):
    config.refuse('non_local_stages', f'the stages of the ResNet are 1 to {len(stages)}')
  return model


def detr_from_config(
  config: ModelConfig,
  num_classes: int,
  constrain: Callable[[jax.Array], jax.Array],
  dtype: Any,
  attention: Attend,
) -> DETR:
  """A DETR of a row of `DETR_VARIANTS`; arguments and errors as `build.model_from_config`."""
  variant = DETR_VARIANTS[config.variant]
  sizes = {name: getattr(config, name) or default for name, default in vars(variant).items()}
  model = DETR(
    **sizes,
    num_classes=num_classes,
    dropout_rate=config.dropout_rate,
    attention_dropout_rate=config.attention_dropout_rate,
    head_bias_init=config.head_bias_init,
    dtype=dtype,
    attention=attention,
    constrain=constrain,
  )
  if model.resnet_width % 32:
    config.refuse('resnet_width', 'a ResNet needs a multiple of 32 features')
  if model.width % 4 or model.width % model.num_heads:
    raise UserError(
      f'config.model.width={model.width} is not a multiple of num_heads={model.num_heads} and of 4.'
    )
  return model
