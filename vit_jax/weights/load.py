"""From whatever a user names to a model and its tensors, which are not read yet."""

import dataclasses
import math
from collections.abc import Mapping

from etils import epath

from vit_jax.data.imagenet import class_names_of_head
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.encoder_block import GELUS
from vit_jax.models.from_tensors import TOKEN_MIXING, model_from_tensors
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.vit import Numerics, VisionTransformer
from vit_jax.weights import evaluation_protocols, normalization
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts import originals, released
from vit_jax.weights.linen_tensors import Selection, defaults, select, translate, with_family
from vit_jax.weights.metadata import HALF, ModelMetadata
from vit_jax.weights.model_files import open_model
from vit_jax.weights.position_tables import grid_of_patches, trained_grid, with_prefix_positions


@dataclasses.dataclass(frozen=True, eq=False)
class SourceWeights:
  """The tensors of a source, not read yet, and the model that they belong to."""

  name: str  # of the file, for messages
  layout: str  # and the container, for the report
  tensors: dict[str, Tensor]  # by linen name
  ignored: tuple[str, ...]  # names in the file that are not parameters of the model
  notes: tuple[str, ...]  # how tensors were changed
  model: build.Model
  grid: tuple[int, int] | None  # (rows, columns) of the patches; None for a ResNet
  image_size: tuple[int, int]  # (height, width) in pixels
  metadata: ModelMetadata


def open_weights(
  source: epath.PathLike,
  image_size: tuple[int, int] | None = None,
  num_heads: int | None = None,
  gelu: str | None = None,
  mean: tuple[float, ...] | None = None,
  std: tuple[float, ...] | None = None,
  rotary: str | None = None,
) -> SourceWeights:
  """Opens a source: detects its layout and reads the architecture off its tensors.

  Args:
    source, num_heads, gelu, mean, std, rotary: as in `vit_jax.load`.
    image_size: (height, width) to load the model for; determines the grid of position embeddings
      whose number is not a square.

  Raises:
    UserError: for a source that is missing, damaged, or not a supported model.
  """
  if gelu not in (None, *GELUS):
    raise UserError(f'gelu is {gelu!r}; choose one of {", ".join(GELUS)}.')
  _check_normalization(mean, std)
  file, metadata = open_model(source)
  selection, metadata = with_family(select(originals.with_timm_names(file)), metadata, rotary)
  of_layout = defaults(selection)
  selection, metadata = translate(selection, metadata, num_heads, image_size)
  metadata, assumed = _assume(selection, of_layout, metadata, gelu, mean)
  name, tensors, layout = selection.name, selection.tensors, selection.layout
  numerics = Numerics(
    gelu=gelu or metadata.gelu or 'tanh', layer_norm_epsilon=metadata.layer_norm_epsilon
  )
  model = model_from_tensors(
    tensors, name, numerics, metadata.pool, metadata.rotary, metadata.final_norm
  )
  _check_config(metadata, model, name)
  pixels = mean or metadata.mean or HALF, std or metadata.std or HALF
  model, tensors, normalized = _with_normalization(model, tensors, *pixels, name)
  metadata, of_classes = _with_labels(selection, metadata, model)
  tensors, of_positions = _with_positions(selection, tensors, metadata, model, image_size)
  size, grid, of_size = _trained_size(tensors, model, metadata.image_size, image_size, name)
  license = (metadata.license,) if metadata.license else ()
  notes = (*normalized, *selection.notes, *assumed, *of_classes, *of_positions, *license, *of_size)
  description = 'Orbax' if file.container == 'Orbax' else f'{layout} layout, {file.container}'
  return SourceWeights(
    name, description, tensors, selection.ignored, notes, model, grid, size or (224, 224), metadata
  )


def _check_config(metadata: ModelMetadata, model: build.Model, source: str) -> None:
  """Raises `UserError` if the config beside the tensors describes other ones."""
  for name, size in metadata.sizes.items():
    if getattr(model, name, size) != size:
      raise UserError(
        f'{source} has tensors of {name} {getattr(model, name)}, but its config.json says {size}; '
        'put the config.json of these tensors beside them.'
      )
  pool = getattr(model, 'pool', None)
  if pool and metadata.pool and metadata.pool != pool:
    raise UserError(
      f'{source} pools by {_POOLING[metadata.pool]} according to its config.json, but its tensors '
      f'are those of {_POOLING[pool]}; vit_jax does not support that.'
    )
  metadata.check_num_labels(model.num_classes, source)


def _with_normalization(
  model: build.Model,
  tensors: dict[str, Tensor],
  mean: tuple[float, ...],
  std: tuple[float, ...],
  source: str,
) -> tuple[build.Model, dict[str, Tensor], tuple[str, ...]]:
  """The model, its tensors and a note, with the normalization of pixels in one of them."""
  if {*mean, *std} == {0.5}:
    return model, tensors, ()
  if isinstance(model, VisionTransformer):
    channels = tensors[build.input_kernel(tensors)].shape[2]
    model = normalization.with_normalization(model, mean, std, channels, source)
  else:
    tensors = normalization.fold(tensors, mean, std, source)
  return model, tensors, (f'the normalization of pixels has mean {mean}',)


def _with_labels(
  selection: Selection, metadata: ModelMetadata, model: build.Model
) -> tuple[ModelMetadata, tuple[str, ...]]:
  """The metadata with ImageNet's classes, where the head has their number; also notes."""
  notes, names = (), None if metadata.is_own else class_names_of_head(model.num_classes)
  if metadata.labels is None and names is not None:
    metadata = dataclasses.replace(metadata, labels=list(names))
    if not selection.is_released:
      notes = ("the file names no classes: ImageNet's, by their number; pass labels= for others",)
  if selection.prefix.endswith(released.IMAGE_TOWER) and selection.ignored:
    metadata, note = _describe_image_tower(metadata, model.num_classes)
    notes += (note,)
  return metadata, notes


