"""The Vision Transformer in JAX: pretrain, fine-tune, evaluate, predict."""

import importlib
from typing import Any

_ERRORS = (
  'BadExampleError DeviceMemoryError DivergedError LostPeerError NonFiniteLossError '
  'PreemptedError UserError'
)
# Imported on first use: the processes that only read data do without JAX.
_MODULES = {
  'Classifier': 'vit_jax.classifier',
  'load': 'vit_jax.load_classifier',
  **dict.fromkeys(_ERRORS.split(), 'vit_jax.errors'),
}


def __dir__() -> list[str]:
  return [*_MODULES]


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_MODULES[name]), name)
