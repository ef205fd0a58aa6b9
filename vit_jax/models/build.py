"""Builds models from a config or from checkpoint tensors, and their abstract parameters."""

import dataclasses
import functools
import re
from collections.abc import Callable, Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.config import ModelConfig
from vit_jax.errors import UserError
from vit_jax.models.resnet import BiTResNet, hybrid_stride, identity
from vit_jax.models.variants import RESNET_VARIANTS, VARIANTS
from vit_jax.models.vit import Numerics, VisionTransformer

Model = VisionTransformer | BiTResNet

GELUS = ('tanh', 'exact')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}  # of matrix products
RELEASED_NUMERICS = Numerics()
MAX_DEPTH = 1000  # blocks
_MAX_STAGES, _MAX_UNITS = 8, 100  # of a ResNet, all of whose units are traced
MAX_IMAGE_SIDE = 2**16  # pixels
MAX_PATCHES = 2**18  # of an image, with a position embedding each
MAX_CLASSES = 2**20
_ATTENTION = 'MultiHeadDotProductAttention_0'
_ARCHITECTURE = {
  VisionTransformer: (
    'patch_size width depth mlp_dim num_heads num_classes pool pre_logits resnet_width '
    'resnet_blocks'
  ).split(),
  BiTResNet: ('width', 'blocks', 'num_classes'),
}


def architecture(model: Model) -> dict[str, Any]:
  """The fields of a model that determine its parameters, and can be read off them."""
  return {name: getattr(model, name) for name in _ARCHITECTURE[type(model)]}


def resolve_dtype(name: str, platform: str | None = None) -> Any:
  """The dtype of 'float32', 'bfloat16' or 'auto': bfloat16 on accelerators, float32 on a CPU.

  The platform is 'cpu', 'gpu' or 'tpu'; None: this process's default backend.
  """
  if name == 'auto':
    name = 'float32' if (platform or jax.default_backend()) == 'cpu' else 'bfloat16'
  return DTYPES[name]


def dtype_name(model: Model) -> str:
  """The key of DTYPES in which a model computes."""
  return jnp.dtype(model.dtype if isinstance(model, BiTResNet) else model.numerics.dtype).name


def with_dtype(model: Model, name: str) -> Model:
  """The model computing in a key of DTYPES."""
  if isinstance(model, BiTResNet):
    return model.clone(dtype=DTYPES[name])
  return model.clone(numerics=dataclasses.replace(model.numerics, dtype=DTYPES[name]))


def model_from_config(
  config: ModelConfig,
  num_classes: int,
  constrain: Callable[[jax.Array], jax.Array] = identity,
  platform: str | None = None,
) -> Model:
  """Builds the variant that the config names, with the fields that the config overrides.

  Args:
    config: the model section.
    num_classes: outputs of the head; 0: no head.
    constrain: applied to the tokens at block boundaries, to shard them.
    platform: as in `resolve_dtype`.

  Raises:
    UserError: for incompatible sizes or options.
  """
  dtype = resolve_dtype(config.dtype, platform)
  if config.variant in RESNET_VARIANTS:
    return _resnet_from_config(config, num_classes, constrain, dtype)
  variant = VARIANTS[config.variant]
  model = VisionTransformer(
    patch_size=config.patch_size,
    width=config.width or variant.width,
    depth=config.depth or variant.depth,
    mlp_dim=config.mlp_dim or variant.mlp_dim,
    num_heads=config.num_heads or variant.num_heads,
    num_classes=num_classes,
    pool=config.pool,
    pre_logits=config.pre_logits,
    dropout_rate=config.dropout_rate,
    attention_dropout_rate=config.attention_dropout_rate,
    stochastic_depth_rate=config.stochastic_depth_rate,
    head_bias_init=config.head_bias_init,
    resnet_width=config.resnet_width,
    resnet_blocks=config.resnet_blocks,
    numerics=Numerics(dtype, config.gelu == 'tanh', config.layer_norm_epsilon),
    attention=config.attention,
    remat=config.remat,
    scan_blocks=config.scan_blocks,
    constrain=constrain,
  )
  _check_sizes(model)
  return model


