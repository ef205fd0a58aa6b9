"""From a model to the fields of `config.model` that build it."""

import dataclasses
from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.attention.detr import DETR
from vit_jax.models.build import Model
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.resnet import BiTResNet
from vit_jax.models.rotary import ROTARIES
from vit_jax.models.variants import (
  DETR_VARIANTS,
  MIXER_VARIANTS,
  RESNET_VARIANTS,
  VARIANTS,
  DETRVariant,
  MixerVariant,
  ResNetVariant,
  Variant,
)
from vit_jax.models.vit import VisionTransformer

_PARTS = (
  'class_token registers patch_bias patch_norm block_bias qkv_bias pixel_mean pixel_std pre_norm '
  'norm mlp layer_scale final_norm pool_num_heads pool_mlp_dim pool_mlp'
).split()


def model_fields(model: Model) -> dict[str, Any]:
  """The fields of `ModelConfig` that build a model of the same architecture and numerics.

  Sizes are named by their variant where they have one. The number of classes and the `pre_logits`
  layer, which belong to the head, are not among the fields.

  Args:
    model: as read off tensors, by `model_from_tensors`.

  Returns:
    {'variant': 'B', 'patch_size': 16, …}.

  Raises:
    UserError: for rotary positions of a rule that has no name.
  """
  if isinstance(model, BiTResNet):
    resnet = ResNetVariant(model.width, tuple(model.blocks))
    name = next((name for name, each in RESNET_VARIANTS.items() if each == resnet), None)
    sizes = {} if name else {'resnet_width': resnet.width, 'resnet_blocks': resnet.blocks}
    return {'variant': name or 'R50x1', **sizes, **_attention_fields(model)}
  if isinstance(model, DETR):
    detr = DETRVariant(**{name: getattr(model, name) for name in DETRVariant.__annotations__})
    name = next((name for name, each in DETR_VARIANTS.items() if each == detr), None)
    return {'variant': name or 'DETR-R50', **({} if name else vars(detr))}
  numerics = {'gelu': model.numerics.gelu, 'layer_norm_epsilon': model.numerics.layer_norm_epsilon}
  if isinstance(model, MlpMixer):
    mixer = MixerVariant(model.width, model.depth, model.token_mlp_dim, model.mlp_dim)
    name = next((name for name, each in MIXER_VARIANTS.items() if each == mixer), None)
    sizes = {} if name else vars(mixer)
    return {'variant': name or 'Mixer-B', **sizes, 'patch_size': model.patch_size, **numerics}
  size = Variant(model.width, model.depth, model.mlp_dim, model.num_heads)
  name = next((name for name, each in VARIANTS.items() if each == size), None)
  return {
    'variant': name or 'B',
    **({} if name else vars(size)),
    'patch_size': model.patch_size,
    'pool': model.pool,
    'resnet_width': model.resnet_width,
    'resnet_blocks': tuple(model.resnet_blocks),
    'position_embedding': model.position_embedding,
    'position_entry': model.position_entry,
    'axial': model.axial,
    **{name: getattr(model, name) for name in _PARTS},
    **_rotary_fields(model),
    **numerics,
  }


def _rotary_fields(model: VisionTransformer) -> dict[str, Any]:
  """The rule by its name; none of the config has another base than its own."""
  if model.rotary is None:
    return {'rotary': 'none', 'rotary_grid': ()}
  rule = dataclasses.replace(model.rotary, reference_grid=())
  name = next((name for name, each in ROTARIES.items() if each == rule), None)
  if name is None:
    raise UserError(
      f'The model has rotary positions by another rule than config.model.rotary has: {rule}.'
    )
  return {'rotary': name, 'rotary_grid': model.rotary.reference_grid}


def _attention_fields(model: BiTResNet) -> dict[str, Any]:
  """The fields of a ResNet's attention, without those that it does not use."""
  fields = {}
  if model.spatial != 'conv':
    fields |= {'resnet_spatial': model.spatial, 'resnet_window': model.window}
    fields['num_heads'] = model.num_heads
  if model.non_local_stages:
    fields['non_local_stages'] = model.non_local_stages
    fields['non_local_subsample'] = model.non_local_subsample
  return fields
