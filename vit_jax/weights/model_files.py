"""From a published name or a path to the tensors and the metadata of the model there."""

import dataclasses
import importlib.util
import os
import re

import numpy as np
from etils import epath

from vit_jax.checkpoints import stored_params
from vit_jax.config import LoraConfig
from vit_jax.errors import UserError, first_line
from vit_jax.files import parse_json, read_text, user_path
from vit_jax.models.lora import ADAPTER, merge_adapters
from vit_jax.weights import hub, registry
from vit_jax.weights.evaluation_protocols import protocol
from vit_jax.weights.formats.lazy_tensor import METADATA_KEY, Tensor, TensorFile
from vit_jax.weights.formats.tensor_file import read_tensors
from vit_jax.weights.initial_weights import read_inherited
from vit_jax.weights.layouts import hugging_face, open_clip, timm_config
from vit_jax.weights.layouts.released import flatten, unflatten
from vit_jax.weights.metadata import ModelMetadata, UnsupportedError, damage_explained, read_json

_WEIGHTS = (
  'params.npz',
  'model/params.npz',
  'model.safetensors',
  'pytorch_model.bin',
  *open_clip.WEIGHTS,
)
_SHARD_INDEX = 'model.safetensors.index.json'
# Published families whose state dicts do not tell it: the names of `assumptions.Family`, and how
# the code of their authors resizes position embeddings.
_STATE_DICTS = {
  'clip': ('OpenAI CLIP', 'bicubic'),
  'deit': ('DeiT', 'bicubic'),
  'deit3': ('DeiT', 'bicubic'),
  'dinov2': ('DINOv2', 'bicubic_offset'),
  'dinov3': ('DINOv3', None),
  'mae': ('MAE', 'bicubic'),
}
# The buffers of OpenAI's archives, which build_model in clip/model.py deletes.
_OPENAI_CLIP = {'input_resolution', 'context_length', 'vocab_size', 'visual.conv1.weight'}


def open_model(source: epath.PathLike) -> tuple[TensorFile, ModelMetadata]:
  """The tensors of a model, unread, and the metadata stored with or beside them.

  Args:
    source: a published name; that of a model on huggingface.co; a file; or a folder of vit_jax,
      timm or Transformers, a workdir, an Orbax checkpoint.
  """
  if not os.fspath(source):
    raise UserError('The name of the model is empty; name a file, a folder or a published model.')
  if os.fspath(source).startswith(('http://', 'https://')):
    raise UserError(f'{source} is a URL; download the file, or use the name of a published model.')
  if registry.is_name(source):
    return _open_published(os.fspath(source))
  path = hub.fetch(os.fspath(source)) if hub.is_name(source) else user_path(source)
  try:
    if not path.exists():
      raise UserError(
        f'There is no model at {path}; name a file (.npz, .safetensors), the folder of a run or of '
        'Transformers, or a published model such as augreg/B_16.'
      )
    return _open_folder(path) if path.is_dir() else _open_file(path)
  except UnsupportedError as error:
    raise UserError(f'{path} {error}.') from None
  except (PermissionError, ImportError) as error:  # ImportError: such as gcsfs
    reason = getattr(error, 'strerror', None) or first_line(error)
    raise UserError(f'{path} cannot be read: {reason}.') from None


def _open_published(name: str) -> tuple[TensorFile, ModelMetadata]:
  """A published model, with the preprocessing with which its accuracy was measured."""
  published = registry.find(name)
  if published.url and published.path.suffix != '.npz' and not importlib.util.find_spec('torch'):
    raise UserError(
      f"{name} is a file that only PyTorch can read; pip install 'vit_jax[torch]' before it is "
      'downloaded.'
    )
  file, metadata = _open_file(registry.fetch(name))
  family, resize = _STATE_DICTS.get(published.family, (None, None))
  if '_reg4_' in name:
    resize = 'bicubic_antialias'  # dinov2/hub/backbones.py
  return file, dataclasses.replace(
    metadata, preprocessing=protocol(published), family=family, position_resize=resize
  )


