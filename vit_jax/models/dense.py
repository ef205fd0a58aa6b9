"""The dense layers of a Transformer, and its patch embedding: each is one matrix product.

Their gradients are those of a plain product, computed differently: those of the parameters are
float32 sums, also over devices, whatever the dtype of the product; and on a TPU that of the bias is
a product with ones, which its compiler estimates to be cheaper (benchmarks/LOG.md).
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.precision import precision_of

Array = jax.Array


def _apply(x: Array, kernel: Array, bias: Array) -> Array:
  y = jnp.matmul(x, kernel.astype(x.dtype), precision=precision_of(x.dtype))
  return y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)


@jax.custom_vjp
def linear(x: Array, kernel: Array, bias: Array) -> Array:
  """x kernel + bias, in the dtype of `x`: (…, D), (D, M) float32, (M,) float32 -> (…, M)."""
  return _apply(x, kernel, bias)


def _forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
  return _apply(x, kernel, bias), (x, kernel)


def _backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array, Array]:
  x, kernel = residuals
  bias_grad = jax.lax.platform_dependent(grad, tpu=_sum_by_product, default=_sum)
  kernel_grad = jax.lax.platform_dependent(x, grad, cpu=_sum_of_rows, default=_sum_of_products)
  kernel = kernel.astype(grad.dtype)
  x_grad = jnp.matmul(grad, kernel.T, precision=precision_of(grad.dtype))
  return x_grad, kernel_grad, bias_grad


def _sum(grad: Array) -> Array:
  """(…, M) -> (M,) float32."""
  # The barrier keeps XLA from computing the gradient a second time inside of the sum.
  grad = jax.lax.optimization_barrier(grad)
  return grad.sum(tuple(range(grad.ndim - 1)), dtype=jnp.float32)


def _sum_by_product(grad: Array) -> Array:
  # XLA makes a sum of a product with one row.
  return _sum_of_products(jnp.ones((*grad.shape[:-1], 8), grad.dtype), grad)[0]


def _sum_of_products(a: Array, b: Array) -> Array:
  """(…, D) and (…, M) -> (D, M) float32."""
  axes = tuple(range(b.ndim - 1))
  contraction = ((axes, axes), ((), ()))
  precision = precision_of(a.dtype)
  return jax.lax.dot_general(a, b, contraction, precision, preferred_element_type=jnp.float32)


def _sum_of_rows(a: Array, b: Array) -> Array:
  # The same with one axis to sum over, for which XLA transposes no operand on a CPU.
  return _sum_of_products(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))


linear.defvjp(_forward, _backward)


class Dense(nn.Module):
  """A dense layer whose features are flat: (…, D) -> (…, M).

  Its parameters are those of an `nn.DenseGeneral` from `inputs` to `outputs`, such as (D,) to
  (K, D/K) heads; but no array has a last axis of D/K, which a TPU pads to 128.

  Attributes:
    inputs, outputs: shapes of D and of M elements.
    dtype: of the product; the parameters are float32.
    bias_init: initializer of the bias; the kernel's is Glorot's (uniform).
    use_bias: False: it has no bias.
  """

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  dtype: Any = jnp.float32
  bias_init: nn.initializers.Initializer = nn.initializers.zeros
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    flat_shape = math.prod(self.inputs), math.prod(self.outputs)

    def init_kernel(key: Array) -> Array:
      kernel = nn.initializers.xavier_uniform()(key, flat_shape)
      return kernel.reshape(*self.inputs, *self.outputs)

    kernel = self.param('kernel', init_kernel)
    bias = jnp.zeros(self.outputs)
    if self.use_bias:
      bias = self.param('bias', self.bias_init, self.outputs)
    return linear(x.astype(self.dtype), kernel.reshape(flat_shape), bias.reshape(-1))


class PatchEmbedding(nn.Module):
  """A convolution with a stride of its kernel's size: (B, H, W, C) -> (B, H/P, W/P, D).

  Its parameters are those of an `nn.Conv`: kernel (P, P, C, D) and, with `use_bias`, bias (D,).
  Rows and columns that fill no patch are left out.
  """

  patch_size: int
  features: int
  dtype: Any = jnp.float32
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    patch, channels = self.patch_size, x.shape[-1]
    batch, height, width = x.shape[0], x.shape[1] // patch, x.shape[2] // patch
    init = nn.initializers.lecun_normal()
    kernel = self.param('kernel', init, (patch, patch, channels, self.features))
    bias = jnp.zeros(self.features)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = x[:, : height * patch, : width * patch].astype(self.dtype)
    x = x.reshape(batch, height, patch, width, patch, channels).swapaxes(2, 3)
    x = x.reshape(batch, height * width, patch * patch * channels)
    x = linear(x, kernel.reshape(-1, self.features), bias)
    return x.reshape(batch, height, width, self.features)