def _resnet_from_config(
  config: ModelConfig, num_classes: int, constrain: Callable[[jax.Array], jax.Array], dtype: Any
) -> BiTResNet:
  for name, default in (('remat', 'none'), ('scan_blocks', False)):
    if (value := getattr(config, name)) != default:
      raise UserError(
        f'{name}={value} is for encoder blocks, which a ResNet does not have; set it to {default}.'
      )
  variant = RESNET_VARIANTS[config.variant]
  return BiTResNet(
    width=config.resnet_width or variant.width,
    blocks=config.resnet_blocks or variant.blocks,
    num_classes=num_classes,
    head_bias_init=config.head_bias_init,
    dtype=dtype,
    constrain=constrain,
  )


def _check_sizes(model: VisionTransformer) -> None:
  if model.width % model.num_heads:
    raise UserError(f'width={model.width} is not a multiple of num_heads={model.num_heads}.')
  if model.resnet_width % 32 or (model.resnet_blocks and not model.resnet_width):
    raise UserError(
      f'resnet_width is {model.resnet_width}; a hybrid needs a positive multiple of 32.'
    )
  if model.attention != 'einsum' and model.attention_dropout_rate:
    raise UserError(
      f'attention={model.attention} has no dropout; set attention_dropout_rate to 0, or attention '
      'to einsum.'
    )
  stride = hybrid_stride(model.resnet_blocks)
  if model.resnet_width and model.patch_size % stride:
    raise UserError(
      f'patch_size is {model.patch_size}; with {len(model.resnet_blocks)} resnet_blocks it must be '
      f'a multiple of {stride} pixels.'
    )


def model_from_tensors(
  tensors: Mapping[str, Any], source: str, numerics: Numerics = RELEASED_NUMERICS
) -> Model:
  """Reads the architecture off parameter names and shapes.

  Args:
    tensors: {'embedding/kernel': array, …}, with current linen names.
    source: of the tensors, for error messages.
    numerics: of a Transformer; its tensors do not determine them.

  Raises:
    UserError: if they are not the tensors of a `VisionTransformer` or `BiTResNet`.
  """
  try:
    if any(0 in tensor.shape for tensor in tensors.values()):
      raise ValueError(0)
    if 'root_block/conv_root/kernel' in tensors:
      return _resnet_from_tensors(tensors)
    return _vit_from_tensors(tensors, numerics)
  except KeyError as error:
    raise UserError(
      f'{source} is not a Vision Transformer or BiT in a known layout: it has no tensor {error}.'
    ) from None
  except (ValueError, IndexError):
    message = f'{source}: its tensors do not have the shapes of a Vision Transformer or BiT.'
    raise UserError(message) from None


def _vit_from_tensors(tensors: Mapping[str, Any], numerics: Numerics) -> VisionTransformer:
  patch, columns, _, width = tensors['embedding/kernel'].shape
  block = 'Transformer/encoderblock_0'
  _, num_heads, head_dim = tensors[f'{block}/{_ATTENTION}/query/kernel'].shape
  _, mlp_dim = tensors[f'{block}/MlpBlock_0/Dense_0/kernel'].shape
  resnet_width, resnet_blocks = 0, ()
  if 'conv_root/kernel' in tensors:
    resnet_width, resnet_blocks = _resnet_sizes(tensors, 'conv_root/kernel')
  if columns != patch or width != num_heads * head_dim:
    raise ValueError(width)
  pool = 'token' if 'cls' in tensors else 'map' if 'MAPHead_0/probe' in tensors else 'gap'
  return VisionTransformer(
    patch_size=patch * (hybrid_stride(resnet_blocks) if resnet_width else 1),
    width=width,
    depth=_count_modules(tensors, r'Transformer/encoderblock_(\d+)/'),
    mlp_dim=mlp_dim,
    num_heads=num_heads,
    num_classes=_num_outputs(tensors, 'head/kernel'),
    pool=pool,
    pre_logits=_num_outputs(tensors, 'pre_logits/kernel'),
    resnet_width=resnet_width,
    resnet_blocks=resnet_blocks,
    numerics=numerics,
  )


def _resnet_from_tensors(tensors: Mapping[str, Any]) -> BiTResNet:
  width, blocks = _resnet_sizes(tensors, 'root_block/conv_root/kernel')
  return BiTResNet(width, blocks, num_classes=_num_outputs(tensors, 'head/kernel'))


