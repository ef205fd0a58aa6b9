"""The Vision Transformer in JAX: pretrain, fine-tune, evaluate, predict."""

from vit_jax.classifier import Classifier, load
from vit_jax.errors import (
  DeviceMemoryError,
  LostPeerError,
  NonFiniteLossError,
  PreemptedError,
  UserError,
)

__all__ = [
    'Classifier', 'DeviceMemoryError', 'LostPeerError', 'NonFiniteLossError', 'PreemptedError',
    'UserError', 'load',
]  # fmt: skip
