"""The Vision Transformer in JAX: pretrain, fine-tune, evaluate, predict."""

import importlib
from typing import Any

# Imported when they are asked for: the processes that only read data do without JAX.
_HOME = {
  'Classifier': 'vit_jax.classifier',
  'load': 'vit_jax.classifier',
  **dict.fromkeys(
    (
      'BadExampleError',
      'DeviceMemoryError',
      'LostPeerError',
      'NonFiniteLossError',
      'PreemptedError',
      'UserError',
    ),
    'vit_jax.errors',
  ),
}

__all__ = [*_HOME]


def __dir__() -> list[str]:
  return __all__


def __getattr__(name: str) -> Any:
  if name not in _HOME:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_HOME[name]), name)
