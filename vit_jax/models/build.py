"""Builds models from a config, checks their sizes, traces their abstract parameters."""

import dataclasses
import functools
from collections.abc import Callable, Container, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.config import ModelConfig
from vit_jax.errors import UserError
from vit_jax.hardware import has_flash_attention, vector_memory
from vit_jax.models.attention.detr import DETR
from vit_jax.models.build_resnet import detr_from_config, resnet_from_config
from vit_jax.models.dot_product_attention import choose_attention
from vit_jax.models.mixer import MlpMixer, mixer_from_config
from vit_jax.models.model_options import check_fields, check_sizes
from vit_jax.models.resnet import BiTResNet, identity
from vit_jax.models.rotary import rotary_from_config
from vit_jax.models.variants import DETR_VARIANTS, MIXER_VARIANTS, RESNET_VARIANTS, VARIANTS
from vit_jax.models.vit import Numerics, VisionTransformer
from vit_jax.text import plural

Model = VisionTransformer | BiTResNet | MlpMixer | DETR

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}  # of matrix products
RELEASED_NUMERICS = Numerics()
MAX_DEPTH = 1000  # blocks
MAX_IMAGE_SIDE = 2**16  # pixels
MAX_PATCHES = 2**18  # of an image, with a position embedding each
MAX_CLASSES = 2**20
_ARCHITECTURE = {
  VisionTransformer: (
    'patch_size width depth mlp_dim num_heads num_classes pool pre_logits resnet_width '
    'resnet_blocks position_embedding position_entry axial class_token registers rotary patch_bias '
    'patch_norm block_bias qkv_bias pre_norm norm mlp layer_scale final_norm pool_num_heads '
    'pool_mlp_dim pool_mlp head_bias pixel_mean pixel_std'
  ).split(),
  BiTResNet: (
    'width blocks num_classes spatial window num_heads non_local_stages non_local_subsample'
  ).split(),
  MlpMixer: 'patch_size width depth token_mlp_dim mlp_dim num_classes'.split(),
  DETR: 'width depth mlp_dim num_heads num_classes resnet_width resnet_blocks'.split(),
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
  has_numerics = isinstance(model, VisionTransformer | MlpMixer)
  return jnp.dtype(model.numerics.dtype if has_numerics else model.dtype).name


def with_dtype(model: Model, name: str) -> Model:
  """The model computing in a key of DTYPES."""
  if isinstance(model, BiTResNet | DETR):
    return model.clone(dtype=DTYPES[name])
  return model.clone(numerics=dataclasses.replace(model.numerics, dtype=DTYPES[name]))


def model_from_config(
  config: ModelConfig,
  num_classes: int,
  platform: str | None = None,
  mesh: Mesh | None = None,
  batch_axes: Sequence[str] = (),
) -> Model:
  """Builds the variant that the config names, with the fields that the config overrides.

  Args:
    config: the model section.
    num_classes: outputs of the head; 0: no head.
    platform: as in `resolve_dtype`.
    mesh: of the devices, whose axis `tensor` divides the heads; None: one device.
    batch_axes: those that divide the batch, and the tokens at block boundaries.

  Raises:
    UserError: for incompatible sizes or options.
  """
  check_fields(config)
  dtype = resolve_dtype(config.dtype, platform)
  platform = platform or jax.default_backend()
  _check_attention(config, platform, mesh)
  attention = choose_attention(config.attention, platform, mesh, tuple(batch_axes))
  constrain = _token_constraint(mesh, batch_axes) if mesh else identity
  if config.variant in RESNET_VARIANTS:
    return resnet_from_config(config, num_classes, constrain, dtype)
  if config.variant in MIXER_VARIANTS:
    return mixer_from_config(config, num_classes, constrain, dtype)
  if config.variant in DETR_VARIANTS:
    return detr_from_config(config, num_classes, constrain, dtype, attention)
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
    position_embedding=config.position_embedding,
    position_entry=config.position_entry,
    axial=config.axial,
    class_token=config.class_token,
    registers=config.registers,
    rotary=rotary_from_config(config),
    patch_bias=config.patch_bias,
    pixel_mean=config.pixel_mean,
    pixel_std=config.pixel_std,
    patch_norm=config.patch_norm,
    block_bias=config.block_bias,
    qkv_bias=config.qkv_bias,
    pre_norm=config.pre_norm,
    mlp=config.mlp,
    layer_scale=config.layer_scale,
    final_norm=config.final_norm,
    pool_num_heads=config.pool_num_heads,
    pool_mlp_dim=config.pool_mlp_dim,
    pool_mlp=config.pool_mlp,
    numerics=Numerics(dtype, config.gelu, config.layer_norm_epsilon, config.norm),
    attention=attention,
    remat=config.remat,
    scan_blocks=config.scan_blocks,
    constrain=constrain,
  )
  check_sizes(model)
  return model


def _token_constraint(mesh: Mesh, batch_axes: Sequence[str]) -> Callable[[jax.Array], jax.Array]:
  sharding = NamedSharding(mesh, P(tuple(batch_axes)))
  return functools.partial(_constrain_tokens, sharding, mesh.devices.flat[0].platform)


