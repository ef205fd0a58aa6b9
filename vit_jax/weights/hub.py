"""Models of huggingface.co by their names, as facebook/dinov2-base: cached, or downloaded."""

import importlib
import os
import re
from typing import Any

from etils import epath

from vit_jax.errors import UserError, first_line
from vit_jax.files import cache_folder

_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')
_FILES = ('config.json', 'preprocessor_config.json', '*.safetensors', '*.safetensors.index.json')
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
    return epath.Path(library.snapshot_download(name, allow_patterns=list(_FILES)))
  except Exception as error:  # noqa: BLE001 - of the network, of the hub, of the disk
    if type(error).__name__ == 'GatedRepoError':
      advice = 'or accept its license there and run hf auth login'
    else:
      advice = f'as huggingface_hub could not ({first_line(error)})'
    raise _missing(name, folder, advice) from None


def _missing(name: str, folder: epath.Path, advice: str) -> UserError:
  return UserError(
    f'There is no file or folder {name}; if that is a model of huggingface.co, download '
    'config.json, preprocessor_config.json and model.safetensors from '
    f'https://huggingface.co/{name} into '
    f'{folder}, {advice}.'
  )
