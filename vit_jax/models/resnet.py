"""ResNets with group normalization and weight standardization: hybrid stems and BiT.

The stem and stages of hybrid models are post-activation ("v1.5": the stride is in the 3x3
convolution), as released with arXiv 2010.11929 and 2106.10270. BiT (arXiv 1912.11370), the paper's
baseline, is a pre-activation ResNet-v2. Both keep the parameter names of their releases. Instead of
3x3 convolutions BiT may have local or axial attention, and stages may have a non-local block.

Shapes: B batch, H W image or feature map, F features, C classes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.attention.axial_attention import AxialAttention
from vit_jax.models.attention.local_attention import LocalAttention, average_pool
from vit_jax.models.attention.non_local import NonLocalBlock
from vit_jax.models.head import classify
from vit_jax.models.precision import with_full_precision

Array = jax.Array


def identity(x: Array) -> Array:
  """The default of `constrain`; a function with a name, so that models can be pickled."""
  return x


class StdConv(nn.Module):
  """Convolution with a kernel standardized over all but its last axis (arXiv 1903.10520).

  (B, H, W, F) -> (B, H/stride, W/stride, features), without a bias.
  """

  features: int
  kernel_size: int
  stride: int = 1
  padding: str | Sequence[tuple[int, int]] = 'SAME'  # or ((top, bottom), (left, right)) pixels
  epsilon: float = 1e-5  # added to the standard deviation, or to the variance if `in_variance`
  in_variance: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    kernel = kernel - kernel.mean(axis=(0, 1, 2), keepdims=True)
    variance = jnp.square(kernel).mean(axis=(0, 1, 2), keepdims=True)
    if self.in_variance:
      kernel = kernel / jnp.sqrt(variance + self.epsilon)
    else:
      kernel = kernel / (jnp.sqrt(variance) + self.epsilon)
    x, kernel, strides = x.astype(self.dtype), kernel.astype(self.dtype), (self.stride, self.stride)
    layout = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(x, kernel, strides, self.padding, dimension_numbers=layout)


class ResidualUnit(nn.Module):
  """Post-activation bottleneck: (B, H, W, F) -> (B, H/s, W/s, 4 features)."""

  features: int
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    def conv(size: int, features: int, name: str, stride: int = 1) -> StdConv:
      return StdConv(features, size, stride, dtype=self.dtype, name=name)

    def norm(name: str, **kwargs: Any) -> nn.GroupNorm:
      return nn.GroupNorm(dtype=self.dtype, name=name, **kwargs)

    residual, wide = x, 4 * self.features
    if x.shape[-1] != wide or self.stride != 1:
      residual = norm('gn_proj')(conv(1, wide, 'conv_proj', self.stride)(x))
    x = nn.relu(norm('gn1')(conv(1, self.features, 'conv1')(x)))
    x = nn.relu(norm('gn2')(conv(3, self.features, 'conv2', self.stride)(x)))
    x = norm('gn3', scale_init=nn.initializers.zeros)(conv(1, wide, 'conv3')(x))
    return nn.relu(residual + x)


class Stage(nn.Module):
  """The units of one resolution: (B, H, W, F) -> (B, H/s, W/s, 4 features).

  A non-local block is before the last unit (arXiv 1711.07971, Section 5.1), or after the only one.
  """

  unit: Callable[..., nn.Module]  # `ResidualUnit` or `BiTUnit`
  unit_name: str  # format string of the released names, for a unit's number, from 1
  num_units: int
  features: int
  stride: int  # of the first unit
  dtype: Any = jnp.float32
  non_local: bool = False
  subsample: bool = False  # the keys and values of that block

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for i in range(self.num_units):
      stride, name = self.stride if i == 0 else 1, self.unit_name.format(i + 1)
      x = self.unit(self.features, stride, self.dtype, name=name)(x)
      if self.non_local and i == max(self.num_units - 2, 0):
        x = NonLocalBlock(self.subsample, self.dtype, name='non_local')(x)
    return x


def hybrid_features(images: Array, width: int, blocks: Sequence[int], dtype: Any) -> Array:
  """Applies the ResNet of a hybrid (Section 3.1) inside a compact method: (B, H/s, W/s, F).

  s is `hybrid_stride(blocks)`. The stem has `width` features, 64 in all releases; `blocks` are the
  units of each stage, (): only the stem.
  """
  x = StdConv(width, 7, 2, dtype=dtype, name='conv_root')(images)
  x = nn.relu(nn.GroupNorm(dtype=dtype, name='gn_root')(x))
  x = nn.max_pool(x, (3, 3), strides=(2, 2), padding='SAME')
  for i, num_units in enumerate(blocks):
    stride = 1 if i == 0 else 2
    features, name = width * 2**i, f'block{i + 1}'
    x = Stage(ResidualUnit, 'unit{}', num_units, features, stride, dtype, name=name)(x)
  return x


def hybrid_stride(blocks: Sequence[int]) -> int:
  """The stride, in pixels, of the features of a hybrid's ResNet."""
  return 4 * 2 ** max(len(blocks) - 1, 0)


