"""PyTorch state dicts, read by PyTorch itself as weights only: no code in them is run.

TorchScript archives, such as OpenAI's CLIP, hold code beside the tensors. It is compiled, not run:
an archive whose code would run while it is loaded is refused.
"""

import warnings
import zipfile
from collections.abc import Mapping
from typing import IO, Any

from etils import epath

from vit_jax.errors import UserError, first_line
from vit_jax.weights.formats import lazy_tensor
from vit_jax.weights.formats.lazy_tensor import BFLOAT16, Tensor, TensorFile, check_names


def read_state_dict(path: epath.Path, is_torchscript: bool = False) -> TensorFile:
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
      if is_torchscript:
        loaded = _load_torchscript(path, file)
      else:
        loaded = torch.load(file, map_location='cpu', weights_only=True)
  except UserError:
    raise
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


def _load_torchscript(path: epath.Path, file: IO[bytes]) -> dict[str, Any]:
  """The parameters and buffers of a TorchScript archive; raises `UserError` if it runs code."""
  import torch  # pyright: ignore[reportMissingImports]

  with zipfile.ZipFile(file) as archive:
    codes = (archive.read(name) for name in archive.namelist() if name.endswith('.py'))
    if any(b'__setstate__' in code for code in codes):
      raise UserError(
        f'{path} is a TorchScript archive with code that runs when it is loaded; load it where you '
        'trust it, and save model.state_dict() with torch.save.'
      )
  file.seek(0)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # newer versions deprecate TorchScript
    return torch.jit.load(file, map_location='cpu').state_dict()


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
