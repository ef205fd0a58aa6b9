"""Writes a model in any layout; a file or folder appears whole or not at all."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from etils import epath

from vit_jax.config import Preprocessing
from vit_jax.errors import UserError
from vit_jax.files import is_special, real_path, scratch_path, user_path, write_atomically
from vit_jax.models import build
from vit_jax.models.vit import VisionTransformer
from vit_jax.retries import storage_error, with_retries
from vit_jax.weights import layer_scale, normalization
from vit_jax.weights.formats.lazy_tensor import METADATA_KEY, Tensor
from vit_jax.weights.formats.safetensors_file import write_safetensors
from vit_jax.weights.layouts import (
  hugging_face_writer,
  image_processor,
  released,
  timm,
  timm_config,
)
from vit_jax.weights.metadata import ModelMetadata
from vit_jax.weights.qkv_biases import missing_biases

# The files of the folders written here, which a new model may replace.
_MODEL_FILES = frozenset(
  'params.npz config.json labels.txt model.safetensors preprocessor_config.json LICENSE'.split()
)
# The fields of the Vision Transformers that the original loaders know.
_RELEASED = dict(
  class_token=False,
  registers=0,
  rotary=None,
  patch_bias=True,
  patch_norm=False,
  block_bias=True,
  qkv_bias='all',
  norm='layer',
  pool_mlp=True,
  pre_norm=False,
  mlp='gelu',
  layer_scale=0.0,
  final_norm='encoder',
  head_bias=True,
)
_LAYOUT_OF_SUFFIX = {'.npz': 'npz', '.safetensors': 'timm', '.stablehlo': 'stablehlo'}
_OTHER_FORMATS = '.bin .ckpt .gguf .gz .h5 .json .onnx .pb .pkl .pt .pth .tflite .zip'.split()


def layout_of(path: epath.PathLike) -> str:
  """The layout of `Classifier.save` that the name of a target stands for.

  A number after the last dot, as in vit-1.5, belongs to the name of a folder; after letters, as in
  x.foo, only a final slash or an existing folder tells that it is one.

  Raises:
    UserError: for an empty name, or the suffix of a format that cannot be written.
  """
  name = os.fspath(path)
  *others, suffix = ['', *map(str.lower, pathlib.PurePath(name).suffixes)]
  is_folder = name.endswith('/') or bool(name) and user_path(name).is_dir()
  is_unknown = suffix[1:2].isalpha() and suffix not in _LAYOUT_OF_SUFFIX and not is_folder
  if not name or is_unknown or suffix in _OTHER_FORMATS or _LAYOUT_OF_SUFFIX.keys() & others:
    raise UserError(
      f'{name!r} is not a supported target; use X.npz, X.safetensors (which PyTorch reads), '
      'X.stablehlo or a folder, X/.'
    )
  return _LAYOUT_OF_SUFFIX.get(suffix, 'huggingface')


def _is_file(path: epath.Path, layout: str) -> bool:
  """Whether a target is one file; a target of timm is a folder unless it is X.safetensors."""
  if layout == 'timm':
    return path.suffix.lower() == '.safetensors'
  return layout in _LAYOUT_OF_SUFFIX.values()


def unexpressed(metadata: ModelMetadata, path: epath.Path, layout: str) -> str | None:
  """What the config of another library cannot say about a model: 'the border', …, or None."""
  if layout == 'huggingface' and metadata.image_size:
    rule = metadata.preprocessing or Preprocessing()
    return image_processor.unexpressed(rule, metadata.image_size)
  if layout == 'timm' and not _is_file(path, layout):
    return timm_config.unexpressed(metadata)
  return None


def check_target(path: epath.Path, layout: str, overwrite: bool) -> None:
  """Raises `UserError` if writing that layout to `path` would destroy something.

  Args:
    path, layout: as in `Classifier.save`.
    overwrite: whether a file, or a folder that holds only a model, may be replaced.
  """
  try:
    if _is_file(path, layout):
      if path.is_dir():
        raise UserError(f'{path} is a folder, not a file; choose another target.')
      if is_special(path):
        raise UserError(f'{path} is a pipe or a device, not a file; choose another target.')
      is_taken = path.exists()
    else:
      check_replaceable(path)
      if _is_same_file(path, epath.Path('.')):  # a shell would stay in the folder that is replaced
        raise UserError(f'{path} is the current folder; run the command from another one.')
      is_taken = path.exists() and any(path.iterdir())
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror or error}.') from None
  if is_taken and not overwrite:
    raise UserError(
      f'{path} already exists; choose another target, or replace it with --overwrite '
      '(in Python, overwrite=True).'
    )


def check_apart(
  source: epath.PathLike, target: epath.PathLike, role: str = 'the model to convert'
) -> None:
  """Raises `UserError` if writing `target` would change what is at `source`, also over links.

  Args:
    source, target: paths, or the published name of a source.
    role: of the source, for the message.
  """
  if not os.fspath(source) or os.fspath(source).startswith(('http://', 'https://')):
    return  # `load` says what is wrong
  old, new = (real_path(user_path(path)) for path in (source, target))
  if old == new or _is_same_file(old, new):
    raise UserError(f'{target} is {role}; choose another target.')
  if new in old.parents:
    raise UserError(f'{target} holds {role}; choose another target.')
  if old in new.parents:
    raise UserError(f'{target} is inside {source}, {role}; choose another target.')


def _is_same_file(one: epath.Path, other: epath.Path) -> bool:
  try:
    return os.path.samefile(one, other)
  except (OSError, ValueError):  # one of them does not exist, or is remote
    return False


def write_file(path: epath.Path, write: Callable[[epath.Path], Any]) -> None:
  """Calls `write` with a temporary path and moves the file to `path` once it is complete."""
  path = real_path(path)
  try:
    with_retries(path.parent.mkdir, parents=True, exist_ok=True)
    with_retries(write_atomically, path, write)
  except OSError as error:
    raise storage_error(f'{path} cannot be written', error) from None


def write_folder(folder: epath.Path, write: Callable[[epath.Path], Any]) -> None:
  """Calls `write` with a temporary folder, which replaces `folder` once it is complete."""
  try:
    with_retries(_replace_folder, real_path(folder), write)
  except OSError as error:
    raise storage_error(f'{folder} cannot be written', error) from None


def _replace_folder(folder: epath.Path, write: Callable[[epath.Path], Any]) -> None:
  new, old = scratch_path(folder), scratch_path(folder)
  try:
    new.mkdir(parents=True)
    write(new)
    if folder.exists():
      folder.rename(old)
    new.rename(folder)
    if old.exists():
      old.rmtree()
  except Exception:
    if old.exists() and not folder.exists():
      old.rename(folder)
    raise
  finally:
    if new.exists():
      new.rmtree()


def check_replaceable(folder: epath.Path) -> None:
  """Raises `UserError` unless `folder` does not exist, or holds only a model."""
  if not folder.exists():
    return
  if not folder.is_dir():
    raise UserError(f'{folder} is a file, but a model is written to a folder; move it away.')
  children = list(folder.iterdir())
  if unknown := {x.name for x in children if x.name not in _MODEL_FILES or x.is_dir()}:
    raise UserError(
      f'{folder} would be replaced, but holds files that are not part of a model '
      f'({", ".join(sorted(unknown)[:3])}); move them away.'
    )


def save_npz(model: build.Model, params: Any, metadata: ModelMetadata, path: epath.Path) -> None:
  """Writes one file in the released layout, which the original loaders read.

  Metadata goes into comments that they ignore. So a normalization of pixels is folded into the
  first layer and LayerScale into the layers before it, and biases that are left out are zeros,
  unless the model has parts that they do
  not know.
  """
  plain = model
  if isinstance(model, VisionTransformer):
    plain = model.clone(layer_scale=0.0, qkv_bias='all')
  if plain is not model and _is_released(plain):
    arrays = released.flatten(params)
    arrays |= missing_biases(arrays)
    folded = layer_scale.fold({name: Tensor.from_array(x) for name, x in arrays.items()})
    params = released.unflatten({name: tensor.read() for name, tensor in folded.items()})
    model = plain
  if metadata.mean and metadata.std and _is_released(model):
    tensors = {name: Tensor.from_array(x) for name, x in released.flatten(params).items()}
    folded = normalization.fold(tensors, metadata.mean, metadata.std, 'The model')
    params = released.unflatten({name: tensor.read() for name, tensor in folded.items()})
    model = model.clone(pixel_mean=(), pixel_std=(), patch_bias=True)
    metadata = dataclasses.replace(metadata, mean=None, std=None)
  text = _to_json(model, metadata)
  write_file(path, lambda temporary: released.write_npz(temporary, params, text))


def _is_released(model: build.Model) -> bool:
  """Whether the original loaders know all parts of a Vision Transformer."""
  fields = build.architecture(model)
  return (
    isinstance(model, VisionTransformer)
    and model.pool in ('token', 'gap', 'map')
    and all(fields[name] == value for name, value in _RELEASED.items())
  )


def save_model_folder(
  model: build.Model, params: Any, metadata: ModelMetadata, folder: epath.Path
) -> None:
  """Writes a vit_jax folder: params.npz in the released layout, config.json and labels.txt."""

  def write(temporary: epath.Path) -> None:
    released.write_npz(temporary / 'params.npz', params)
    _write_json(temporary / 'config.json', metadata.to_json(build.architecture(model)))
    if metadata.labels is not None:
      lines = [' '.join(label.splitlines()) + '\n' for label in metadata.labels]
      # A JSON escape can be half a character, which UTF-8 does not have.
      (temporary / 'labels.txt').write_bytes(''.join(lines).encode(errors='backslashreplace'))
    _write_license(temporary, metadata)

  write_folder(folder, write)


def save_timm(model: build.Model, params: Any, metadata: ModelMetadata, path: epath.Path) -> None:
  """Writes one safetensors file that `timm.create_model(…, checkpoint_path=path)` reads.

  A path of another suffix is a folder, for `timm.create_model('local-dir:…', pretrained=True)`.
  """
  tensors = timm.from_linen(model, params)
  header = {'format': 'pt', METADATA_KEY: _to_json(model, metadata)}
  if _is_file(path, 'timm'):
    write_file(path, lambda temporary: write_safetensors(temporary, tensors, header))
    return
  assert metadata.image_size is not None
  config = timm_config.make_config(model, metadata, metadata.image_size, tensors)
  config[METADATA_KEY] = metadata.to_json(build.architecture(model))

  def write(temporary: epath.Path) -> None:
    write_safetensors(temporary / 'model.safetensors', tensors, {'format': 'pt'})
    _write_json(temporary / 'config.json', config)
    _write_license(temporary, metadata)

  write_folder(path, write)


def save_hugging_face(
  model: build.Model, params: Any, metadata: ModelMetadata, folder: epath.Path
) -> None:
  """Writes a folder that `from_pretrained` of Transformers reads, of the class of the model."""
  channels = params['embedding']['kernel'].shape[2] if 'embedding' in params else 0
  tensors, config = hugging_face_writer.write(model, params, metadata, channels)
  size = metadata.image_size
  assert size is not None
  config[METADATA_KEY] = metadata.to_json(build.architecture(model))
  preprocessor = image_processor.make_config(
    size, metadata.preprocessing or Preprocessing(), channels, metadata.mean, metadata.std
  )

  def write(temporary: epath.Path) -> None:
    write_safetensors(temporary / 'model.safetensors', tensors, {'format': 'pt'})
    _write_json(temporary / 'config.json', config)
    _write_json(temporary / 'preprocessor_config.json', preprocessor)
    _write_license(temporary, metadata)

  write_folder(folder, write)


def _to_json(model: build.Model, metadata: ModelMetadata) -> str:
  """The metadata with the labels, for a header."""
  content = metadata.to_json(build.architecture(model))
  return json.dumps({**content, 'labels': metadata.labels})


def _write_license(folder: epath.Path, metadata: ModelMetadata) -> None:
  if metadata.license:
    (folder / 'LICENSE').write_text(metadata.license + '\n')


def _write_json(path: epath.Path, content: Any) -> None:
  path.write_bytes(json.dumps(content, indent=2).encode() + b'\n')