class BiTUnit(nn.Module):
  """Pre-activation bottleneck: (B, H, W, F) -> (B, H/s, W/s, 4 features); fields of `BiTResNet`."""

  features: int
  stride: int = 1
  dtype: Any = jnp.float32
  spatial: str = 'conv'
  window: int = 0
  num_heads: int = 0

  @nn.compact
  def __call__(self, x: Array) -> Array:
    def conv(size: int, features: int, name: str, stride: int = 1) -> StdConv:
      return bit_conv(features, size, stride, self.dtype, name)

    def norm_relu(x: Array, name: str) -> Array:
      return nn.relu(bit_norm(self.dtype, name)(x))

    residual, wide, x = x, 4 * self.features, norm_relu(x, 'gn1')
    if residual.shape[-1] != wide or self.stride != 1:
      residual = conv(1, wide, 'conv_proj', self.stride)(x)
    x = conv(1, self.features, 'conv1')(x)
    x = self._mix_pixels(norm_relu(x, 'gn2'))
    x = conv(1, wide, 'conv3')(norm_relu(x, 'gn3'))
    return x + residual

  def _mix_pixels(self, x: Array) -> Array:
    """The 3x3 convolution or what replaces it: (B, H, W, F) -> (B, H/s, W/s, features)."""
    if self.spatial == 'conv':
      return bit_conv(self.features, 3, self.stride, self.dtype, 'conv2')(x)
    sizes = (self.features, self.num_heads, self.window)
    if self.spatial == 'local':
      return LocalAttention(*sizes, self.stride, self.dtype, name='local_attention')(x)
    for axis, name in ((1, 'height_attention'), (2, 'width_attention')):
      x = AxialAttention(axis, *sizes, self.dtype, name=name)(x)
    return average_pool(x, self.stride)


def bit_conv(features: int, size: int, stride: int, dtype: Any, name: str) -> StdConv:
  """BiT's convolution, padded equally on both sides whatever the stride."""
  pad = (size - 1) // 2
  padding = ((pad, pad), (pad, pad))
  return StdConv(features, size, stride, padding, 1e-10, True, dtype, name=name)


def bit_norm(dtype: Any, name: str) -> nn.GroupNorm:
  """BiT's group normalization: 32 groups, epsilon 1e-5, two-pass variance."""
  return nn.GroupNorm(32, epsilon=1e-5, dtype=dtype, use_fast_variance=False, name=name)


class BiTRoot(nn.Module):
  """The first convolution and pooling: (B, H, W, 3) -> (B, H/4, W/4, features)."""

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = bit_conv(self.features, 7, 2, self.dtype, 'conv_root')(x)
    padding: Any = ((1, 1), (1, 1))  # flax declares a string
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)


class BiTResNet(nn.Module):
  """Images (B, H, W, 3) float in [-1, 1] -> logits (B, C) float32, any H and W.

  Attributes:
    width: features of the stem; 64 times the factor in the name (R50x3: 192).
    blocks: units of each stage.
    num_classes: C; 0: no head, and the result is the (B, features) before it.
    head_bias_init: initial value of the head's bias.
    dtype: of the convolutions; normalization statistics and the head stay float32.
    constrain: applied to the features (B, H, W, F) between stages, to shard them.
    spatial: what mixes the pixels in a unit: 'conv' (3x3), 'local' (`LocalAttention`) or 'axial'
      (`AxialAttention`).
    window, num_heads: of that attention; 0 without.
    non_local_stages: numbers, from 1, of the stages with a `NonLocalBlock`.
    non_local_subsample: whether these blocks subsample keys and values.
  """

  width: int
  blocks: tuple[int, ...]
  num_classes: int
  head_bias_init: float = 0.0
  dtype: Any = jnp.float32
  constrain: Callable[[Array], Array] = identity
  spatial: str = 'conv'
  window: int = 0
  num_heads: int = 0
  non_local_stages: tuple[int, ...] = ()
  non_local_subsample: bool = False

  @nn.compact
  @with_full_precision
  def __call__(
    self, images: Array, *, deterministic: bool = True, examples: Array | None = None
  ) -> Array:
    del deterministic, examples  # the model has no dropout
    unit = functools.partial(
      BiTUnit, spatial=self.spatial, window=self.window, num_heads=self.num_heads
    )
    x = self.constrain(BiTRoot(self.width, self.dtype, name='root_block')(images))
    for i, num_units in enumerate(self.blocks):
      stride = 1 if i == 0 else 2
      sizes = (num_units, self.width * 2**i, stride, self.dtype)
      non_local = (i + 1 in self.non_local_stages, self.non_local_subsample)
      x = self.constrain(Stage(unit, 'unit{:02d}', *sizes, *non_local, name=f'block{i + 1}')(x))
    x = nn.relu(bit_norm(self.dtype, 'norm-pre-head')(x))
    x = x.mean(axis=(1, 2), dtype=jnp.float32)  # (B, F)
    return classify(x, self.num_classes, self.head_bias_init)  # (B, C)
