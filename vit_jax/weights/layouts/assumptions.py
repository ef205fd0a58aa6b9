"""What is assumed of a state dict with timm's names and no config.json, by the family it is of."""

import dataclasses
import math
from collections.abc import Mapping

from vit_jax.config import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models.rotary import ROTARIES, Rotary
from vit_jax.weights import licenses
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.metadata import ModelMetadata

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, std of pixels in [0, 1]
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_GRID_OF_EVA02 = (16, 16)  # of its pretraining, 224 pixels


@dataclasses.dataclass(frozen=True)
class Family:
  """What the models of a family share.

  Attributes:
    name: for messages.
    normalization: (mean, std) of pixels in [0, 1].
    epsilon: of LayerNorm.
    num_heads: {width: heads} of sizes whose heads are not 64 wide.
    rotary: a key of ROTARIES, or 'none'.
    gelu: a key of GELUS.
    crop_fraction: of its preprocessing.
    license: of the published weights, where it asks to be named; None: it does not.
  """

  name: str
  normalization: tuple[tuple[float, ...], tuple[float, ...]]
  epsilon: float = 1e-6
  num_heads: Mapping[int, int] = dataclasses.field(default_factory=dict)
  rotary: str = 'none'
  gelu: str = 'exact'
  crop_fraction: float = 0.875
  license: str | None = None


_DINOV2 = Family('DINOv2', _IMAGENET)
_DINOV3 = Family(
  'DINOv3', _IMAGENET, 1e-5, {4096: 32}, 'dinov3', crop_fraction=1.0, license=licenses.DINOV3
)
_EVA = Family('EVA', _CLIP, num_heads={1408: 16}, crop_fraction=1.0)
_EVA02 = Family('EVA-02', _CLIP, rotary='eva02', crop_fraction=1.0)
_PERCEPTION = Family(
  'Perception Encoder', _HALF, 1e-5, {1536: 16}, 'perception_encoder', crop_fraction=1.0
)
_OPEN_CLIP = Family('CLIP', _CLIP, 1e-5, {1280: 16, 1408: 16, 1664: 16}, crop_fraction=1.0)
_AIMV2 = Family('AIMv2', _CLIP, 1e-5, {1024: 8, 1536: 12, 2048: 16, 3072: 24}, crop_fraction=1.0)
_OPENAI_CLIP = Family('OpenAI CLIP', _CLIP, 1e-5, gelu='quick', crop_fraction=1.0)
_DEIT = Family('DeiT', _IMAGENET, num_heads={1280: 16})
_DEIT3 = Family('DeiT III', _IMAGENET, num_heads={1280: 16}, crop_fraction=1.0)
_MAE = Family('MAE', _IMAGENET, num_heads={1280: 16}, license=licenses.not_commercial('MAE'))
# Those that `ModelMetadata.family` may name.
_NAMED = {each.name: each for each in (_DINOV2, _DINOV3, _OPENAI_CLIP, _DEIT, _MAE)}


def family_of(tensors: Mapping[str, Tensor]) -> Family | None:
  """The family of a state dict, by the names of its tensors; None: a plain Vision Transformer."""
  block = 'blocks.0.'
  has_scale = f'{block}ls1.gamma' in tensors or f'{block}gamma_1' in tensors
  if 'patch_embed.proj.weight' not in tensors:
    return None
  if 'patch_embed.norm.weight' in tensors:
    return _AIMV2
  if 'norm_pre.weight' in tensors:
    is_perception = 'attn_pool.latent' in tensors or 'norm.weight' not in tensors
    return _PERCEPTION if is_perception else _OPEN_CLIP
  if 'rope_embed.periods' in tensors or (has_scale and _lacks_positions(tensors)):
    return _DINOV3
  if any(f'{block}attn.{name}' in tensors for name in ('q_proj.weight', 'q_bias')):
    return _EVA02 if _is_gated(tensors) else _EVA
  if has_scale and ('mask_token' in tensors or 'reg_token' in tensors or _patch(tensors) == 14):
    return _DINOV2
  if 'dist_token' in tensors:
    return _DEIT
  if f'{block}gamma_1' in tensors:
    return _DEIT3
  return _MAE if 'decoder_embed.weight' in tensors else None


def _is_gated(tensors: Mapping[str, Tensor]) -> bool:
  first, second = (tensors.get(f'blocks.0.mlp.fc{i}.weight') for i in (1, 2))
  return first is None or second is None or first.shape[:1] != second.shape[-1:]


def _lacks_positions(tensors: Mapping[str, Tensor]) -> bool:
  return 'reg_token' in tensors and 'cls_token' in tensors and 'pos_embed' not in tensors