def _num_outputs(tensors: Mapping[str, Any], name: str) -> int:
  """The number of columns of a kernel; 0 without that kernel."""
  if name not in tensors:
    return 0
  _, num_outputs = tensors[name].shape
  return num_outputs


def _count_modules(tensors: Mapping[str, Any], pattern: str) -> int:
  """The number of distinct first groups of a pattern that matches the start of names."""
  count = len({match[1] for name in tensors if (match := re.match(pattern, name))})
  if count > MAX_DEPTH:
    raise ValueError(count)
  return count


def _resnet_sizes(tensors: Mapping[str, Any], root: str) -> tuple[int, tuple[int, ...]]:
  """The width of a ResNet, whose first kernel is called `root`, and the units of each stage."""
  width = tensors[root].shape[3]
  if width < 32 or width % 32:
    raise ValueError(width)
  num_stages = _count_modules(tensors, r'block(\d+)/')
  if num_stages > _MAX_STAGES:
    raise ValueError(num_stages)
  units = tuple(_count_modules(tensors, rf'block{i + 1}/unit(\d+)/') for i in range(num_stages))
  if sum(units) > _MAX_UNITS:
    raise ValueError(units)
  return width, units


def input_kernel(names: Container[str]) -> str:
  """Returns the name of the kernel that is applied to the pixels, (H, W, channels, features)."""
  kernels = ('root_block/conv_root/kernel', 'conv_root/kernel', 'embedding/kernel')
  return next(name for name in kernels if name in names)


def check_image_size(image_size: tuple[int, int], model: Model, name: str) -> None:
  """Raises `UserError` unless the model takes (height, width) pixels; `name` names the size."""
  height, width = image_size
  text = f'{name} is {height}x{width} pixels'
  if max(height, width) > MAX_IMAGE_SIDE:
    raise UserError(f'{text}; use at most {MAX_IMAGE_SIDE} pixels a side.')
  if isinstance(model, BiTResNet):
    if min(height, width) < 1:
      raise UserError(f'{text}; both sides must be positive.')
    return
  patch = model.patch_size
  if height * width > MAX_PATCHES * patch**2:
    raise UserError(f'{text}; use at most {MAX_PATCHES:,} patches of {patch}x{patch} pixels.')
  if min(height, width) < patch or height % patch or width % patch:
    raise UserError(
      f'{text}, which patches of {patch}x{patch} pixels do not tile; use '
      f'{max(height // patch, 1) * patch}x{max(width // patch, 1) * patch}.'
    )


def patch_grid(image_size: tuple[int, int], model: Model) -> tuple[int, int] | None:
  """(rows, columns) of patches in an image of (height, width) pixels; None for a ResNet."""
  if isinstance(model, BiTResNet):
    return None
  return image_size[0] // model.patch_size, image_size[1] // model.patch_size


def abstract_params(model: Model, image_size: tuple[int, int], channels: int = 3) -> Any:
  """The parameter tree of `model` as `ShapeDtypeStruct`s; allocates nothing."""
  # pyright takes linen modules for unhashable, because they are not declared frozen.
  params = _abstract_params(model, image_size, channels)  # pyright: ignore[reportArgumentType]
  return jax.tree.map(lambda leaf: leaf, params)  # a copy, because the cache keeps this tree


@functools.lru_cache(maxsize=64)
def _abstract_params(model: Model, image_size: tuple[int, int], channels: int) -> Any:
  """Traces only one block of a Transformer, because all of them have the same parameters."""
  images = jax.ShapeDtypeStruct((1, *image_size, channels), jnp.float32)
  traced = model.clone(depth=1) if isinstance(model, VisionTransformer) else model
  params = jax.eval_shape(traced.init, jax.random.key(0), images)['params']
  if isinstance(model, VisionTransformer):
    block = params['Transformer'].pop('encoderblock_0')
    params['Transformer'] |= {f'encoderblock_{i}': block for i in range(model.depth)}
  return params


def count_parameters(params: Any) -> int:
  """The number of parameters in a tree of arrays or `ShapeDtypeStruct`s."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