def _constrain_tokens(sharding: NamedSharding, platform: str, x: jax.Array) -> jax.Array:
  """Shards tokens (B, …); on a GPU also keeps them in row-major order.

  Without it XLA may transpose them in each LayerNorm: on an H100 a train step of B/16 takes 15 %
  longer (2026-11-26).
  """
  x = jax.lax.with_sharding_constraint(x, sharding)
  return with_layout_constraint(x, Layout(tuple(range(x.ndim)))) if platform == 'gpu' else x


def for_device(model: Model, device: Any) -> Model:
  """The model with the attention that `auto` chooses for one device."""
  if not isinstance(model, VisionTransformer | DETR):
    return model
  return model.clone(attention=choose_attention('auto', device.platform, device=device))


def for_mesh(model: Model, mesh: Mesh, batch_axes: Sequence[str]) -> Model:
  """The model as `model_from_config` builds it for a mesh, with the attention that `auto` chooses.

  So a model that is loaded computes what it computed in training, bit for bit.
  """
  model = model.clone(constrain=_token_constraint(mesh, batch_axes))
  if not isinstance(model, VisionTransformer | DETR):
    return model
  platform = mesh.devices.flat[0].platform
  return model.clone(attention=choose_attention('auto', platform, mesh, tuple(batch_axes)))


def _check_attention(config: ModelConfig, platform: str, mesh: Mesh | None) -> None:
  device = mesh.devices.flat[0] if mesh else None
  is_flash = platform == 'gpu' and (device is None or has_flash_attention(device))
  if config.attention == 'cudnn' and not is_flash:
    raise UserError(
      'config.model.attention=cudnn needs an NVIDIA GPU from A100 on; set it to auto.'
    )
  is_fused = platform == 'tpu' and (device is None or vector_memory(device.device_kind))
  if config.attention == 'fused' and not is_fused:
    raise UserError('config.model.attention=fused needs a TPU from v4 on; set it to auto.')
  if config.attention in ('xla', 'cudnn') and config.attention_dropout_rate:
    raise UserError(
      f'config.model.attention={config.attention} has no dropout; set attention_dropout_rate to 0, '
      'or attention to einsum.'
    )


def input_kernel(names: Container[str]) -> str:
  """Returns the name of the kernel that is applied to the pixels, (H, W, channels, features)."""
  kernels = ('root_block/conv_root/kernel', 'conv_root/kernel', 'embedding/kernel', 'stem/kernel')
  return next(name for name in kernels if name in names)


def check_image_size(image_size: tuple[int, int], model: Model, name: str) -> None:
  """Raises `UserError` unless the model takes (height, width) pixels; `name` names the size."""
  height, width = image_size
  text = f'{name} is {height}x{width} pixels'
  if max(height, width) > MAX_IMAGE_SIDE:
    raise UserError(f'{text}; use at most {MAX_IMAGE_SIDE} pixels a side.')
  if isinstance(model, BiTResNet | DETR):
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


def check_channels(channels: int, model: Model) -> None:
  """Raises `UserError` unless the model normalizes images of that number of channels, or none."""
  means = len(getattr(model, 'pixel_mean', ()))
  if means not in (0, channels):
    raise UserError(
      f'config.model.pixel_mean has {plural(means, "number")}, but images have '
      f'{plural(channels, "channel")}; set pixel_mean and pixel_std to (), and patch_bias to True: '
      'then the normalization of the weights is folded into their first layer.'
    )


def patch_grid(image_size: tuple[int, int], model: Model) -> tuple[int, int] | None:
  """(rows, columns) of patches in an image of (height, width) pixels; None without patches."""
  if isinstance(model, BiTResNet | DETR):
    return None
  return image_size[0] // model.patch_size, image_size[1] // model.patch_size


def abstract_params(model: Model, image_size: tuple[int, int], channels: int = 3) -> Any:
  """The parameter tree of `model` as `ShapeDtypeStruct`s; allocates nothing."""
  # pyright takes linen modules for unhashable, because they are not declared frozen.
  params = _abstract_params(model, image_size, channels)  # pyright: ignore[reportArgumentType]
  return jax.tree.map(lambda leaf: leaf, params)  # a copy, because the cache keeps this tree


@functools.lru_cache(maxsize=64)
def _abstract_params(model: Model, image_size: tuple[int, int], channels: int) -> Any:
  """Traces only one of the blocks that all have the same parameters."""
  images = jax.ShapeDtypeStruct((1, *image_size, channels), jnp.float32)
  traced = model if isinstance(model, BiTResNet) else model.clone(depth=1)
  params = jax.eval_shape(traced.init, jax.random.key(0), images)['params']
  if isinstance(model, VisionTransformer | DETR):
    block = params['Transformer'].pop('encoderblock_0')
    params['Transformer'] |= {f'encoderblock_{i}': block for i in range(model.depth)}
  elif isinstance(model, MlpMixer):
    block = params.pop('MixerBlock_0')
    params |= {f'MixerBlock_{i}': block for i in range(model.depth)}
  return params


def count_parameters(params: Any) -> int:
  """The number of parameters in a tree of arrays or `ShapeDtypeStruct`s."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