def _patch(tensors: Mapping[str, Tensor]) -> int:
  return (tensors['patch_embed.proj.weight'].shape or (0,))[-1]


def complete(
  metadata: ModelMetadata, tensors: Mapping[str, Tensor], rotary: str | None, source: str
) -> ModelMetadata:
  """The metadata with what the family of a state dict has, where nothing states it.

  Args:
    metadata: that is stored with the tensors.
    tensors: {name in timm: tensor}.
    rotary: of `vit_jax.load`.
    source: the name of the file, for error messages.

  Raises:
    UserError: for another rotary, or a model that is not supported.
  """
  if metadata.is_own or metadata.image_size is not None:  # a config.json says it
    return (
      metadata if rotary is None else dataclasses.replace(metadata, rotary=_rule(rotary, tensors))
    )
  is_original = 'mask_token' in tensors and family_of(tensors) is _DINOV2  # which timm leaves out
  resize = 'bicubic_offset' if is_original and 'reg_token' not in tensors else 'bicubic_antialias'
  metadata = dataclasses.replace(metadata, position_resize=metadata.position_resize or resize)
  if family_of(tensors) is _PERCEPTION and 'norm.weight' not in tensors:
    metadata = dataclasses.replace(metadata, final_norm='none', pool='gap')  # as timm
  if metadata.pool is None and 'fc_norm.weight' in tensors:
    metadata = dataclasses.replace(metadata, pool='gap')
  family = _NAMED.get(metadata.family or '') or family_of(tensors)
  if 'attn_pool.latent' in tensors and family is not _PERCEPTION:
    if {'cls_token', 'reg_token'} & tensors.keys():
      raise UserError(
        f'{source} has attention pooling of the patches beside other tokens, which vit_jax does '
        'not support.'
      )
  if family is None:
    return (
      metadata if rotary is None else dataclasses.replace(metadata, rotary=_rule(rotary, tensors))
    )
  shape, (mean, std) = tensors['patch_embed.proj.weight'].shape, family.normalization
  width = min(shape[0] if shape else 0, 2**16)
  rule = _rule(rotary or family.rotary, tensors)
  angles = '' if rule is None else f', the rotary positions of {rotary or family.rotary}'
  named = 'those' if metadata.family else 'named as those'
  is_pooled = metadata.pool is not None or 'attn_pool.latent' in tensors
  pooling = '' if is_pooled or 'cls_token' not in tensors else ', its class token as the features'
  return dataclasses.replace(
    metadata,
    num_heads=family.num_heads.get(width, width // 64) or None,
    gelu=family.gelu,
    license=metadata.license or family.license,
    layer_norm_epsilon=family.epsilon,
    rotary=rule,
    mean=metadata.mean or mean,
    std=metadata.std or std,
    preprocessing=metadata.preprocessing
    or Preprocessing(
      'crop', family.crop_fraction, 'bicubic', rounding='torchvision', fill=_fill(mean)
    ),
    notes=(
      *metadata.notes,
      f'the tensors are {named} of {family.name}, of which its normalization of pixels, '
      f'{family.gelu} GELU, LayerNorm epsilon {family.epsilon:g}{angles}{pooling} are assumed; '
      'pass gelu=, mean=, std=, num_heads=, rotary= for others',
    ),
  )


def _fill(mean: tuple[float, ...]) -> tuple[int, ...]:
  return tuple(round(255 * x) for x in mean)


def _rule(name: str, tensors: Mapping[str, Tensor]) -> Rotary | None:
  """The rotation of that name, on the grid that the tensors are of.

  Raises:
    UserError: for another name.
  """
  if name == 'none':
    return None
  if name not in ROTARIES:
    raise UserError(f'rotary is {name!r}; choose one of none, {", ".join(ROTARIES)}.')
  rule = ROTARIES[name]
  if name == 'dinov3':
    periods = tensors.get('rope_embed.periods')
    is_truncated = periods is not None and periods.dtype.name == 'bfloat16'
    return dataclasses.replace(rule, truncated_periods=is_truncated)
  if name == 'eva02':
    return dataclasses.replace(rule, reference_grid=_GRID_OF_EVA02)
  has_class_token = 'cls_token' in tensors
  positions = tensors.get('pos_embed')
  count = positions.shape[1] - has_class_token if positions and len(positions.shape) == 3 else 0
  side = math.isqrt(max(count, 0))
  # The offset is the class token's place in the sequence.
  return dataclasses.replace(rule, offset=float(has_class_token), reference_grid=(side, side))
