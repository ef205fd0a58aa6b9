"""From whatever a user names to the tensors of a model: files, folders, runs, the catalogue."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from vit_jax.checkpoints import manager
from vit_jax.errors import UserError, first_line
from vit_jax.models import build
from vit_jax.models.resnet import BiTResNet
from vit_jax.models.variants import VARIANTS
from vit_jax.models.vit import Numerics
from vit_jax.weights import registry
from vit_jax.weights.formats.lazy_tensor import FACTS, Tensor, TensorFile, read_text
from vit_jax.weights.formats.tensor_file import read_tensors
from vit_jax.weights.layouts import released, torch_format
from vit_jax.weights.layouts.torch_names import LAYER_SCALE
from vit_jax.weights.metadata import ModelMetadata

_HEADS_OF_WIDTH = {variant.width: variant.num_heads for variant in VARIANTS.values()}
_WEIGHTS = ('params.npz', 'model/params.npz', 'model.safetensors', 'pytorch_model.bin')


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
  """What was found: tensors that are not read yet, and the model that they are of.

  Attributes:
    name: of the file, for messages.
    layout: how it was laid out, for the report.
    tensors: {linen name: tensor}.
    ignored: names in the file that are no parameters of the model.
    notes: what was done to tensors on the way.
    model: with all that the tensors tell.
    grid: (rows, columns) of the position embeddings, None for a ResNet.
    image_size: (height, width) in pixels.
    about: what is said besides the tensors.
  """

  name: str
  layout: str
  tensors: dict[str, Tensor]
  ignored: tuple[str, ...]
  notes: tuple[str, ...]
  model: build.Model
  grid: tuple[int, int] | None
  image_size: tuple[int, int]
  about: ModelMetadata


def open_checkpoint(
  source: epath.PathLike,
  image_size: tuple[int, int] | None = None,
  num_heads: int | None = None,
  gelu: str | None = None,
) -> Checkpoint:
  """Finds out what `source` is, and what model its tensors are of.

  Args:
    source: a name of the catalogue, a file, a folder of a run or of Transformers or timm.
    image_size: (height, width) that is wanted; tells the grid of position embeddings whose
      number is no square.
    num_heads, gelu: what PyTorch's files may not tell.

  Raises:
    UserError: for a source that is missing, damaged, or no model that is known here.
  """
  if registry.is_name(source):
    source = registry.fetch(str(source))
  if gelu not in (None, *build.GELUS):
    raise UserError(f'gelu is {gelu!r}; choose one of {", ".join(build.GELUS)}.')
  file, about = _open(_local(source))
  name = str(file.path)
  if found := released.find_layout(file.tensors):
    layout, prefix = found
    tensors, ignored = released.to_linen(file.tensors, prefix, name)
  elif found := torch_format.find_layout(file.tensors):
    layout, prefix = found
    if layout == 'Hugging Face' and about.image_size is None:  # there is no config.json
      about = about.with_transformers_defaults()
    heads = about.num_heads or num_heads or _known_heads(file.tensors, layout, name)
    tensors, ignored = torch_format.to_linen(file.tensors, layout, prefix, heads, name)
    tensors = about.unnormalized(tensors, name)
  else:
    names = ', '.join(sorted(file.tensors)[:3])
    raise UserError(
      f'{name} is no Vision Transformer or BiT in a layout that is known here'
      + (f'; its tensors are called {names}, …' if names else ': it has no tensors.')
    )
  numerics = Numerics(
    approximate_gelu=(gelu or about.gelu) == 'tanh', layer_norm_epsilon=about.layer_norm_epsilon
  )
  model = build.model_from_tensors(tensors, name, numerics)
  about.check_classes(model.num_classes, name)
  notes = _notes(file.tensors, about)
  if layout in ('timm', 'big_vision') and getattr(model, 'pool', None) == 'token':
    wanted = (about.image_size or image_size) if layout == 'timm' else None
    tensors, note = _with_class_position(tensors, wanted and build.patch_grid(wanted, model))
    notes += note
  size, grid = about.image_size or image_size or (224, 224), None
  if released.POSITIONS in tensors and not isinstance(model, BiTResNet):
    size, grid = _grid(tensors[released.POSITIONS].shape, model, about, image_size, name)
  text = 'Orbax' if file.container == 'Orbax' else f'{layout} layout, {file.container}'
  return Checkpoint(name, text, tensors, tuple(ignored), notes, model, grid, size, about)


def _local(source: epath.PathLike) -> epath.Path:
  if not os.fspath(source):
    raise UserError('The name of the model is empty.')
  if os.fspath(source).startswith(('http://', 'https://')):
    raise UserError(f'{source} is an address; fetch it, or give its name in the catalogue.')
  return epath.Path(source).expanduser()


def _notes(tensors: Mapping[str, Tensor], about: ModelMetadata) -> tuple[str, ...]:
  """What is done to the tensors of a PyTorch file."""
  notes = []
  if about.is_normalized:
    notes.append(f'embedding: takes over the normalization of pixels, mean {about.mean}')
  if any(LAYER_SCALE.search(name) for name in tensors):
    notes.append('LayerScale went into the layers before it')
  return tuple(notes)


def _with_class_position(
  tensors: dict[str, Tensor], grid: tuple[int, int] | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """Gives the class token a position embedding of zeros where it joins after they are added.

  So it does in big_vision (but for files from before 2022) and in timm's `no_embed_class`
  models. `grid` is that of the images, where it is known; otherwise a square number of
  entries has none for the token among them. Returns a note when it is given one.
  """
  positions = tensors.get(released.POSITIONS)
  if positions is None or len(positions.shape) != 3:
    return tensors, ()
  batch, count, width = positions.shape
  patches = grid and grid[0] * grid[1]
  if patches == count - 1 or not (patches == count or _is_square(count)):
    return tensors, ()
  longer = positions.map(
    (batch, count + 1, width), lambda x: np.concatenate([np.zeros_like(x[:, :1]), x], axis=1)
  )
  note = 'the class token had no position embedding and got zeros'
  return {**tensors, released.POSITIONS: longer}, (note,)


def _is_square(number: int) -> bool:
  return math.isqrt(number) ** 2 == number


def _open(path: epath.Path) -> tuple[TensorFile, ModelMetadata]:
  """The tensors that `path` means, and what is said about them in files beside."""
  try:
    return _open_path(path)
  except PermissionError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from None
  except ImportError as error:  # such as gcsfs
    raise UserError(f'{path} cannot be read: {first_line(error)}.') from None


def _open_path(path: epath.Path) -> tuple[TensorFile, ModelMetadata]:
  if not path.exists():
    raise UserError(
      f'There is no model at {path}; it takes a file (.npz, .safetensors), the folder of a '
      f'run or of Transformers, or a name such as augreg/B_16.'
    )
  if path.is_dir():
    index = path / 'model.safetensors.index.json'
    if index.exists():
      return _read_shards(index), ModelMetadata.read(path)
    candidate = next((path / name for name in _WEIGHTS if (path / name).exists()), None)
    if candidate is None:
      return _open_step(path)
    path = candidate
  file = read_tensors(path)
  beside = path.name in ('params.npz', 'model.safetensors', 'pytorch_model.bin')
  if beside and (FACTS not in file.metadata or (path.parent / 'config.json').exists()):
    return file, ModelMetadata.read(path.parent)
  return file, ModelMetadata.from_metadata(file.metadata, str(path))


def _open_step(folder: epath.Path) -> tuple[TensorFile, ModelMetadata]:
  step = manager.find_checkpoint(folder.resolve())  # Orbax takes no relative paths
  if step is None:
    raise UserError(f'{folder} holds no model: none of {", ".join(_WEIGHTS)}, no checkpoints.')
  tensors = {name: Tensor.of(x) for name, x in manager.read_params(step).items()}
  about = ModelMetadata.of_run(step.parent.parent.parent)
  return TensorFile(step, 'Orbax', tensors), about


def _read_shards(index: epath.Path) -> TensorFile:
  """The tensors of several safetensors files, as Transformers splits large models."""
  try:
    files = set(json.loads(read_text(index))['weight_map'].values())
    if not all(re.fullmatch(r'[\w.-]+\.safetensors', name) for name in files):
      raise ValueError('names of files expected')
    if missing := [name for name in sorted(files) if not (index.parent / name).exists()]:
      raise UserError(f'{index} names {missing[0]}, which is not there.')
  except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
    raise UserError(f'{index} is damaged ({first_line(error)}).') from None
  tensors: dict[str, Tensor] = {}
  for name in sorted(files):
    part = read_tensors(index.parent / name)
    if both := tensors.keys() & part.tensors.keys():
      raise UserError(f'{part.path} holds {sorted(both)[0]}, which another file has, too.')
    tensors |= part.tensors
  return TensorFile(index.parent, 'safetensors', tensors)


def _known_heads(tensors: Mapping[str, Any], layout: str, name: str) -> int | None:
  """The heads of the published models, which all differ in width; None for a ResNet."""
  if layout == 'timm BiT':
    return None
  token = next((x for n, x in tensors.items() if n.endswith(('pos_embed', 'embeddings'))), None)
  if token is None or not token.shape:
    raise UserError(f'{name} is no Vision Transformer: it has no position embeddings.')
  width = token.shape[-1]
  if width not in _HEADS_OF_WIDTH:
    raise UserError(
      f'{name} does not tell its number of heads, nor does its width of {width}; '
      'say it with num_heads.'
    )
  return _HEADS_OF_WIDTH[width]


def _grid(
  shape: tuple[int, ...],
  model: build.Model,
  about: ModelMetadata,
  image_size: tuple[int, int] | None,
  name: str,
) -> tuple[tuple[int, int], tuple[int, int]]:
  """(image size, (rows, columns)) of position embeddings of that shape."""
  if len(shape) != 3 or shape[0] != 1:
    raise UserError(f'{name} has position embeddings of shape {shape}, not (1, N, D).')
  patches = shape[1] - (model.pool == 'token')
  side = math.isqrt(max(patches, 0))
  wanted = None if side * side == patches else image_size  # all published ones are squares
  for size in (about.image_size, wanted):
    grid = size and build.patch_grid(size, model)
    if grid and grid[0] * grid[1] == patches:
      return size, grid
  if about.image_size or side < 1 or side * side != patches:
    raise UserError(
      f'{name} has position embeddings for {patches} patches, which is '
      + (
        f'not what its image_size {about.image_size} has.'
        if about.image_size
        else 'no square; say the image size that they are of.'
      )
    )
  return (side * model.patch_size,) * 2, (side, side)
