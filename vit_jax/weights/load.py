"""From whatever a user names to a model and its tensors, which are not read yet."""

import dataclasses
import math
import types

import numpy as np
from etils import epath

from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.vit import Numerics, VisionTransformer
from vit_jax.weights.formats.lazy_tensor import Tensor, TensorFile
from vit_jax.weights.layouts import hugging_face, pytorch, released, timm
from vit_jax.weights.layouts.released import POSITIONS
from vit_jax.weights.metadata import HALF, ModelMetadata
from vit_jax.weights.model_files import open_model


@dataclasses.dataclass(frozen=True, eq=False)
class SourceWeights:
  """The tensors of a source, not read yet, and the model that they belong to."""

  name: str  # of the file, for messages
  layout: str  # and the container, for the report
  tensors: dict[str, Tensor]  # by linen name
  ignored: tuple[str, ...]  # names in the file that are not parameters of the model
  notes: tuple[str, ...]  # how tensors were changed
  model: build.Model
  grid: tuple[int, int] | None  # (rows, columns) of the position embeddings; None for a ResNet
  image_size: tuple[int, int]  # (height, width) in pixels
  metadata: ModelMetadata


def open_weights(
  source: epath.PathLike,
  image_size: tuple[int, int] | None = None,
  num_heads: int | None = None,
  gelu: str | None = None,
  mean: tuple[float, ...] | None = None,
  std: tuple[float, ...] | None = None,
) -> SourceWeights:
  """Opens a source: detects its layout and reads the architecture off its tensors.

  Args:
    source, num_heads, gelu, mean, std: as in `vit_jax.load`.
    image_size: (height, width) to load the model for; determines the grid of position embeddings
      whose number is not a square.

  Raises:
    UserError: for a source that is missing, damaged, or not a supported model.
  """
  if gelu not in (None, *build.GELUS):
    raise UserError(f'gelu is {gelu!r}; choose one of {", ".join(build.GELUS)}.')
  file, metadata = open_model(source)
  name = str(file.path)
  translator, layout, prefix = _detect_layout(file)
  inside = {n.removeprefix(prefix): x for n, x in file.tensors.items() if n.startswith(prefix)}
  ignored = tuple(n for n in file.tensors if not n.startswith(prefix))
  tensors, notes = translator.to_linen(inside, metadata.num_heads or num_heads, name)
  mean, std = mean or metadata.mean or HALF, std or metadata.std or HALF
  if (mean, std) != (HALF, HALF):
    tensors = pytorch.fold_normalization(tensors, mean, std, name)
    notes = (f'the normalization of pixels with mean {mean} is folded in', *notes)
  stored = metadata
  if layout == 'Hugging Face' and metadata.image_size is None:  # there is no config.json
    stored = hugging_face.read_config({}, {})
  numerics = Numerics(
    approximate_gelu=(gelu or stored.gelu) == 'tanh', layer_norm_epsilon=stored.layer_norm_epsilon
  )
  model = build.model_from_tensors(tensors, name, numerics)
  metadata.check_num_labels(model.num_classes, name)
  grid, size = None, metadata.image_size or image_size
  if POSITIONS in tensors and isinstance(model, VisionTransformer):
    if layout in ('timm', 'big_vision') and _lacks_class_position(
      tensors[POSITIONS].shape, model, size if layout == 'timm' else None
    ):
      tensors[POSITIONS] = _prepend_zeros(tensors[POSITIONS])
      notes += ('the class token had no position embedding and was given zeros',)
    shape = tensors[POSITIONS].shape
    size, grid = _position_grid(shape, model, metadata.image_size, image_size, name)
  description = 'Orbax' if file.container == 'Orbax' else f'{layout} layout, {file.container}'
  return SourceWeights(
    name, description, tensors, ignored, notes, model, grid, size or (224, 224), metadata
  )


def _detect_layout(file: TensorFile) -> tuple[types.ModuleType, str, str]:
  """(module of the layout, name of the layout, prefix of all names)."""
  for module in (released, timm, hugging_face):
    if match := module.detect(file.tensors):
      return module, *match
  names = ', '.join(sorted(file.tensors)[:3])
  raise UserError(
    f'{file.path} is not a Vision Transformer or BiT in a supported layout'
    + (f'; its tensors are called {names}, …' if names else ': it has no tensors.')
  )


def _lacks_class_position(
  shape: tuple[int, ...], model: VisionTransformer, image_size: tuple[int, int] | None
) -> bool:
  """Whether position embeddings of that shape have none for the class token.

  In big_vision (but for files from before 2022) and in timm's `no_embed_class` models the class
  token is concatenated after they are added. Without an image size, a square number of them is
  taken for one without the class token.
  """
  if model.pool != 'token' or len(shape) != 3:
    return False
  grid = image_size and build.patch_grid(image_size, model)
  patches = grid and grid[0] * grid[1]
  is_square = math.isqrt(shape[1]) ** 2 == shape[1]
  return patches == shape[1] or (is_square and patches != shape[1] - 1)


def _prepend_zeros(positions: Tensor) -> Tensor:
  batch, count, width = positions.shape
  return positions.map(
    (batch, count + 1, width), lambda x: np.concatenate([np.zeros_like(x[:, :1]), x], axis=1)
  )


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
  if is_square and side and stored_size is None:
    return (side * model.patch_size, side * model.patch_size), (side, side)
  mismatch = 'is not a square; pass the image size that they were trained at'
  if stored_size is not None:
    mismatch = f'does not match its image_size {stored_size}'
  raise UserError(f'{name} has position embeddings for {patches} patches, which {mismatch}.')
