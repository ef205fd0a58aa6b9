"""timm's config.json: the model and its preprocessing, read and written."""

import math
from collections.abc import Mapping
from typing import Any

from vit_jax.config import Preprocessing, height_width
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights import licenses
from vit_jax.weights.formats.lazy_tensor import METADATA_KEY
from vit_jax.weights.layouts import pytorch, timm_architectures, timm_arguments
from vit_jax.weights.metadata import HALF, ModelMetadata, UnsupportedError

# Of pixels in [0, 1]: IMAGENET_DEFAULT_MEAN in timm/data/constants.py.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'lanczos')
_POOLS = {'token': 'token', 'avg': 'gap', 'map': 'map'}
# The names of its VisionTransformers begin like this; other models differ in their tensors.
_TRANSFORMERS = ('vit', 'deit', 'flexivit', 'eva', 'test_vit')
_LAYER_NORMS = ('layernorm', 'layernormfp32')
# Arguments that its tensors must agree with, and the fields of the model.
_SIZES = dict(
  embed_dim='width',
  depth='depth',
  patch_size='patch_size',
  reg_tokens='registers',
  num_reg_tokens='registers',
)
# Arguments of its classes that are read here, that the tensors show, or that change no numbers in
# tests.
_HARMLESS = frozenset(
  'img_size patch_size in_chans num_classes embed_dim depth num_heads mlp_ratio qkv_bias qk_norm '
  'scale_attn_norm scale_mlp_norm proj_bias init_values class_token pos_embed no_embed_class '
  'reg_tokens pre_norm final_norm fc_norm dynamic_img_size dynamic_img_pad strict_img_size '
  'weight_init fix_init embed_norm_layer drop_rate pos_drop_rate patch_drop_rate proj_drop_rate '
  'attn_drop_rate drop_path_rate global_pool act_layer norm_layer pretrained_strict class eps '
  'mlp_layer num_reg_tokens qkv_fused swiglu_mlp swiglu_align_to scale_mlp scale_attn_inner '
  'attn_type use_abs_pos_emb use_rot_pos_emb rope_type rope_grid_offset rope_grid_indexing '
  'rope_temperature rope_rotate_half rope_shift_coords rope_jitter_coords rope_rescale_coords '
  'ref_feat_shape use_pre_transformer_norm use_post_transformer_norm use_fc_norm '
  'attn_pool_num_heads attn_pool_mlp_ratio attn_only_layer_scale head_init_scale'.split()
)


# --- reading --------------------------------------------------------------------------------


def is_config(config: Mapping[str, Any]) -> bool:
  """Whether a config.json is timm's."""
  return 'architecture' in config or 'pretrained_cfg' in config


def read_config(config: Mapping[str, Any]) -> ModelMetadata:
  """The metadata in timm's config.json; call it within `damage_explained`.

  Raises:
    UnsupportedError: for a model or a preprocessing with other features.
  """
  pretrained = config.get('pretrained_cfg') or config  # old ones have its fields at the top
  stated = config.get('model_args') or {}
  architecture = str(config.get('architecture') or '').partition('.')[0]
  published_as = '.'.join(filter(None, (architecture, str(pretrained.get('tag') or ''))))
  of_name = timm_architectures.arguments(architecture)
  arguments = {**of_name, **stated}
  if 'unsupported' in of_name:
    raise UnsupportedError(of_name['unsupported'])
  size = arguments.get('img_size') or (pretrained.get('input_size') or [3, 224, 224])[1:]
  image_size = height_width(size if isinstance(size, int) else tuple(size))
  heads = arguments.get('num_heads', 12 if of_name else None)
  is_resnet = architecture.startswith('resnetv2')
  pool = activation = None
  if not is_resnet:
    activation = _read_activation(arguments)
    pool = _read_pool(stated, config, of_name, pretrained)
    if of_name and pool is None:
      pool = 'gap' if of_name['class'] == 'eva' else 'token'
    if of_name.get('class') == 'distilled':
      pool = 'distilled'
    _check_arguments(architecture, arguments)
    prefix = arguments.get('reg_tokens') or arguments.get('class_token', True)
    if pool == 'map' and prefix and of_name.get('class') == 'vit':
      raise UnsupportedError('attention pooling of the patches beside other tokens')
  preprocessing = _read_preprocessing(pretrained)
  ours = config.get(METADATA_KEY) or {}
  if ours.get('preprocessing'):
    written = ModelMetadata.from_json(ours).preprocessing or Preprocessing()
    expected = _make_pretrained(written, image_size, 3) | {'mean': pretrained.get('mean')}
    if _read_preprocessing(expected) == preprocessing:
      preprocessing = written  # nobody has changed pretrained_cfg
  return ModelMetadata(
    image_size=image_size,
    preprocessing=preprocessing,
    loss=ours.get('loss', 'softmax'),
    labels=config.get('label_names') or pretrained.get('label_names') or config.get('labels'),
    num_heads=None if isinstance(heads, list) else heads,  # Swin has a list
    pool_num_heads=arguments.get('attn_pool_num_heads'),
    gelu=activation and pytorch.GELUS[activation],
    rotary=timm_architectures.rotary(arguments),
    layer_norm_epsilon=ours.get(
      'layer_norm_epsilon', arguments.get('eps', timm_architectures.EPSILON)
    ),
    dtype=ours.get('dtype'),
    mean=tuple(map(float, pretrained.get('mean') or _IMAGENET_MEAN)),
    std=tuple(map(float, pretrained.get('std') or _IMAGENET_STD)),
    pool=pool,
    final_norm='none' if _lacks_norms(arguments) else None,
    has_positions=arguments.get('pos_embed', 'learn') not in ('', 'none'),
    sizes=_sizes(arguments) if of_name else {},
    # resample_abs_pos_embed in timm/layers/pos_embed.py
    position_resize=ours.get('position_resize') or 'bicubic_antialias',
    license=ours.get('license')
    or licenses.terms(str(pretrained.get('license') or ''), published_as),
  )


