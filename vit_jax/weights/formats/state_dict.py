"""PyTorch state dicts, read by PyTorch itself as weights only: no code in them is run."""

from collections.abc import Mapping

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
  for key in ('state_dict', 'model_state_dict', 'model'):
    if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
      loaded = loaded[key]
  if not isinstance(loaded, Mapping) or not any(map(torch.is_tensor, loaded.values())):
    raise UserError(f'{path} is a PyTorch file, but not a state dict of tensors.')

  # Views may repeat what is stored, any number of times.
  declared = sum(x.numel() * x.element_size() for x in loaded.values() if torch.is_tensor(x))
  lazy_tensor.check_declared_size(path, declared, path.stat().length)
  tensors = {}
  try:
    for name, tensor in loaded.items():
      if torch.is_tensor(tensor):
        tensor = tensor.detach().contiguous()
        is_bfloat16 = tensor.dtype == torch.bfloat16
        array = tensor.view(torch.int16).numpy().view(BFLOAT16) if is_bfloat16 else tensor.numpy()
        tensors[str(name)] = Tensor.from_array(array)
  except (TypeError, RuntimeError) as error:
    raise UserError(f'{path} has tensors of an unsupported dtype ({first_line(error)}).') from None
  check_names(path, tensors)
  return TensorFile(path, 'PyTorch', tensors)
