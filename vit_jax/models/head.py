"""The classification head of all models."""

import flax.linen as nn
import jax

from vit_jax.models.precision import FULL_PRECISION


def classify(
  x: jax.Array, num_classes: int, bias_init: float, use_bias: bool = True, name: str = 'head'
) -> jax.Array:
  """Features (B, D) float32 -> logits (B, C) float32; without classes, the features.

  A linear layer with a zero-initialized kernel; call it inside a compact method.
  """
  if not num_classes:
    return x
  zeros, bias = nn.initializers.zeros, nn.initializers.constant(bias_init)
  return nn.Dense(
    num_classes, use_bias, kernel_init=zeros, bias_init=bias, precision=FULL_PRECISION, name=name
  )(x)