def _lacks_norms(arguments: Mapping[str, Any]) -> bool:
  """Whether there is no LayerNorm after the blocks, nor after pooling."""
  after_blocks, pooled = (
    ('use_post_transformer_norm', 'use_fc_norm')
    if arguments.get('class') == 'eva'
    else ('final_norm', 'fc_norm')
  )
  return arguments.get(after_blocks) is False and not arguments.get(pooled)


def _sizes(arguments: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of the model that the tensors must have."""
  stated = {_SIZES[key]: x for key, x in arguments.items() if key in _SIZES and type(x) is int}
  prefix = ('cls', 'distillation') if arguments['class'] == 'distilled' else ('cls',)
  return stated | {'prefix_names': prefix if arguments.get('class_token', True) else ()}


def _read_activation(arguments: Mapping[str, Any]) -> str:
  activation = (arguments.get('act_layer') or 'gelu').lower()
  pytorch.check_activation(activation)
  return activation


def _read_pool(*places: Mapping[str, Any]) -> str | None:
  """The pooling that is stated, which the tensors must confirm; None if none is."""
  for place in places:
    stated = place.get('global_pool')
    if stated is None:
      continue
    if stated not in _POOLS:
      raise UnsupportedError(f'the pooling global_pool={stated!r}')
    return _POOLS[stated]
  return None


def _check_arguments(architecture: str, arguments: Mapping[str, Any]) -> None:
  """Raises `UnsupportedError` for arguments that change numbers and leave no trace in tensors."""
  norm = arguments.get('norm_layer')
  if norm and norm.replace('_', '').lower() not in _LAYER_NORMS:
    raise UnsupportedError(f'the normalization {norm}')
  for name, value in arguments.items() if architecture.startswith(_TRANSFORMERS) else ():
    if name not in _HARMLESS and value not in (None, False):
      raise UnsupportedError(f'the model argument {name}={value!r}')


def _read_preprocessing(pretrained: Mapping[str, Any]) -> Preprocessing:
  """What timm's `create_transform` makes of `pretrained_cfg`; its defaults where that is silent."""
  interpolation = pretrained.get('interpolation') or 'bicubic'
  if interpolation not in _INTERPOLATIONS:
    raise UnsupportedError(f'the interpolation {interpolation}')
  fraction = float(pretrained.get('crop_pct') or 0.875)
  if not 0.05 <= fraction <= 1:
    raise UnsupportedError(f'a crop_pct of {fraction:g}')
  mode = pretrained.get('crop_mode')
  return Preprocessing(
    # As in timm, an unknown mode is 'center'.
    resize={'squash': 'squash', 'border': 'border'}.get(mode, 'crop'),  # pyright: ignore
    crop_fraction=fraction,
    interpolation=interpolation,
    rounding='torchvision',
    fill=tuple(round(255 * x) for x in pretrained.get('mean') or _IMAGENET_MEAN),
  )


DEFAULT_PREPROCESSING = _read_preprocessing({'mean': HALF})


# --- writing --------------------------------------------------------------------------------


def make_config(
  model: build.Model,
  metadata: ModelMetadata,
  image_size: tuple[int, int],
  state_dict: Mapping[str, Any],
) -> dict[str, Any]:
  """The config.json with which timm builds the model (`local-dir:…`) and preprocesses images.

  Args:
    model, metadata, image_size: what is written.
    state_dict: of `timm.from_linen`.

  Raises:
    UserError: for a model with a ResNet, whose sizes no argument of timm describes, or a Mixer.
  """
  if not isinstance(model, VisionTransformer) or model.resnet_width:
    part = 'is an MLP-Mixer' if isinstance(model, MlpMixer) else 'has a ResNet'
    raise UserError(
      f'The model {part}, which a folder of timm cannot describe; write X.safetensors, which timm '
      'reads too.'
    )
  channels = state_dict['patch_embed.proj.weight'].shape[1]
  kind = timm_architectures.class_of(model)
  if kind == 'eva' and model.mlp == 'gelu' and model.numerics.gelu != 'exact':
    raise UserError(
      f'The model has {model.numerics.gelu} GELU, for which timm has no argument beside its other '
      'parts; write X.safetensors, or a vit_jax folder (--layout=model).'
    )
  arguments = timm_arguments.of_model(model, kind, image_size, state_dict)
  config = {
    'architecture': timm_architectures.closest(model, kind, image_size),
    'num_classes': model.num_classes,
    'num_features': model.width,
    'global_pool': arguments['global_pool'],
    'model_args': arguments,
    'pretrained_cfg': {
      **_make_pretrained(metadata.preprocessing or Preprocessing(), image_size, channels),
      'mean': list(metadata.mean or [0.5] * channels),
      'std': list(metadata.std or [0.5] * channels),
      'num_classes': model.num_classes,
      'first_conv': 'patch_embed.proj',
      'classifier': ['head', 'head_dist'] if model.pool == 'distilled' else 'head',
    },
  }
  return config | ({'label_names': metadata.labels} if metadata.labels else {})


def _make_pretrained(
  preprocessing: Preprocessing, image_size: tuple[int, int], channels: int
) -> dict[str, Any]:
  """The fields of `pretrained_cfg` that `create_transform` reads."""
  interpolation = preprocessing.interpolation
  return {
    'input_size': [channels, *image_size],
    'fixed_input_size': True,
    'interpolation': interpolation if interpolation in _INTERPOLATIONS else 'bilinear',
    'crop_pct': _crop_pct(preprocessing, image_size),
    'crop_mode': 'center' if preprocessing.resize == 'crop' else preprocessing.resize,
  }


def _crop_pct(preprocessing: Preprocessing, image_size: tuple[int, int]) -> float:
  """A fraction whose sizes, rounded down by timm, are those of `preprocess`, if there is one."""
  fraction = preprocessing.crop_fraction
  if preprocessing.rounding != 'tensorflow':
    return fraction
  sizes = [round(side / fraction) for side in image_size]
  for new, old in zip(image_size, sizes, strict=True):
    for each in (new / old, math.nextafter(new / old, 0)):
      if [math.floor(side / each) for side in image_size] == sizes:
        return each
  return fraction


def unexpressed(metadata: ModelMetadata) -> str | None:
  """What `make_config` cannot say: 'no antialiasing', …; None: it says everything."""
  preprocessing = metadata.preprocessing or Preprocessing()
  interpolation, rounding = preprocessing.interpolation, preprocessing.rounding
  is_whole = preprocessing.resize == 'squash' and preprocessing.crop_fraction == 1
  fill = {round(255 * x) for x in metadata.mean or HALF}
  return (
    ', '.join(
      name
      for name, is_lost in (
        (f'the interpolation {interpolation}', interpolation not in _INTERPOLATIONS),
        ('resizing without antialiasing', not preprocessing.antialias),
        (
          f'rounding as {rounding} does, which may move pixels by one',
          rounding != 'torchvision' and not is_whole,
        ),
        (
          f'a border of the level {preprocessing.fill}',
          preprocessing.resize == 'border' and not set(preprocessing.fill) <= fill,
        ),
        (
          f'the LayerNorm epsilon {metadata.layer_norm_epsilon:g}',
          metadata.layer_norm_epsilon not in timm_architectures.EPSILONS,
        ),
      )
      if is_lost
    )
    or None
  )
