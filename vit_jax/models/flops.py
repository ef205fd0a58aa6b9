"""Floating-point operations of a model, computed from its sizes.

Counts matrix products and convolutions only: normalization, softmax, GELU, biases and residuals
add a percent or two. A multiply-add counts as two operations. Padding counts as pixels do.
"""

import math
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple, TypeGuard

from vit_jax.models.attention.detr import DETR
from vit_jax.models.build import Model
from vit_jax.models.lora import ADAPTER
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


def train_flops(
  model: Model, image_size: tuple[int, int], trained: Collection[str] | None = None
) -> int:
  """FLOPs of the forward and backward pass of one image, without rematerialization.

  The backward pass has two products for each one of the forward pass, one for the gradient of each
  factor: that of activations only if something before them is trained, that of weights only if
  they are. (The unneeded gradient of the image is counted, too, with a trained patch embedding.)
  Of axial blocks and other models than Vision Transformers only the head and the rest are told
  apart.

  Args:
    model, image_size: as in `forward_flops`.
    trained: names of the parameters that are not frozen, 'head/kernel'. Adapters count as their
      kernels; what they add does not grow with the batch. None: all.
  """
  forward = forward_flops(model, image_size)
  if trained is None:
    return 3 * forward
  first = _first_layer(trained, model)
  modules = {_module(name, model) for name in trained if name.endswith(('kernel', *ADAPTER))}
  backward = 0
  for product in _products(model, image_size):
    needs_input = product.place > first
    is_trained = needs_input if product.weights is None else product.weights in modules
    backward += product.flops * (needs_input + is_trained)
  return forward + backward


def recomputed_flops(
  model: Model,
  image_size: tuple[int, int],
  has_fused_attention: bool = False,
  trained: Collection[str] | None = None,
) -> int:
  """FLOPs that the backward pass of one image recomputes, which depends on `model.remat`.

  none: nothing. dots: the products of the attention, whose results are not saved unless a fused
  kernel computes it. full: the blocks, except for the last product of each, whose result no
  gradient needs. Blocks before the first one with parameters in `trained` have no backward pass.
  """
  if isinstance(model, BiTResNet | DETR):
    return 0
  first = 0 if trained is None else _first_layer(trained, model)
  depth = min(model.depth, model.depth + 1 - math.ceil(first))
  if isinstance(model, MlpMixer):  # 'dots' saves all products
    tokens, channels = _mixing_flops(model, image_size)
    return depth * (tokens + channels // 2) if model.remat == 'full' else 0
  dense, attention = _block_flops(model, image_size)
  last_product = 2 * _num_tokens(model, image_size) * model.mlp_dim * model.width
  of_block = {
    'none': 0,
    'dots': 0 if has_fused_attention else attention,
    'full': dense + attention - last_product,
  }
  return depth * of_block[model.remat]


class _Product(NamedTuple):
  """A matrix product of the forward pass, or several in one place.

  Attributes:
    place: its layer (as in `_first_layer`), plus 0.5 if layers before it are in the same block.
    flops: of one image.
    weights: as `_module` names them; None: both factors are activations.
  """

  place: float
  flops: int
  weights: str | None


_HEADS = ('head', 'head_distillation', 'pre_logits', 'prediction_head')
_AFTER_BLOCKS = (*_HEADS, 'MAPHead_0', 'pool_norm')


def _has_parts(model: Model) -> TypeGuard[VisionTransformer]:
  return isinstance(model, VisionTransformer) and not model.axial


def _first_layer(trained: Collection[str], model: Model) -> float:
  """The first layer with trained parameters: 0 before the blocks, i in block i, from 1.

  The LayerNorm before the attention of block i is in layer i - 0.5.
  """
  last = getattr(model, 'depth', 0) + 1

  def layer(name: str) -> float:
    if _has_parts(model) and (match := re.match(r'Transformer/encoderblock_(\d+)/', name)):
      return int(match[1]) + (0.5 if 'LayerNorm_0' in name.split('/')[2] else 1)
    return last if name.startswith((*_AFTER_BLOCKS, 'Transformer/encoder_norm')) else 0

  return min(map(layer, trained))


def _module(name: str, model: Model) -> str:
  """What has the weights of a product: 'head', and 'Transformer/…/query' or, at least, 'rest'."""
  top = name.partition('/')[0]
  if top in _HEADS:
    return 'head'
  if not _has_parts(model):
    return 'rest'
  return top if top in ('embedding', 'MAPHead_0') else name.rpartition('/')[0]


def _products(model: Model, image_size: tuple[int, int]) -> Iterator[_Product]:
  """All products of the forward pass; of the first ones, both gradients at once."""
  forward = forward_flops(model, image_size)
  if not _has_parts(model):
    rest = forward_flops(model.clone(num_classes=0), image_size)
    yield _Product(0, 2 * rest, 'rest')
    yield _Product(getattr(model, 'depth', 0) + 1, forward - rest, 'head')
    return
  tokens, width, last = _num_tokens(model, image_size), model.width, model.depth + 1
  dense, attention = _block_flops(model, image_size)
  embedding = _embedding_flops(model, image_size)
  pooling = _map_head_flops(model, tokens) if model.pool == 'map' else 0
  yield _Product(0, 2 * embedding, 'embedding')
  for i in range(model.depth):
    block = f'Transformer/encoderblock_{i}'
    for name in ('query', 'key', 'value', 'out'):
      place = i + (1.5 if name == 'out' else 1)
      yield _Product(place, 2 * tokens * width**2, f'{block}/MultiHeadDotProductAttention_0/{name}')
    yield _Product(i + 1.5, attention, None)
    for name in ('Dense_0', 'Dense_1') if model.mlp == 'gelu' else ('gate', 'Dense_0', 'Dense_1'):
      yield _Product(i + 1.5, 2 * tokens * width * model.mlp_dim, f'{block}/MlpBlock_0/{name}')
  yield _Product(last, pooling, 'MAPHead_0')
  head = forward - embedding - model.depth * (dense + attention) - pooling
  yield _Product(last, head, 'head')


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
