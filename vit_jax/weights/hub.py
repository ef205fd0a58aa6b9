"""Models of huggingface.co by their names, as facebook/dinov2-base: cached, or downloaded."""

import importlib
import os
import re
from typing import Any

from etils import epath

from vit_jax.errors import UserError, first_line
from vit_jax.files import cache_folder

_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')
_FILES = (
  'config.json',
  'preprocessor_config.json',
  'processor_config.json',
  'model*.safetensors',
  'model.safetensors.index.json',
)
_OPEN_CLIP_FILES = ('open_clip_config.json', 'open_clip_model.safetensors')
_GATED = ('facebook/dinov3-',)  # whose license must be accepted
_SUFFIXES = ('.npz', '.safetensors', '.bin', '.pt', '.pth', '.json')  # of files, not of models


def is_name(source: epath.PathLike) -> bool:
  """Whether `source` may be a model of huggingface.co: owner/name, of which no part exists here."""
  source = os.fspath(source)
  owner = source.partition('/')[0]
  return bool(
    _NAME.fullmatch(source) and not source.endswith(_SUFFIXES) and not os.path.exists(owner)
  )


def fetch(name: str) -> epath.Path:
  """The folder with the files of a model: in the cache folder, or downloaded by huggingface_hub.

  Raises:
    UserError: saying what to download, and where to put it, when that cannot be done here.
  """
  folder = cache_folder() / name
  if folder.exists():
    return folder
  try:
    library: Any = importlib.import_module('huggingface_hub')
  except ImportError:
    raise _missing(name, folder, "or run pip install 'vit_jax[hub]'") from None
  try:
    for patterns in (_FILES, _OPEN_CLIP_FILES):
      snapshot = epath.Path(library.snapshot_download(name, allow_patterns=list(patterns)))
      if any(snapshot.glob('*.safetensors')):
        return snapshot
  except Exception as error:  # noqa: BLE001 - of the network, of the hub, of the disk
    raise _explained(error, name, folder) from None
  raise UserError(
    f'{name} has no safetensors on huggingface.co; download other weights, such as '
    f'pytorch_model.bin, from https://huggingface.co/{name} and pass their path.'
  )


def _explained(error: Exception, name: str, folder: epath.Path) -> UserError:
  """What a user can do about an error of huggingface_hub, whose version names its class."""
  kind = type(error).__name__
  status = getattr(getattr(error, 'response', None), 'status_code', None)
  if kind == 'GatedRepoError':
    return _missing(name, folder, 'or accept its license there and run hf auth login')
  if 'Invalid credentials' in str(error):
    return UserError(
      f'huggingface.co refuses your token, so {name} cannot be downloaded; run hf auth login, '
      'or unset HF_TOKEN.'
    )
  if kind == 'RepositoryNotFoundError' or status in (401, 403):
    return UserError(
      f'There is no file or folder {name}, and no model of that name on huggingface.co that you '
      'may read; check the spelling, or run hf auth login if it is private.'
    )
  reason = first_line(error)
  if kind == 'LocalEntryNotFoundError':  # after an error of the network
    reason = f'it is not in its cache, and {first_line(error.__cause__ or error).rstrip(".")}'
  return _missing(name, folder, f'as huggingface_hub could not ({reason})')


def _missing(name: str, folder: epath.Path, advice: str) -> UserError:
  first = ', once you have accepted its license there,' if name.startswith(_GATED) else ''
  return UserError(
    f'There is no file or folder {name}; if that is a model of huggingface.co, download '
    'config.json, preprocessor_config.json and model.safetensors from '
    f'https://huggingface.co/{name}{first} into {folder}, {advice}.'
  )
