"""Models of PyTorch for the tests that compare with it; they are skipped without it."""

import importlib
import types
import warnings

import numpy as np
import pytest


def import_or_skip(name: str) -> types.ModuleType:
  try:
    with warnings.catch_warnings(action='ignore'):
      return importlib.import_module(name)
  except Exception as error:  # noqa: BLE001 - an extension that does not load raises anything
    pytest.skip(f'{name} cannot be imported: {error!r}', allow_module_level=True)


def randomize(module, seed: int = 0):
  """Weights as large as trained ones, and nowhere the zeros and ones of an initializer."""
  import torch

  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, parameter in module.named_parameters():
      x = rng.normal(size=tuple(parameter.shape))
      if x.ndim <= 1:
        x = 0.2 * x + ('weight' in name or 'gamma' in name)
      else:
        x /= 2 if x.ndim == 3 else np.sqrt(x[0].size)
      parameter.copy_(torch.from_numpy(np.asarray(x)))
  return module.eval()


def images_of(size: tuple[int, int]) -> np.ndarray:
  return np.random.default_rng(1).uniform(-1, 1, (2, *size, 3)).astype(np.float32)


def logits_of(module, images: np.ndarray) -> np.ndarray:
  """The logits of a PyTorch module for (B, H, W, 3) images."""
  import torch

  with torch.no_grad():
    output = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  return getattr(output, 'logits', output).numpy()
