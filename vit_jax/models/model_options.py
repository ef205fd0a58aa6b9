"""The fields of the config that each kind of model reads; others may not be set."""

import dataclasses

from vit_jax.config import ModelConfig
from vit_jax.errors import UserError
from vit_jax.models.variants import DETR_VARIANTS, MIXER_VARIANTS, RESNET_VARIANTS
from vit_jax.text import join_words

_EVERY_MODEL = 'variant head_bias_init dtype '
_RESNET_OPTIONS = {'resnet_spatial', 'resnet_window', 'non_local_stages', 'non_local_subsample'}
_ALL = {each.name for each in dataclasses.fields(ModelConfig)}

# Kind: the fields that its models read.
READ_FIELDS = {
  'a Vision Transformer': _ALL - _RESNET_OPTIONS - {'token_mlp_dim'},
  'an MLP-Mixer': set(
    f'{_EVERY_MODEL} patch_size width depth token_mlp_dim mlp_dim stochastic_depth_rate gelu '
    'layer_norm_epsilon remat'.split()
  ),
  'a ResNet': set(f'{_EVERY_MODEL} resnet_width resnet_blocks num_heads'.split()) | _RESNET_OPTIONS,
  'a DETR': set(
    f'{_EVERY_MODEL} width depth mlp_dim num_heads resnet_width resnet_blocks dropout_rate '
    'attention_dropout_rate attention'.split()
  ),
}
# What a ResNet reads only where another field is set.
_READ_WITH = {
  'resnet_window': 'resnet_spatial',
  'num_heads': 'resnet_spatial',
  'non_local_subsample': 'non_local_stages',
}


def kind_of(variant: str) -> str:
  """The key of READ_FIELDS of a variant: 'a Vision Transformer', 'a ResNet', …."""
  kinds = {'an MLP-Mixer': MIXER_VARIANTS, 'a ResNet': RESNET_VARIANTS, 'a DETR': DETR_VARIANTS}
  return next((kind for kind, names in kinds.items() if variant in names), 'a Vision Transformer')


def check_fields(config: ModelConfig) -> None:
  """Raises `UserError` naming all fields that are set and that the variant's model does not read.

  Models other than Vision Transformers have average pooling only; pool=gap says so, and token, the
  default, is not taken for a choice.
  """
  kind, defaults = kind_of(config.variant), ModelConfig()
  conditions = {}  # field: the value of another one, with which it is not read
  if kind == 'a ResNet':
    for name, other in _READ_WITH.items():
      if getattr(config, other) == getattr(defaults, other):
        conditions[name] = f'{other}={getattr(defaults, other)}'
  read = READ_FIELDS[kind] - conditions.keys()
  if config.pool == 'gap':
    read.add('pool')
  unread = [
    each.name
    for each in dataclasses.fields(config)
    if each.name not in read and getattr(config, each.name) != getattr(defaults, each.name)
  ]
  if not unread:
    return
  reasons = dict.fromkeys(conditions[name] for name in unread if name in conditions)
  raise UserError(
    join_words(f'{config.full_name(name)}={getattr(config, name)}' for name in unread)
    + f' {"is" if len(unread) == 1 else "are"} not for {kind}'
    + (f' with {join_words(reasons)}' if reasons else '')
    + f'; set {join_words(f"{name}={getattr(defaults, name)}" for name in unread)}.'
  )
