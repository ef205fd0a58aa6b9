"""The dense layer of the Transformer: one matrix product each way, parameters of `nn.DenseGeneral`.

Its gradients are those of a plain product, computed otherwise: those of the parameters are float32
sums, also over devices, whatever the dtype of the product; and on a TPU that of the bias is a
product with ones, because a reduction costs forty times as much by the compiler's estimates.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def _apply(x: Array, kernel: Array, bias: Array) -> Array:
  y = x @ kernel.astype(x.dtype)
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
  return grad @ kernel.astype(grad.dtype).T, _sum_of_products(x, grad), bias_grad


def _sum(grad: Array) -> Array:
  """(…, M) -> (M,) float32."""
  return grad.sum(tuple(range(grad.ndim - 1)), dtype=jnp.float32)


def _sum_by_product(grad: Array) -> Array:
  # The barrier hides the ones from XLA, which would make the product a reduction.
  return _sum_of_products(jax.lax.optimization_barrier(jnp.ones(grad.shape[:-1], grad.dtype)), grad)


def _sum_of_products(a: Array, b: Array) -> Array:
  """(…, D) or (…), and (…, M) -> (D, M) or (M,), float32."""
  axes = tuple(range(b.ndim - 1))
  contraction = ((axes, axes), ((), ()))
  return jax.lax.dot_general(a, b, contraction, preferred_element_type=jnp.float32)


linear.defvjp(_forward, _backward)


class Dense(nn.Module):
  """A dense layer whose features are flat: (…, D) -> (…, M).

  Its parameters are those of an `nn.DenseGeneral` from `inputs` to `outputs`, such as (D,) to
  (K, D/K) heads; but no array has a last axis of D/K, which a TPU pads to 128.

  Attributes:
    inputs, outputs: shapes of D and of M elements.
    dtype: of the product; the parameters are float32.
    bias_init: initializer of the bias; the kernel's is Glorot's (uniform).
  """

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  dtype: Any = jnp.float32
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: Array) -> Array:
    flat_shape = math.prod(self.inputs), math.prod(self.outputs)

    def init_kernel(key: Array) -> Array:
      kernel = nn.initializers.xavier_uniform()(key, flat_shape)
      return kernel.reshape(*self.inputs, *self.outputs)

    kernel = self.param('kernel', init_kernel)
    bias = self.param('bias', self.bias_init, self.outputs)
    return linear(x.astype(self.dtype), kernel.reshape(flat_shape), bias.reshape(-1))
