"""Writes a model in each of the layouts that others read, whole or not at all."""

import dataclasses
import json
import os
import secrets
from collections.abc import Callable
from typing import Any

from etils import epath

from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.weights.formats.lazy_tensor import FACTS, is_special
from vit_jax.weights.formats.npz_file import MAX_FACTS
from vit_jax.weights.formats.safetensors_file import write_safetensors
from vit_jax.weights.layouts import released, torch_export
from vit_jax.weights.metadata import ModelMetadata

_FILES = {  # of the folders that are written here, so that one can take another's place
  'params.npz',
  'config.json',
  'labels.txt',
  'model.safetensors',
  'preprocessor_config.json',
}


@dataclasses.dataclass(frozen=True, eq=False)
class Saved:
  """What is written: a model, its parameter tree, and facts about it."""

  model: build.Model
  params: Any
  about: ModelMetadata

  def facts(self) -> dict[str, Any]:
    """What `ModelMetadata.from_facts` reads."""
    names = ('image_size', 'crop_fraction', 'loss', 'gelu', 'layer_norm_epsilon')
    facts = {name: getattr(self.about, name) for name in names}
    return {'model': build.architecture(self.model), **facts}

  def facts_and_labels(self) -> dict[str, Any]:
    """The same with labels, for files that hold nothing else."""
    return {**self.facts(), 'labels': self.about.labels}


def real_path(path: epath.Path) -> epath.Path:
  """Where links lead; a local path becomes absolute."""
  return path if '://' in os.fspath(path) else epath.Path(os.path.realpath(path))


def _scratch(path: epath.Path) -> epath.Path:
  """A name beside `path` that nothing has."""
  return path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')


def write_file(path: epath.Path, write: Callable[[epath.Path], None]) -> None:
  """Lets `write` make a file that appears at `path` when it is whole.

  Raises:
    UserError: when it cannot be written.
  """
  path = real_path(path)
  part = _scratch(path)
  try:
    if path.is_dir():
      raise UserError(f'{path} is a folder; it would be a file.')
    if is_special(path):
      raise UserError(f'{path} is a pipe or a device, not a file.')
    path.parent.mkdir(parents=True, exist_ok=True)
    write(part)
    part.replace(path)
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror or error}.') from None
  finally:
    if part.exists():
      part.unlink()


def write_folder(folder: epath.Path, write: Callable[[epath.Path], None]) -> None:
  """Lets `write` fill a folder that takes the place of `folder` when it is whole.

  Raises:
    UserError: when it cannot be written, or `folder` holds other files.
  """
  folder = real_path(folder)
  part, old = _scratch(folder), _scratch(folder)
  try:
    check_replaceable(folder)
    part.mkdir(parents=True)
    write(part)
    if folder.exists():
      folder.rename(old)
    part.rename(folder)
    if old.exists():
      old.rmtree()
  except OSError as error:
    if old.exists() and not folder.exists():
      old.rename(folder)
    raise UserError(f'{folder} cannot be written: {error.strerror or error}.') from None
  finally:
    if part.exists():
      part.rmtree()


def check_replaceable(folder: epath.Path) -> None:
  """Raises `UserError` unless `folder` is free for a model, or holds nothing but one."""
  if folder.exists() and not folder.is_dir():
    raise UserError(f'{folder} is a file; a model is a folder.')
  unknown = {child.name for child in folder.iterdir()} - _FILES if folder.exists() else ()
  if unknown:
    raise UserError(
      f'{folder} holds files that are no model ({", ".join(sorted(unknown)[:3])}) and would be '
      'replaced; move them away.'
    )


def save_npz(saved: Saved, path: epath.Path) -> None:
  """One file in the published layout, which the original loaders read.

  Labels and sizes stand in a comment that they do not see; labels of more than 64 KiB do not.
  """
  facts = json.dumps(saved.facts_and_labels())
  if len(facts) > MAX_FACTS:
    facts = json.dumps(saved.facts())
  write_file(path, lambda part: released.write_npz(part, saved.params, facts))


