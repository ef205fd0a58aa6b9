"""Floating-point operations of a model, computed from its sizes.

Counts matrix products and convolutions only: normalization, softmax, GELU, biases and residuals
add a percent or two. A multiply-add counts as two operations. Padding counts as pixels do.
"""

import math

from vit_jax.models.attention.detr import DETR
from vit_jax.models.build import Model
from vit_jax.models.masked_patches import MaskedPatchPredictor, num_corrupted
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.resnet import BiTResNet, hybrid_stride
from vit_jax.models.resnet_flops import bit_flops, detr_flops, resnet_flops
from vit_jax.models.vit import VisionTransformer


def forward_flops(model: Model, image_size: tuple[int, int]) -> int:
  """FLOPs of the forward pass of one image of (height, width) pixels."""
  if isinstance(model, BiTResNet):
    features, flops = bit_flops(model, image_size)
    return flops + 2 * features * model.num_classes
  if isinstance(model, MlpMixer):
    flops = 2 * _num_patches(model, image_size) * model.patch_size**2 * 3 * model.width
    flops += model.depth * sum(_mixing_flops(model, image_size))
    return flops + 2 * model.width * model.num_classes
  if isinstance(model, DETR):
    return detr_flops(model, image_size) + 2 * model.width * model.num_classes
  dense, attention = _block_flops(model, image_size)
  flops = _embedding_flops(model, image_size) + model.depth * (dense + attention)
  if model.pool == 'map':
    flops += _map_head_flops(model, _num_tokens(model, image_size))
  features = 2 * model.width if model.pool in ('token_gap', 'distilled') else model.width
  if model.pre_logits:
    flops, features = flops + 2 * features * model.pre_logits, model.pre_logits
  if isinstance(model, MaskedPatchPredictor):
    corrupted = num_corrupted(_num_patches(model, image_size))
    return flops + 2 * corrupted * model.width * model.num_outputs(channels=3)
  return flops + 2 * features * model.num_classes


def train_flops(model: Model, image_size: tuple[int, int]) -> int:
  """FLOPs of the forward and backward pass of one image, without rematerialization.

  Three times the forward pass: the backward pass has two products for each one of the forward
  pass, one for the gradient of each factor. (The unneeded gradient of the image is counted, too.)
  """
  return 3 * forward_flops(model, image_size)


def recomputed_flops(
  model: Model, image_size: tuple[int, int], has_fused_attention: bool = False
) -> int:
  """FLOPs that the backward pass of one image recomputes, which depends on `model.remat`.

  none: nothing. dots: the products of the attention, whose results are not saved unless a fused
  kernel computes it. full: the blocks, except for the last product of each, whose result no
  gradient needs.
  """
  if isinstance(model, BiTResNet | DETR):
    return 0
  if isinstance(model, MlpMixer):  # 'dots' saves all products
    tokens, channels = _mixing_flops(model, image_size)
    return model.depth * (tokens + channels // 2) if model.remat == 'full' else 0
  dense, attention = _block_flops(model, image_size)
  last_product = 2 * _num_tokens(model, image_size) * model.mlp_dim * model.width
  of_block = {
    'none': 0,
    'dots': 0 if has_fused_attention else attention,
    'full': dense + attention - last_product,
  }
  return model.depth * of_block[model.remat]


def _num_patches(model: VisionTransformer | MlpMixer, image_size: tuple[int, int]) -> int:
  return math.prod(side // model.patch_size for side in image_size)


def _mixing_flops(model: MlpMixer, image_size: tuple[int, int]) -> tuple[int, int]:
  """FLOPs of one Mixer block: (token mixing, channel mixing), two equal products each."""
  size = _num_patches(model, image_size) * model.width
  return 4 * size * model.token_mlp_dim, 4 * size * model.mlp_dim


def _num_tokens(model: VisionTransformer, image_size: tuple[int, int]) -> int:
  return _num_patches(model, image_size) + model.num_prefix_tokens


def _block_flops(model: VisionTransformer, image_size: tuple[int, int]) -> tuple[int, int]:
  """FLOPs of one block: (dense layers, the products of the attention: two; three if relative)."""
  tokens, width = _num_tokens(model, image_size), model.width
  mlp_layers = 2 if model.mlp == 'gelu' else 3
  dense = 2 * tokens * (4 * width**2 + mlp_layers * width * model.mlp_dim)
  is_relative = model.position_embedding == 'relative'

  def attention(tokens: int, patches: int) -> int:  # of one sequence
    offsets = patches * (2 * patches - 1) if is_relative else 0
    return 2 * width * (2 * tokens**2 + offsets)

  if not model.axial:
    return dense, attention(tokens, _num_patches(model, image_size))
  rows, columns = (side // model.patch_size for side in image_size)
  return 2 * dense, rows * attention(columns, columns) + columns * attention(rows, rows)


def _embedding_flops(model: VisionTransformer, image_size: tuple[int, int]) -> int:
  """FLOPs from pixels to tokens: the ResNet of a hybrid, and the patch embedding."""
  patch, features, flops = model.patch_size, 3, 0
  if model.resnet_width:
    features, flops = resnet_flops(model.resnet_width, model.resnet_blocks, image_size)
    patch //= hybrid_stride(model.resnet_blocks)
  return flops + 2 * _num_patches(model, image_size) * patch**2 * features * model.width


def _map_head_flops(model: VisionTransformer, tokens: int) -> int:
  """FLOPs of attention pooling: one query, `tokens` keys and values, and an MLP on one token."""
  width = model.width
  hidden = (model.pool_mlp_dim or model.mlp_dim) if model.pool_mlp else 0
  projections = 2 * (2 + 2 * tokens) * width**2
  return projections + 2 * 2 * tokens * width + 2 * 2 * width * hidden
