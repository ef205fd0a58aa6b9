"""The classification head of all models."""

import flax.linen as nn
import jax


def classify(x: jax.Array, num_classes: int, bias_init: float) -> jax.Array:
  """Applies a linear layer with a zero-initialized kernel; call it inside a compact method.

  Args:
    x: (B, D) features, float32.
    num_classes: C; 0: no layer.
    bias_init: initial value of the bias.

  Returns:
    (B, C) logits, float32; without a layer the features.
  """
  if not num_classes:
    return x
  zeros, bias = nn.initializers.zeros, nn.initializers.constant(bias_init)
  return nn.Dense(num_classes, kernel_init=zeros, bias_init=bias, name='head')(x)
