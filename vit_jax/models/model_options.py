"""The fields of the config that each kind of model reads, and those that fit together."""

import dataclasses

from vit_jax.config import ModelConfig
from vit_jax.errors import UserError
from vit_jax.models.resnet import hybrid_stride
from vit_jax.models.variants import DETR_VARIANTS, MIXER_VARIANTS, RESNET_VARIANTS
from vit_jax.models.vit import VisionTransformer
from vit_jax.text import join_words, plural

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
# What axial blocks do not have, and the value without it.
_NOT_AXIAL = dict(
  class_token=False,
  registers=0,
  rotary=None,
  mlp='gelu',
  layer_scale=0.0,
  block_bias=True,
  qkv_bias='all',
)


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


def check_sizes(model: VisionTransformer) -> None:
  """Raises `UserError` for sizes or parts of a Vision Transformer that do not fit together."""
  if model.width % model.num_heads:
    raise UserError(
      f'config.model.width={model.width} is not a multiple of num_heads={model.num_heads}.'
    )
  if model.pool_num_heads and model.width % model.pool_num_heads:
    raise UserError(
      f'config.model.width={model.width} is not a multiple of pool_num_heads='
      f'{model.pool_num_heads}.'
    )
  if model.resnet_width % 32 or (model.resnet_blocks and not model.resnet_width):
    raise UserError(
      f'config.model.resnet_width is {model.resnet_width}; a hybrid needs a positive multiple of '
      '32.'
    )
  if len(model.pixel_mean) != len(model.pixel_std):
    raise UserError(
      f'config.model.pixel_mean has {plural(len(model.pixel_mean), "number")}, but pixel_std '
      f'{len(model.pixel_std)}; set one of each for each channel.'
    )
  _check_positions(model)
  _check_parts(model)
  stride = hybrid_stride(model.resnet_blocks)
  if model.resnet_width and model.patch_size % stride:
    raise UserError(
      f'config.model.patch_size is {model.patch_size}; with {len(model.resnet_blocks)} '
      f'resnet_blocks it must be a multiple of {stride} pixels.'
    )


def _check_positions(model: VisionTransformer) -> None:
  kind, entry = model.position_embedding, model.position_entry
  if kind == '2d' and model.width % 2:
    raise UserError(
      f'config.model.width={model.width} is odd; position_embedding=2d needs an even one.'
    )
  if kind == 'none' and entry != 'stem':
    raise UserError(
      f'config.model.position_entry={entry} needs positions, but position_embedding is none; set '
      'it to stem.'
    )
  if kind == 'relative' and entry == 'layers':
    raise UserError(
      'config.model.position_entry=layers adds embeddings to the input of blocks, but '
      'position_embedding is relative, which is in their attention; set it to stem or '
      'layers_shared.'
    )
  if model.axial and kind == 'relative' and entry == 'layers_shared':
    raise UserError(
      'config.model.axial=True has relative positions of rows and of columns in each block, not '
      'shared ones; set position_entry to stem.'
    )


def _check_parts(model: VisionTransformer) -> None:
  """Raises `UserError` for parts that exclude each other."""
  if model.axial and model.pool not in ('gap', 'map'):
    raise UserError(
      'config.model.axial=True needs pool gap or map: a class token has no row and no column.'
    )
  for name, default in _NOT_AXIAL.items() if model.axial else ():
    if (value := getattr(model, name)) != default:
      is_rotary = name == 'rotary'  # whose value is not that of the config
      raise UserError(
        f'config.model.axial=True does not go with {name}{"" if is_rotary else f"={value}"}; set '
        f'{name}={"none" if is_rotary else default}.'
      )
  for name, default in (('pool_num_heads', 0), ('pool_mlp_dim', 0), ('pool_mlp', True)):
    if (value := getattr(model, name)) != default and model.pool != 'map':
      raise UserError(
        f'config.model.{name}={value} is that of pool=map, but pool={model.pool}; set '
        f'{name}={default}.'
      )
  if model.pool_mlp_dim and not model.pool_mlp:
    raise UserError(
      f'config.model.pool_mlp_dim={model.pool_mlp_dim} is of an MLP that pool_mlp=False leaves '
      'out; set pool_mlp_dim to 0.'
    )
  if model.rotary is None:
    return
  if model.width // model.num_heads % 4:
    raise UserError(
      f'config.model.rotary rotates quarters of a head, but width={model.width} and '
      f'num_heads={model.num_heads} make heads of {model.width // model.num_heads} features; use a '
      'multiple of 4.'
    )
