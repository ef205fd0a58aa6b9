"""PyTorch's state dicts, read by PyTorch itself, and only as weights: nothing in them is run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from vit_jax.errors import UserError, first_line
from vit_jax.weights.formats.lazy_tensor import BFLOAT16, Tensor, TensorFile, check_names


def read_state_dict(path: epath.Path) -> TensorFile:
  """A state dict, by PyTorch's own reader of weights, which runs nothing."""
  try:
    import torch
  except ImportError:
    raise UserError(
      f'{path} is a pickled file, a PyTorch state dict perhaps; only PyTorch reads it '
      "(pip install 'vit_jax[torch]'), or save it as .safetensors."
    ) from None
  try:
    with path.open('rb') as file:
      loaded = torch.load(file, map_location='cpu', weights_only=True)
  except Exception as error:  # noqa: BLE001 - torch raises a dozen kinds
    raise UserError(
      f'{path} is no state dict of tensors ({type(error).__name__}); a whole model that was '
      'pickled is never loaded, because that can run code.'
    ) from None
  for key in ('state_dict', 'model_state_dict', 'model'):
    if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
      loaded = loaded[key]
  if not isinstance(loaded, Mapping) or not any(map(torch.is_tensor, loaded.values())):
    raise UserError(f'{path} is a PyTorch file, but no state dict of tensors.')

  def to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
      return tensor.view(torch.int16).numpy().view(BFLOAT16)
    return tensor.numpy()

  try:
    tensors = {
      str(name): Tensor.of(to_numpy(tensor))
      for name, tensor in loaded.items()
      if torch.is_tensor(tensor)
    }
  except (TypeError, RuntimeError) as error:
    raise UserError(f'{path} has tensors of an unknown type ({first_line(error)}).') from None
  check_names(path, tensors)
  return TensorFile(path, 'PyTorch', tensors)
