"""PyTorch state dicts, read by PyTorch itself as weights only: no code in them is run."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from vit_jax.errors import UserError, first_line
from vit_jax.weights.formats import lazy_tensor
from vit_jax.weights.formats.lazy_tensor import BFLOAT16, Tensor, TensorFile, check_names


def read_state_dict(path: epath.Path) -> TensorFile:
  """Reads a state dict; raises `UserError` without PyTorch, or if it is not one of tensors."""
  try:
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise UserError(
      f'{path} is a pickled file, perhaps a PyTorch state dict, which only PyTorch can read; '
      "pip install 'vit_jax[torch]', or save it as .safetensors."
    ) from None
  try:
    with path.open('rb') as file:
      loaded = torch.load(file, map_location='cpu', weights_only=True)
  except Exception as error:  # noqa: BLE001 - torch raises a dozen kinds
    raise UserError(
      f'{path} is not a state dict of tensors ({type(error).__name__}); a pickled model is never '
      'loaded, because that can run code.'
    ) from None
  loaded = _flatten(loaded)
  if not loaded:
    raise UserError(f'{path} is a PyTorch file, but not a state dict of tensors.')

  # Views may repeat what is stored, any number of times.
  declared = sum(x.numel() * x.element_size() for x in loaded.values() if torch.is_tensor(x))
  lazy_tensor.check_declared_size(path, declared, path.stat().length)
  tensors = {}
  try:
    for name, tensor in loaded.items():
      tensor = tensor.detach().contiguous()
      is_bfloat16 = tensor.dtype == torch.bfloat16
      array = tensor.view(torch.int16).numpy().view(BFLOAT16) if is_bfloat16 else tensor.numpy()
      tensors[name] = Tensor.from_array(array)
  except (TypeError, RuntimeError) as error:
    raise UserError(f'{path} has tensors of an unsupported dtype ({first_line(error)}).') from None
  check_names(path, tensors)
  return TensorFile(path, 'PyTorch', tensors)


def _flatten(loaded: Any, prefix: str = '', depth: int = 4) -> dict[str, Any]:
  """The tensors in nested mappings: {'model.norm.weight': tensor, 'model_ema.…': …}.

  The state of an optimizer is left out: it has numbers for names.
  """
  import torch  # pyright: ignore[reportMissingImports]

  tensors = {}
  for name, value in loaded.items() if isinstance(loaded, Mapping) and depth else ():
    if isinstance(name, str) and torch.is_tensor(value):
      tensors[prefix + name] = value
    elif isinstance(name, str):
      tensors |= _flatten(value, f'{prefix}{name}.', depth - 1)
  return tensors