def _open_file(path: epath.Path) -> tuple[TensorFile, ModelMetadata]:
  file, config = read_tensors(path), path.parent / 'config.json'
  is_in_model_folder = path.name in ('params.npz', 'model.safetensors', 'pytorch_model.bin')
  if is_in_model_folder and (config.exists() or METADATA_KEY not in file.metadata):
    return file, _read_folder_metadata(path.parent)
  if path.name in open_clip.WEIGHTS and (path.parent / open_clip.CONFIG).exists():
    with damage_explained(str(path.parent / open_clip.CONFIG)):
      return file, open_clip.read_config(read_json(path.parent / open_clip.CONFIG))
  metadata = ModelMetadata.from_header(file.metadata, path)
  if file.tensors.keys() >= _OPENAI_CLIP:
    metadata = dataclasses.replace(metadata, family='OpenAI CLIP')
  return file, metadata


def _open_folder(folder: epath.Path) -> tuple[TensorFile, ModelMetadata]:
  if (folder / _SHARD_INDEX).exists():
    return _read_shards(folder / _SHARD_INDEX), _read_folder_metadata(folder)
  for name in _WEIGHTS:
    if (folder / name).exists():
      return _open_file(folder / name)
  step = stored_params.find_checkpoint(folder.resolve())  # Orbax takes no relative paths
  if step is None:
    raise UserError(f'{folder} has no model: none of {", ".join(_WEIGHTS)} and no checkpoints.')
  params = stored_params.read_params(step)
  path = step.parent.parent.parent / 'config.json'
  inherited = read_inherited(path.parent)
  with damage_explained(str(path)):
    config = read_json(path)
    metadata = dataclasses.replace(ModelMetadata.from_run_config(config), **inherited)
    if any(name.endswith(ADAPTER) for name in params):
      lora = LoraConfig(**config['lora'])
      params = flatten(merge_adapters(unflatten(params), lora.scale))
  tensors = {name: Tensor.from_array(np.asarray(x)) for name, x in params.items()}
  return TensorFile(step, 'Orbax', tensors), metadata


def _read_shards(index: epath.Path) -> TensorFile:
  """The tensors of several safetensors files, into which Transformers splits large models."""
  with damage_explained(str(index)):
    names = set(parse_json(read_text(index))['weight_map'].values())
    if not all(re.fullmatch(r'[\w.-]+\.safetensors', name) for name in names):
      raise ValueError('file names expected')
  tensors: dict[str, Tensor] = {}
  for name in sorted(names):
    if not (index.parent / name).exists():
      raise UserError(f'{index} lists {name}, which does not exist; copy it there.')
    shard = read_tensors(index.parent / name)
    if duplicates := tensors.keys() & shard.tensors.keys():
      raise UserError(f'{shard.path} has {sorted(duplicates)[0]}, which another file has too.')
    tensors |= shard.tensors
  return TensorFile(index.parent, 'safetensors', tensors)


def _read_folder_metadata(folder: epath.Path) -> ModelMetadata:
  """From config.json and the files beside it, none of which need exist."""
  with damage_explained(f'{folder}/config.json or a file beside it'):
    config = read_json(folder / 'config.json')
    if timm_config.is_config(config):
      return timm_config.read_config(config)
    if hugging_face.is_config(config):
      # Where a model has both, Transformers prefers the file of the whole processor.
      whole = read_json(folder / 'processor_config.json').get('image_processor')
      processor = whole or read_json(folder / 'preprocessor_config.json')
      return hugging_face.read_config(config, processor)
    if (folder / 'config.json').exists():
      if missing := {'image_size', 'loss'} - config.keys():
        raise KeyError(min(missing))
      if not {'preprocessing', 'crop_fraction'} & config.keys():
        raise KeyError('preprocessing')
    if (folder / 'labels.txt').exists():
      config['labels'] = read_text(folder / 'labels.txt').splitlines()
    return ModelMetadata.from_json(config)
