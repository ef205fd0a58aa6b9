"""FLOPs of ResNets and of the attention in them; see `flops`.

A position attends to all of a window or line, those outside the image included.
"""

import math

from vit_jax.models.attention.detr import DETR
from vit_jax.models.resnet import BiTResNet

Size = tuple[int, int]  # (height, width) of a feature map


def bit_flops(model: BiTResNet, image_size: Size) -> tuple[int, int]:
  """(output features, FLOPs) of a BiT ResNet without its head."""
  features, flops = resnet_flops(model.width, model.blocks, image_size, model)
  size = image_size
  for _ in range(2):  # the stem
    size = _halved(size)
  for stage in range(1, len(model.blocks) + 1):
    size = _halved(size) if stage > 1 else size
    if stage in model.non_local_stages:
      flops += non_local_flops(size, 4 * model.width * 2 ** (stage - 1), model.non_local_subsample)
  return features, flops


def resnet_flops(
  width: int, blocks: tuple[int, ...], image_size: Size, attention: BiTResNet | None = None
) -> tuple[int, int]:
  """(output features, FLOPs) of a stem and its stages of bottleneck units.

  Args:
    width, blocks: features of the stem, units of each stage.
    image_size: (height, width) in pixels.
    attention: the model whose attention replaces the 3x3 convolutions; None: it has none.
  """
  size = _halved(image_size)
  flops = 2 * math.prod(size) * 7 * 7 * 3 * width
  size, features = _halved(size), width  # max pooling
  for stage, num_units in enumerate(blocks):
    narrow = width * 2**stage
    for unit in range(num_units):
      stride = 2 if stage and not unit else 1
      next_size = _halved(size) if stride == 2 else size
      flops += 2 * math.prod(size) * features * narrow
      flops += 2 * math.prod(next_size) * 4 * narrow**2
      if attention is None or attention.spatial == 'conv':
        flops += 2 * math.prod(next_size) * 9 * narrow**2
      elif attention.spatial == 'local':
        flops += local_flops(size, narrow, attention.window)
      else:
        flops += axial_flops(size, narrow)
      if features != 4 * narrow or stride != 1:
        flops += 2 * math.prod(next_size) * features * 4 * narrow
      size, features = next_size, 4 * narrow
  return features, flops


def local_flops(size: Size, features: int, window: int) -> int:
  """FLOPs of a `LocalAttention` from and to `features`, before it pools.

  Three projections; logits and result, k^2 products of all features each; the logits of rows and
  of columns, k products of half of the features each. Masked pixels of blocks do not count.
  """
  each = 3 * features**2 + 2 * window**2 * features + window * features
  return 2 * math.prod(size) * each


def axial_flops(size: Size, features: int) -> int:
  """FLOPs of an `AxialAttention` of the columns and one of the rows, from and to `features`.

  Of each: projections to 2 F; for each position of a line 3 products of F / 2 features (query and
  key, and either with positions), 2 of F (the weights with values and positions).
  """
  projections = 2 * 2 * features**2
  return 2 * math.prod(size) * (projections + 7 * sum(size) * features // 2)


def non_local_flops(size: Size, features: int, subsample: bool) -> int:
  """FLOPs of a `NonLocalBlock`: four projections, of which two may be subsampled; two products."""
  queries = math.prod(size)
  keys = math.prod(_halved(size)) if subsample else queries
  half = features // 2
  return 2 * (2 * queries + 2 * keys) * features * half + 2 * 2 * queries * keys * half


def detr_flops(model: DETR, image_size: Size) -> int:
  """FLOPs of a DETR without its head: the ResNet, the projection, the layers of the encoder."""
  features, flops = resnet_flops(model.resnet_width, model.resnet_blocks, image_size)
  size = image_size
  for _ in range(1 + max(len(model.resnet_blocks), 1)):
    size = _halved(size)
  tokens, width = math.prod(size), model.width
  layer = 4 * width**2 + 2 * width * model.mlp_dim + 2 * tokens * width
  return flops + 2 * tokens * features * width + model.depth * 2 * tokens * layer


def _halved(size: Size) -> Size:  # by a stride of 2; padding rounds up
  return -(-size[0] // 2), -(-size[1] // 2)
