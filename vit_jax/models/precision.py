"""The precision of matrix products and convolutions: float32 ones are exact on every device.

Otherwise a TPU rounds their operands to bfloat16, and an NVIDIA GPU to TF32.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

FULL_PRECISION = jax.lax.Precision.HIGHEST
_Call = TypeVar('_Call', bound=Callable[..., Any])


def precision_of(dtype: Any) -> jax.lax.Precision:
  """That of a product of operands of this dtype."""
  return FULL_PRECISION if jnp.dtype(dtype) == jnp.float32 else jax.lax.Precision.DEFAULT


def with_full_precision(call: _Call) -> _Call:
  """For the `__call__` of every model: products are exact if the model's dtype is float32.

  Two kinds need a precision besides: those of a gradient that `jax.custom_vjp` defines, which is
  traced after the call, and float32 ones in models of another dtype.
  """

  @functools.wraps(call)
  def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
    precision = precision_of(getattr(self, 'numerics', self).dtype)
    with jax.default_matmul_precision(precision.name.lower()):
      return call(self, *args, **kwargs)

  return cast(_Call, wrapped)