def save_model_folder(saved: Saved, folder: epath.Path) -> None:
  """Our own folder: params.npz in the published layout, config.json and labels.txt."""

  def write(part: epath.Path) -> None:
    released.write_npz(part / 'params.npz', saved.params)
    (part / 'config.json').write_text(json.dumps(saved.facts(), indent=2) + '\n')
    if saved.about.labels is not None:
      lines = [' '.join(label.splitlines()) + '\n' for label in saved.about.labels]
      (part / 'labels.txt').write_text(''.join(lines))

  write_folder(folder, write)


def save_timm(saved: Saved, path: epath.Path) -> None:
  """One safetensors file that `timm.create_model(…, checkpoint_path=path)` reads."""
  tensors = torch_export.to_timm(saved.params)
  facts = json.dumps(saved.facts_and_labels())
  metadata = {'format': 'pt', FACTS: facts}
  write_file(path, lambda part: write_safetensors(part, tensors, metadata))


def save_hugging_face(saved: Saved, folder: epath.Path) -> None:
  """A folder that Transformers' `ViTForImageClassification.from_pretrained` reads."""
  tensors = torch_export.to_hugging_face(saved.params)
  channels = saved.params['embedding']['kernel'].shape[2]

  def write(part: epath.Path) -> None:
    write_safetensors(part / 'model.safetensors', tensors, {'format': 'pt'})
    for name, facts in (
      ('config.json', _hugging_face_config(saved, channels)),
      ('preprocessor_config.json', _preprocessor_config(saved.about, channels)),
    ):
      (part / name).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + '\n')

  write_folder(folder, write)


def _hugging_face_config(saved: Saved, channels: int) -> dict[str, Any]:
  model, about = saved.model, saved.about
  height, width = about.image_size
  labels = about.labels or [f'LABEL_{i}' for i in range(model.num_classes)]
  kind = {'softmax': 'single_label_classification', 'sigmoid': 'multi_label_classification'}
  return {
    'architectures': ['ViTForImageClassification'],
    'model_type': 'vit',
    'hidden_size': model.width,
    'num_hidden_layers': model.depth,
    'num_attention_heads': model.num_heads,
    'intermediate_size': model.mlp_dim,
    'hidden_act': {'tanh': 'gelu_pytorch_tanh', 'exact': 'gelu'}[about.gelu],
    'layer_norm_eps': about.layer_norm_epsilon,
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
    'image_size': height if height == width else [height, width],
    'patch_size': model.patch_size,
    'num_channels': channels,
    'qkv_bias': True,
    'problem_type': kind[about.loss],
    'id2label': {str(i): label for i, label in enumerate(labels)},
    'label2id': {label: i for i, label in enumerate(labels)},
    'torch_dtype': 'float32',
    FACTS: saved.facts(),
  }


def _preprocessor_config(about: ModelMetadata, channels: int = 3) -> dict[str, Any]:
  """Shorter side resized, centre cropped, [-1, 1]: what `Classifier.preprocess` does.

  No processor covers a size that is not square: an image of another shape is squeezed into it.
  """
  height, width = about.image_size
  zoom = max(round(side / about.crop_fraction) / side for side in about.image_size)
  size = {'height': round(height * zoom), 'width': round(width * zoom)}
  if height == width:
    size = {'shortest_edge': size['height']}
  return {
    'image_processor_type': 'BitImageProcessor',
    'do_convert_rgb': channels == 3,
    'do_resize': True,
    'size': size,
    'resample': 2,  # bilinear
    'do_center_crop': True,
    'crop_size': {'height': height, 'width': width},
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(about.mean[:1] * channels if channels != 3 else about.mean),
    'image_std': list(about.std[:1] * channels if channels != 3 else about.std),
  }
