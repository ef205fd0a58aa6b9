"""From a config or from checkpoint tensors to a `VisionTransformer`, and its parameter shapes."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from vit_jax.errors import UserError
from vit_jax.models.variants import VARIANTS
from vit_jax.models.vit import VisionTransformer

POOLS = ('token', 'gap', 'map')
# The fields of a model that its parameters determine.
ARCHITECTURE = (
    'patch_size', 'width', 'depth', 'mlp_dim', 'num_heads', 'num_classes', 'pool', 'pre_logits'
)  # fmt: skip


def resolve_dtype(name: str) -> Any:
  """'float32', 'bfloat16', or 'auto': bfloat16 on accelerators, float32 on a CPU."""
  choices = {
      'auto': jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16,
      'float32': jnp.float32,
      'bfloat16': jnp.bfloat16,
  }
  if name not in choices:
    raise UserError(f'config.model.dtype is {name!r}; choose one of {", ".join(choices)}.')
  return choices[name]


def model_from_config(
    config: ml_collections.ConfigDict,
    num_classes: int,
    constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> VisionTransformer:
  """Builds what `config.model` describes: a row of `VARIANTS`, and what overrides it.

  Raises:
    UserError: for an unknown variant, pool or dtype, or a width the heads do not divide.
  """
  if config.variant not in VARIANTS:
    raise UserError(
        f'config.model.variant is {config.variant!r}; choose one of {", ".join(VARIANTS)}.'
    )
  if config.pool not in POOLS:
    raise UserError(f'config.model.pool is {config.pool!r}; choose one of {", ".join(POOLS)}.')
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
      dtype=resolve_dtype(config.dtype),
      constrain=constrain,
  )
  if model.width % model.num_heads:
    raise UserError(
        f'config.model: the width {model.width} is not a multiple of the {model.num_heads} heads.'
    )
  return model


def model_from_tensors(tensors: Mapping[str, Any], source: str) -> VisionTransformer:
  """Reads the architecture off parameter names and shapes.

  Args:
    tensors: {'embedding/kernel': array, …} with current linen names (promise 1 of the design).
    source: where the tensors come from, for the error message.

  Raises:
    UserError: when the tensors are not those of a plain Vision Transformer.
  """
  try:
    patch_size = tensors['embedding/kernel'].shape[0]
    _, num_heads, head_dim = tensors[
        'Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel'
    ].shape
    mlp_dim = tensors['Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel'].shape[1]
    pre_logits = tensors['pre_logits/kernel'].shape[1] if 'pre_logits/kernel' in tensors else 0
    num_classes = tensors['head/kernel'].shape[1] if 'head/kernel' in tensors else 0
  except KeyError as error:
    raise UserError(
        f'{source} is not a Vision Transformer in the released layout: it has no tensor {error}.'
    ) from None
  except (ValueError, IndexError):
    raise UserError(
        f'{source}: its tensors do not have the shapes of a Vision Transformer.'
    ) from None
  blocks = {m[1] for name in tensors if (m := re.match(r'Transformer/encoderblock_(\d+)/', name))}
  pool = 'token' if 'cls' in tensors else 'map' if 'MAPHead_0/probe' in tensors else 'gap'
  return VisionTransformer(
      patch_size=patch_size,
      width=num_heads * head_dim,
      depth=len(blocks),
      mlp_dim=mlp_dim,
      num_heads=num_heads,
      num_classes=num_classes,
      pool=pool,
      pre_logits=pre_logits,
  )


def check_image_size(image_size: tuple[int, int], patch_size: int, what: str) -> None:
  """Raises `UserError` unless the patches tile the image."""
  height, width = image_size
  if min(height, width) < patch_size or height % patch_size or width % patch_size:
    raise UserError(
        f'{what} is {height}x{width} pixels, which patches of {patch_size} pixels do not tile; '
        f'{max(height // patch_size, 1) * patch_size}x{max(width // patch_size, 1) * patch_size} '
        'would do.'
    )


def abstract_params(model: VisionTransformer, image_size: tuple[int, int]) -> Any:
  """The parameter tree of `model` as `ShapeDtypeStruct`s; nothing is allocated."""
  images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images)['params']


def count_parameters(params: Any) -> int:
  """The number of parameters in a tree of arrays or `ShapeDtypeStruct`s."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
