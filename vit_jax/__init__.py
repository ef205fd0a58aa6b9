"""The Vision Transformer in JAX: pretrain, fine-tune, evaluate, predict."""

from vit_jax.classifier import Classifier, load
from vit_jax.errors import NonFiniteLossError, UserError

__all__ = ['Classifier', 'NonFiniteLossError', 'UserError', 'load']
