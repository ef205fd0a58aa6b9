"""From whatever a user names to a model and its tensors, which are not read yet."""

import dataclasses
import math
import types
from collections.abc import Mapping

from etils import epath

from vit_jax.data.imagenet import class_names_of_head
from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.models.encoder_block import GELUS
from vit_jax.models.from_tensors import TOKEN_MIXING, model_from_tensors
from vit_jax.models.masked_patches import encoder_params
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.vit import Numerics, VisionTransformer
from vit_jax.weights import evaluation_protocols, normalization
from vit_jax.weights.formats.lazy_tensor import Tensor, TensorFile
from vit_jax.weights.layouts import (
  aimv2,
  assumptions,
  families,
  hugging_face,
  originals,
  released,
  timm,
  timm_config,
  timm_vit,
)
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
  file, name = originals.with_timm_names(file), str(file.path)
  translator, layout, prefixes = _detect_layout(file)
  prefix, notes = prefixes[0], metadata.notes
  if prefixes[1:]:
    notes += (f'the tensors {prefix}* were taken, not {prefixes[1]}*',)
  inside = {n.removeprefix(prefix): x for n, x in file.tensors.items() if n.startswith(prefix)}
  ignored = tuple(n for n in file.tensors if not n.startswith(prefix))
  if translator is hugging_face:
    metadata, unused, of_family = hugging_face.complete(metadata, inside, name)
    inside = {n: x for n, x in inside.items() if n not in unused}
    notes, ignored = notes + of_family, ignored + unused
  if translator is not released and (family := families.describe(inside)):
    raise UserError(f'{name} holds {family}, which vit_jax does not support.')
  if layout == 'timm':
    metadata = assumptions.complete(metadata, inside, rotary, name)
    ignored += timm_vit.unused(inside)
  notes += tuple(note for note in metadata.notes if note not in notes)
  heads = num_heads if not metadata.is_own and metadata.image_size is None else None
  heads = heads or metadata.num_heads or num_heads
  tensors, changes = translator.to_linen(inside, heads, name)
  if translator is hugging_face:
    tensors, metadata, change = aimv2.with_sincos_positions(tensors, metadata, image_size)
    notes += change
  if metadata.pool_num_heads and 'MAPHead_0/probe' in tensors and translator is timm:
    tensors = timm_vit.with_pool_heads(tensors, metadata.pool_num_heads, name)
  encoder_tensors = encoder_params(tensors)  # all of them, except of a masked-patch checkpoint
  ignored += tuple(name for name in tensors if name not in encoder_tensors)
  tensors = encoder_tensors
  if translator is released:
    defaults = ModelMetadata(gelu='tanh')  # Google's models, whose pixels are in [-1, 1]
  elif translator is hugging_face:
    defaults = hugging_face.defaults(inside)
  else:
    defaults = ModelMetadata(preprocessing=timm_config.DEFAULT_PREPROCESSING)
  metadata, assumed = _assume(layout, defaults, metadata, gelu, mean, 'cls' in tensors)
  notes = (*notes, *assumed, *changes)
  mean, std = mean or metadata.mean or HALF, std or metadata.std or HALF
  numerics = Numerics(
    gelu=gelu or metadata.gelu or 'tanh', layer_norm_epsilon=metadata.layer_norm_epsilon
  )
  model = model_from_tensors(
    tensors, name, numerics, metadata.pool, metadata.rotary, metadata.final_norm
  )
  _check_config(metadata, model, name)
  if {*mean, *std} != {0.5}:
    if isinstance(model, VisionTransformer):
      channels = tensors[build.input_kernel(tensors)].shape[2]
      model = normalization.with_normalization(model, mean, std, channels, name)
    else:
      tensors = normalization.fold(tensors, mean, std, name)
    notes = (f'the normalization of pixels has mean {mean}', *notes)
  pool = getattr(model, 'pool', None)
  if pool and metadata.pool and metadata.pool != pool:
    raise UserError(
      f'{name} pools by {_POOLING[metadata.pool]} according to its config.json, but its tensors '
      f'are those of {_POOLING[pool]}; vit_jax does not support that.'
    )
  metadata.check_num_labels(model.num_classes, name)
  names = None if metadata.is_own else class_names_of_head(model.num_classes)
  if metadata.labels is None and names is not None:
    metadata = dataclasses.replace(metadata, labels=list(names))
    if translator is not released:
      notes += ("the file names no classes: ImageNet's, by their number; pass labels= for others",)
  if prefix.endswith(released.IMAGE_TOWER) and ignored:
    metadata, note = _describe_image_tower(metadata, model.num_classes)
    notes = (*notes, note)
  if isinstance(model, VisionTransformer):
    has_positions = metadata.has_positions and model.rotary is None
    if model.position_embedding == 'none' and has_positions:
      raise UserError(
        f'{name} has no position embeddings, and no config.json of vit_jax that says '
        'position_embedding=none.'
      )
    known_size = (metadata.image_size or image_size) if layout == 'timm' else None
    if layout in ('timm', 'big_vision'):
      tensors, change = with_prefix_positions(tensors, model, known_size)
      notes += change
  if metadata.license:
    notes += (metadata.license,)
  size, grid = _trained_size(tensors, model, metadata.image_size, image_size, name)
  description = 'Orbax' if file.container == 'Orbax' else f'{layout} layout, {file.container}'
  return SourceWeights(
    name, description, tensors, ignored, notes, model, grid, size or (224, 224), metadata
  )


def _check_config(metadata: ModelMetadata, model: build.Model, source: str) -> None:
  """Raises `UserError` if the config beside the tensors has other sizes than they have."""
  for name, size in metadata.sizes.items():
    if getattr(model, name, size) != size:
      raise UserError(
        f'{source} has tensors of {name} {getattr(model, name)}, but its config.json says {size}; '
        'put the config.json of these tensors beside them.'
      )


def _trained_size(
  tensors: Mapping[str, Tensor],
  model: build.Model,
  stored_size: tuple[int, int] | None,
  requested_size: tuple[int, int] | None,
  source: str,
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
  """The (image size, grid of patches) that a model was trained at; None for what is unknown."""
  sizes = stored_size, requested_size
  if isinstance(model, VisionTransformer):
    return trained_grid(tensors, model, *sizes, source)
  if isinstance(model, MlpMixer):
    beginning = f'{source} has token-mixing MLPs'
    return grid_of_patches(tensors[TOKEN_MIXING].shape[0], model, *sizes, beginning)
  return stored_size or requested_size, None


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
  layout: str,
  defaults: ModelMetadata,
  metadata: ModelMetadata,
  gelu: str | None,
  mean: tuple[float, ...] | None,
  has_class_token: bool,
) -> tuple[ModelMetadata, list[str]]:
  """Completes what a file does not state; also returns notes on what is assumed."""
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


def _detect_layout(file: TensorFile) -> tuple[types.ModuleType, str, list[str]]:
  """(module of the layout, name of the layout, prefixes of all names, best first)."""
  for module in (released, hugging_face, timm):
    if match := module.detect(file.tensors):
      return module, *match
  if family := families.describe(file.tensors):
    raise UserError(f'{file.path} holds {family}, which vit_jax does not support.')
  names = ', '.join(sorted(file.tensors)[:3])
  raise UserError(
    f'{file.path} is not a Vision Transformer, MLP-Mixer or BiT in a supported layout'
    + (f'; its tensors are called {names}, …' if names else ': it has no tensors.')
  )
