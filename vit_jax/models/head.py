"""The classification head, which all models have in common."""

import flax.linen as nn
import jax


def classify(x: jax.Array, num_classes: int, bias_init: float) -> jax.Array:
  """A linear layer that starts at zero; to be called inside a compact method.

  Args:
    x: (B, D) features, float32.
    num_classes: C; 0 gives the features themselves.
    bias_init: first value of the bias.

  Returns:
    (B, C) logits, float32.
  """
  if not num_classes:
    return x
  zeros, bias = nn.initializers.zeros, nn.initializers.constant(bias_init)
  return nn.Dense(num_classes, kernel_init=zeros, bias_init=bias, name='head')(x)
