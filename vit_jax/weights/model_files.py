"""From a path to the tensors and the metadata of the model there: a file, a folder, a run."""

import json
import re

from etils import epath

from vit_jax.checkpoints import manager
from vit_jax.errors import UserError, first_line
from vit_jax.weights.formats.lazy_tensor import METADATA_KEY, Tensor, TensorFile, read_text
from vit_jax.weights.formats.tensor_file import read_tensors
from vit_jax.weights.layouts import hugging_face, timm
from vit_jax.weights.metadata import ModelMetadata, damage_explained, read_json

_WEIGHTS = ('params.npz', 'model/params.npz', 'model.safetensors', 'pytorch_model.bin')
_WITH_CONFIG = ('params.npz', 'model.safetensors', 'pytorch_model.bin')  # beside a config.json
_SHARD_INDEX = 'model.safetensors.index.json'
_REQUIRED = ('image_size', 'crop_fraction', 'loss')  # in a config.json of vit_jax


def open_path(path: epath.Path) -> tuple[TensorFile, ModelMetadata]:
  """The tensors at `path`, unread, and the metadata stored with or beside them.

  Args:
    path: a file; or a folder of vit_jax, timm or Transformers, a workdir, an Orbax checkpoint.

  Raises:
    UserError: when there is no model, or it is damaged or unreadable.
  """
  try:
    return _open_path(path)
  except PermissionError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from None
  except ImportError as error:  # such as gcsfs
    raise UserError(f'{path} cannot be read: {first_line(error)}.') from None


def _open_path(path: epath.Path) -> tuple[TensorFile, ModelMetadata]:
  if not path.exists():
    raise UserError(
      f'There is no model at {path}; name a file (.npz, .safetensors), the folder of a run or of '
      'Transformers, or a published model such as augreg/B_16.'
    )
  if path.is_dir():
    if (path / _SHARD_INDEX).exists():
      return _read_shards(path / _SHARD_INDEX), _read_folder_metadata(path)
    weights = next((path / name for name in _WEIGHTS if (path / name).exists()), None)
    if weights is None:
      return _open_run(path)
    path = weights
  file, folder = read_tensors(path), path.parent
  is_described = METADATA_KEY in file.metadata and not (folder / 'config.json').exists()
  if path.name in _WITH_CONFIG and not is_described:
    return file, _read_folder_metadata(folder)
  return file, ModelMetadata.from_header(file.metadata, path)


def _open_run(folder: epath.Path) -> tuple[TensorFile, ModelMetadata]:
  """The newest Orbax checkpoint of a run that has no model/ yet."""
  step = manager.find_checkpoint(folder.resolve())  # Orbax takes no relative paths
  if step is None:
    raise UserError(f'{folder} has no model: none of {", ".join(_WEIGHTS)} and no checkpoints.')
  tensors = {name: Tensor.from_array(x) for name, x in manager.read_params(step).items()}
  config = step.parent.parent.parent / 'config.json'
  with damage_explained(str(config)):
    metadata = ModelMetadata.from_run_config(read_json(config))
  return TensorFile(step, 'Orbax', tensors), metadata


def _read_shards(index: epath.Path) -> TensorFile:
  """The tensors of several safetensors files, into which Transformers splits large models."""
  try:
    names = set(json.loads(read_text(index))['weight_map'].values())
    if not all(re.fullmatch(r'[\w.-]+\.safetensors', name) for name in names):
      raise ValueError('file names expected')
    if missing := [name for name in sorted(names) if not (index.parent / name).exists()]:
      raise UserError(f'{index} lists {missing[0]}, which does not exist; copy it there.')
  except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
    raise UserError(f'{index} is damaged ({first_line(error)}).') from None
  tensors: dict[str, Tensor] = {}
  for name in sorted(names):
    shard = read_tensors(index.parent / name)
    if duplicates := tensors.keys() & shard.tensors.keys():
      raise UserError(f'{shard.path} has {sorted(duplicates)[0]}, which another file has too.')
    tensors |= shard.tensors
  return TensorFile(index.parent, 'safetensors', tensors)


def _read_folder_metadata(folder: epath.Path) -> ModelMetadata:
  """From config.json and the files beside it, none of which need exist."""
  with damage_explained(f'{folder}/config.json or a file beside it'):
    config = read_json(folder / 'config.json')
    if timm.is_config(config):
      return timm.read_config(config)
    if hugging_face.is_config(config):
      return hugging_face.read_config(config, read_json(folder / 'preprocessor_config.json'))
    if (folder / 'config.json').exists():
      missing = [name for name in _REQUIRED if name not in config]
      if missing:
        raise KeyError(missing[0])
    if (folder / 'labels.txt').exists():
      config['labels'] = read_text(folder / 'labels.txt').splitlines()
    return ModelMetadata.from_json(config)
