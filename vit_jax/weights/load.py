"""From whatever a user names to a model and its tensors, which are not read yet."""

import dataclasses
import math
import os
from collections.abc import Mapping

import numpy as np
from etils import epath

from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.vit import Numerics, VisionTransformer
from vit_jax.weights import registry
from vit_jax.weights.formats.lazy_tensor import Tensor, TensorFile
from vit_jax.weights.layouts import hugging_face, pytorch, released, timm
from vit_jax.weights.metadata import ModelMetadata
from vit_jax.weights.model_files import open_path


@dataclasses.dataclass(frozen=True, eq=False)
class SourceWeights:
  """The tensors of a source, not read yet, and the model that they belong to.

  Attributes:
    name: of the file, for messages.
    layout: layout and container, for the report.
    tensors: {linen name: tensor}.
    ignored: names in the file that are not parameters of the model.
    notes: how tensors were changed.
    model: as the tensors and the metadata determine it.
    grid: (rows, columns) of the position embeddings; None for a ResNet.
    image_size: (height, width) in pixels.
    metadata: what the tensors do not determine.
  """

  name: str
  layout: str
  tensors: dict[str, Tensor]
  ignored: tuple[str, ...]
  notes: tuple[str, ...]
  model: build.Model
  grid: tuple[int, int] | None
  image_size: tuple[int, int]
  metadata: ModelMetadata


def open_weights(
  source: epath.PathLike,
  image_size: tuple[int, int] | None = None,
  num_heads: int | None = None,
  gelu: str | None = None,
) -> SourceWeights:
  """Opens a source: detects its layout and reads the architecture off its tensors.

  Args:
    source: a published name, a file, or a folder of a run, of Transformers or of timm.
    image_size: (height, width) to load the model for; determines the grid of position embeddings
      whose number is not a square.
    num_heads, gelu: for PyTorch files that do not store them.

  Raises:
    UserError: for a source that is missing, damaged, or not a supported model.
  """
  if registry.is_name(source):
    source = registry.fetch(str(source))
  if gelu not in (None, *build.GELUS):
    raise UserError(f'gelu is {gelu!r}; choose one of {", ".join(build.GELUS)}.')
  file, metadata = open_path(_local_path(source))
  name = str(file.path)
  layout, prefix = _detect_layout(file)
  if layout == 'Hugging Face' and metadata.image_size is None:  # there is no config.json
    metadata = hugging_face.without_config(metadata)
  heads = metadata.num_heads or num_heads
  tensors, ignored, notes = _to_linen(file.tensors, layout, prefix, heads, name)
  if metadata.has_own_normalization:
    tensors = pytorch.fold_normalization(tensors, metadata.mean, metadata.std, name)
    notes = (f'the normalization of pixels with mean {metadata.mean} is folded in', *notes)
  numerics = Numerics(
    approximate_gelu=(gelu or metadata.gelu) == 'tanh',
    layer_norm_epsilon=metadata.layer_norm_epsilon,
  )
  model = build.model_from_tensors(tensors, name, numerics)
  metadata.check_num_labels(model.num_classes, name)
  size = metadata.image_size or image_size
  if layout in ('timm', 'big_vision') and _has_class_token(model):
    grid = build.patch_grid(size, model) if size and layout == 'timm' else None
    tensors, padding_notes = _pad_class_position(tensors, grid)
    notes += padding_notes
  grid, size = None, size or (224, 224)
  if released.POSITIONS in tensors and isinstance(model, VisionTransformer):
    shape = tensors[released.POSITIONS].shape
    size, grid = _position_grid(shape, model, metadata.image_size, image_size, name)
  description = 'Orbax' if file.container == 'Orbax' else f'{layout} layout, {file.container}'
  return SourceWeights(name, description, tensors, ignored, notes, model, grid, size, metadata)


def _local_path(source: epath.PathLike) -> epath.Path:
  if not os.fspath(source):
    raise UserError('The name of the model is empty; name a file, a folder or a published model.')
  if os.fspath(source).startswith(('http://', 'https://')):
    raise UserError(f'{source} is a URL; download the file, or use the name of a published model.')
  return epath.Path(source).expanduser()


def _detect_layout(file: TensorFile) -> tuple[str, str]:
  """(layout, prefix of all names)."""
  for layout in (released, timm, hugging_face):
    if match := layout.detect(file.tensors):
      return match
  names = ', '.join(sorted(file.tensors)[:3])
  raise UserError(
    f'{file.path} is not a Vision Transformer or BiT in a supported layout'
    + (f'; its tensors are called {names}, …' if names else ': it has no tensors.')
  )


def _to_linen(
  tensors: Mapping[str, Tensor], layout: str, prefix: str, num_heads: int | None, name: str
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
  """({linen name: tensor}, ignored names, notes)."""
  if layout in ('timm', 'timm BiT'):
    return timm.to_linen(tensors, layout, prefix, num_heads, name)
  if layout == 'Hugging Face':
    return *hugging_face.to_linen(tensors, prefix, num_heads, name), ()
  return *released.to_linen(tensors, prefix, name), ()


def _has_class_token(model: build.Model) -> bool:
  return isinstance(model, VisionTransformer) and model.pool == 'token'


def _pad_class_position(
  tensors: dict[str, Tensor], grid: tuple[int, int] | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """Adds a position embedding of zeros for the class token, where it has none.

  In big_vision (but for files from before 2022) and in timm's `no_embed_class` models the class
  token is concatenated after the position embeddings are added.

  Args:
    tensors: {linen name: tensor}.
    grid: (rows, columns) of patches, where the image size is known; otherwise a square number of
      position embeddings is taken for one without the class token.

  Returns:
    The tensors, and a note if the class token was given a position embedding.
  """
  positions = tensors.get(released.POSITIONS)
  if positions is None or len(positions.shape) != 3:
    return tensors, ()
  batch, count, width = positions.shape
  patches = grid and grid[0] * grid[1]
  if patches == count - 1 or not (patches == count or _is_square(count)):
    return tensors, ()
  padded = positions.map(
    (batch, count + 1, width), lambda x: np.concatenate([np.zeros_like(x[:, :1]), x], axis=1)
  )
  note = 'the class token had no position embedding and was given zeros'
  return {**tensors, released.POSITIONS: padded}, (note,)


def _is_square(number: int) -> bool:
  return math.isqrt(number) ** 2 == number


def _position_grid(
  shape: tuple[int, ...],
  model: VisionTransformer,
  stored_size: tuple[int, int] | None,
  requested_size: tuple[int, int] | None,
  name: str,
) -> tuple[tuple[int, int], tuple[int, int]]:
  """(image size, (rows, columns)) of position embeddings of that shape."""
  if len(shape) != 3 or shape[0] != 1:
    raise UserError(f'{name} has position embeddings of shape {shape}, not (1, N, D).')
  patches = shape[1] - (model.pool == 'token')
  side = math.isqrt(max(patches, 0))
  is_square = side * side == patches  # as in all published models
  for size in (stored_size, None if is_square else requested_size):
    grid = size and build.patch_grid(size, model)
    if size and grid and grid[0] * grid[1] == patches:
      return size, grid
  if stored_size is not None:
    raise UserError(
      f'{name} has position embeddings for {patches} patches, which does not match its '
      f'image_size {stored_size}.'
    )
  if side < 1 or not is_square:
    raise UserError(
      f'{name} has position embeddings for {patches} patches, which is not a square; pass the '
      'image size that they were trained at.'
    )
  return (side * model.patch_size, side * model.patch_size), (side, side)
