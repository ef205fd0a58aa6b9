"""Floating-point operations of a model, from its sizes: matrix products and convolutions only.

A multiplication and its addition count as two. Normalization, softmax, GELU, biases and
residuals are left out; they are a percent or two. Padding counts as pixels do.
"""

from vit_jax.models.build import Model
from vit_jax.models.resnet import BiTResNet, hybrid_stride
from vit_jax.models.vit import VisionTransformer


def forward_flops(model: Model, image_size: tuple[int, int]) -> int:
  """Of the forward pass of one image of (height, width) pixels."""
  if isinstance(model, BiTResNet):
    features, flops = _resnet(model.width, model.blocks, image_size)
    return flops + 2 * features * model.num_classes
  dense, attention = _block(model, image_size)
  flops = _embedding(model, image_size) + model.depth * (dense + attention)
  if model.pool == 'map':
    flops += _map_head(model, _tokens(model, image_size))
  features = model.width
  if model.pre_logits:
    flops += 2 * features * model.pre_logits
    features = model.pre_logits
  return flops + 2 * features * model.num_classes


def train_flops(model: Model, image_size: tuple[int, int]) -> int:
  """Of forward and backward pass of one image, without what rematerialisation repeats.

  Three times the forward pass: in the backward each product has two, one for the gradient of
  each factor. (The gradient of the image is not needed, which this ignores.)
  """
  return 3 * forward_flops(model, image_size)


def recomputed_flops(model: Model, image_size: tuple[int, int]) -> int:
  """Of what the backward pass of one image computes again (config.model.remat).

  none: nothing; dots: the two products of the attention, of which no result is kept; full: the
  blocks, but for the last product of each, whose result no gradient needs.
  """
  if isinstance(model, BiTResNet):
    return 0
  dense, attention = _block(model, image_size)
  last = 2 * _tokens(model, image_size) * model.mlp_dim * model.width
  again = {'none': 0, 'dots': attention, 'full': dense + attention - last}
  return model.depth * again[model.remat]


def _patches(model: VisionTransformer, image_size: tuple[int, int]) -> int:
  height, width = image_size
  return (height // model.patch_size) * (width // model.patch_size)


def _tokens(model: VisionTransformer, image_size: tuple[int, int]) -> int:
  return _patches(model, image_size) + (model.pool == 'token')


def _block(model: VisionTransformer, image_size: tuple[int, int]) -> tuple[int, int]:
  """Of one encoder block: (dense layers, the two products between tokens)."""
  tokens, width = _tokens(model, image_size), model.width
  dense = 2 * tokens * (4 * width**2 + 2 * width * model.mlp_dim)
  return dense, 2 * 2 * tokens**2 * width


def _embedding(model: VisionTransformer, image_size: tuple[int, int]) -> int:
  """Of what makes tokens of pixels: a hybrid's ResNet, and the patch embedding."""
  patch, features, flops = model.patch_size, 3, 0
  if model.resnet_width:
    features, flops = _resnet(model.resnet_width, model.resnet_blocks, image_size)
    patch //= hybrid_stride(model.resnet_blocks)
  return flops + 2 * _patches(model, image_size) * patch**2 * features * model.width


def _map_head(model: VisionTransformer, tokens: int) -> int:
  """Of attention pooling: one query, `tokens` keys and values, and an MLP for one token."""
  width = model.width
  projections = 2 * (2 + 2 * tokens) * width**2
  return projections + 2 * 2 * tokens * width + 2 * 2 * width * model.mlp_dim


def _resnet(width: int, blocks: tuple[int, ...], image_size: tuple[int, int]) -> tuple[int, int]:
  """(features that come out, operations) of a stem and its stages of bottleneck units."""

  def halved(sides: list[int]) -> list[int]:  # by a stride of 2, whatever the padding here
    return [-(-side // 2) for side in sides]

  def pixels(sides: list[int]) -> int:
    return sides[0] * sides[1]

  sides = halved(list(image_size))
  flops = 2 * pixels(sides) * 7 * 7 * 3 * width
  sides, features = halved(sides), width  # max pooling
  for stage, num_units in enumerate(blocks):
    narrow = width * 2**stage
    for unit in range(num_units):
      stride = 2 if stage and not unit else 1
      after = halved(sides) if stride == 2 else sides
      flops += 2 * pixels(sides) * features * narrow
      flops += 2 * pixels(after) * (9 * narrow**2 + 4 * narrow**2)
      if features != 4 * narrow or stride != 1:
        flops += 2 * pixels(after) * features * 4 * narrow
      sides, features = after, 4 * narrow
  return features, flops