def _with_positions(
  selection: Selection,
  tensors: dict[str, Tensor],
  metadata: ModelMetadata,
  model: build.Model,
  image_size: tuple[int, int] | None,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """The tensors with positions of the tokens before the patches, where a layout has none."""
  if not isinstance(model, VisionTransformer):
    return tensors, ()
  has_positions = metadata.has_positions and model.rotary is None
  if model.position_embedding == 'none' and has_positions:
    raise UserError(
      f'{selection.name} has no position embeddings, and no config.json of vit_jax that says '
      'position_embedding=none.'
    )
  if selection.layout not in ('timm', 'big_vision'):
    return tensors, ()
  known_size = (metadata.image_size or image_size) if selection.layout == 'timm' else None
  return with_prefix_positions(tensors, model, known_size)


def _trained_size(
  tensors: Mapping[str, Tensor],
  model: build.Model,
  stored_size: tuple[int, int] | None,
  requested_size: tuple[int, int] | None,
  source: str,
) -> tuple[tuple[int, int] | None, tuple[int, int] | None, tuple[str, ...]]:
  """The (image size, grid of patches, notes) of training; None for what is unknown."""
  sizes = stored_size, requested_size
  if isinstance(model, MlpMixer):
    beginning, patches = f'{source} has token-mixing MLPs', tensors[TOKEN_MIXING].shape[0]
    return *grid_of_patches(patches, model, *sizes, beginning), ()
  if not isinstance(model, VisionTransformer):
    return stored_size or requested_size, None, ()
  size, grid = trained_grid(tensors, model, *sizes, source)
  if size is None:
    return size, grid, ()
  tiled = size[0] - size[0] % model.patch_size, size[1] - size[1] % model.patch_size
  if tiled == size or not all(tiled):
    return size, grid, ()
  # As SigLIP So400m/14 of 384 pixels.
  return tiled, grid, (f'patches do not tile its images of {size}, so it takes those of {tiled}',)


def _describe_image_tower(metadata: ModelMetadata, num_outputs: int) -> tuple[ModelMetadata, str]:
  """Completes the metadata of the image tower of LiT or SigLIP; also returns a note.

  Their code squashes images, and the outputs are not classes.
  """
  note = 'the image tower was taken; the text tower is left out, which vit_jax does not support'
  rule = metadata.preprocessing or evaluation_protocols.ORIGINAL
  metadata = dataclasses.replace(metadata, preprocessing=rule)
  if not num_outputs:
    return metadata, note
  labels = metadata.labels or [f'embedding {i}' for i in range(num_outputs)]
  note += '; the head gives the embedding before its L2 normalization, not classes'
  return dataclasses.replace(metadata, labels=labels), note


def _check_normalization(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
  """Raises `UserError` for a mean or std that pixels cannot have."""
  for name, values, is_valid in (
    ('mean', mean, math.isfinite),
    ('std', std, lambda x: 0 < x < math.inf),
  ):
    try:
      valid = values is None or (len(values) > 0 and all(map(is_valid, values)))
    except TypeError:
      valid = False
    if not valid:
      raise UserError(
        f'{name} is {values!r}; it must be one finite number for each channel, of pixels in '
        f'[0, 1]{", positive" if name == "std" else ""}.'
      )


def _assume(
  selection: Selection,
  defaults: ModelMetadata,
  metadata: ModelMetadata,
  gelu: str | None,
  mean: tuple[float, ...] | None,
) -> tuple[ModelMetadata, list[str]]:
  """Completes what a file does not state by defaults; also returns notes on what is assumed."""
  layout, has_class_token = selection.layout, 'cls' in selection.tensors
  completed = dataclasses.replace(metadata, gelu=metadata.gelu or defaults.gelu or 'exact')
  if defaults.preprocessing is None:  # the released layout
    return completed, []
  notes = []
  if metadata.gelu is None and gelu is None and layout != 'timm BiT':
    pooling, pool = '', ''
    if layout == 'timm' and has_class_token:
      pooling, pool = ' and no pooling', ', class token'
    notes.append(
      f'the file states no activation{pooling}: {completed.gelu} GELU{pool}; pass gelu= for '
      'another activation'
    )
  if metadata.preprocessing is None:
    pixels = defaults.mean or HALF
    scaling = 'scaled to [-1, 1]' if {*pixels} == {0.5} else f'normalized by the mean {pixels}'
    scaling = '' if mean or metadata.mean else f'pixels {scaling}, '
    crop = defaults.preprocessing.crop_fraction
    rule = 'squashed' if defaults.preprocessing.resize == 'squash' else f'central {100 * crop:g} %'
    notes.append(
      f'the file states no preprocessing: {scaling}images {rule}; pass mean=, std= for another'
    )
    completed = dataclasses.replace(
      completed,
      preprocessing=defaults.preprocessing,
      mean=metadata.mean or defaults.mean,
      std=metadata.std or defaults.std,
    )
  if layout == 'Hugging Face' and metadata.image_size is None:  # no config.json
    completed = dataclasses.replace(completed, layer_norm_epsilon=defaults.layer_norm_epsilon)
  return completed, notes


_POOLING = {
  'token': 'the class token',
  'gap': 'average',
  'map': 'attention (map)',
  'token_gap': 'the class token and average',
  'distilled': 'the class and distillation tokens',
}
