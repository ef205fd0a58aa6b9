"""Losses, one value an example: logits and targets (B, C) float32 -> (B,) float32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Loss = Callable[[Array, Array], Array]


def targets(labels: Array, num_classes: int, label_smoothing: float = 0.0) -> Array:
  """Labels (B,) int or multi-hot (B, C) -> targets (B, C) float32.

  Smoothing spreads the share `label_smoothing` evenly over all classes (arXiv 1512.00567,
  Section 7).
  """
  if labels.ndim == 1:
    labels = jax.nn.one_hot(labels, num_classes)
  labels = labels.astype(jnp.float32)
  return labels * (1 - label_smoothing) + label_smoothing / num_classes


def softmax_cross_entropy(logits: Array, targets: Array) -> Array:
  """-sum_c target_c log softmax(logits)_c."""
  return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def sigmoid_cross_entropy(logits: Array, targets: Array) -> Array:
  """The sum of the binary cross-entropies of all classes (multi-label data, Appendix B.1)."""
  positive, negative = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
  return -jnp.sum(targets * positive + (1 - targets) * negative, axis=-1)


LOSSES: dict[str, Loss] = {'softmax': softmax_cross_entropy, 'sigmoid': sigmoid_cross_entropy}
