"""Opens a file of tensors of any format: npz, safetensors or a PyTorch state dict."""

from etils import epath

from vit_jax.errors import UserError
from vit_jax.files import is_special
from vit_jax.weights.formats.lazy_tensor import TensorFile, damage_reported
from vit_jax.weights.formats.npz_file import read_npz
from vit_jax.weights.formats.safetensors_file import read_safetensors
from vit_jax.weights.formats.state_dict import read_state_dict


def read_tensors(path: epath.PathLike) -> TensorFile:
  """Opens a file; its first bytes, not its name, tell the format.

  Raises:
    UserError: for a file that is missing, damaged or of another format, or whose sizes, names or
      offsets contradict each other.
  """
  path = epath.Path(path)
  with damage_reported(path):
    if is_special(path):
      raise UserError(f'{path} is a pipe or a device, not a file.')
    try:
      size = path.stat().length
      file = path.open('rb')
    except FileNotFoundError:
      raise UserError(f'There is no model at {path}.') from None
    except (IsADirectoryError, PermissionError) as error:
      raise UserError(f'{path} cannot be read: {error.strerror}.') from None
    with file:
      head = file.read(9)
      if head[:4] in (b'PK\x03\x04', b'PK\x05\x06'):
        return read_npz(path, file, size)
      if head[8:9] == b'{':
        return read_safetensors(path, file, size)
    if head[:2] in (b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05'):
      return read_state_dict(path)
  if not head:
    raise UserError(f'{path} is empty.')
  if head.startswith(b'\x93NUMPY'):
    raise UserError(f'{path} is a single array, not an npz archive of parameters.')
  raise UserError(f'{path} is not an npz, safetensors or PyTorch file, or it is damaged.')
