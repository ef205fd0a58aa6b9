"""The tensors of one model of a file: their layout, what their family states, linen names."""

import dataclasses
import types

from vit_jax.errors import UserError
from vit_jax.models.masked_patches import encoder_params
from vit_jax.weights.formats.lazy_tensor import Tensor, TensorFile
from vit_jax.weights.layouts import (
  aimv2,
  assumptions,
  families,
  hugging_face,
  released,
  timm,
  timm_config,
  timm_vit,
)
from vit_jax.weights.metadata import ModelMetadata


@dataclasses.dataclass(frozen=True)
class Selection:
  """The tensors of one model of a file.

  Attributes:
    name: of the file, for messages.
    translator: the module of the layout.
    layout: its name.
    prefix: that the names of the tensors have in the file.
    tensors: by their names in the layout, without the prefix; once translated, by linen names.
    ignored: names in the file of those that the model does not use.
    notes: on what was chosen and changed.
  """

  name: str
  translator: types.ModuleType
  layout: str
  prefix: str
  tensors: dict[str, Tensor]
  ignored: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()

  @property
  def is_released(self) -> bool:
    """Whether the layout is that of the released JAX weights, or of big_vision."""
    return self.translator is released


def select(file: TensorFile) -> Selection:
  """The tensors of the best model of a file.

  Raises:
    UserError: for a file without any model that is supported.
  """
  translator, layout, prefixes = _detect_layout(file)
  prefix, notes = prefixes[0], ()
  if prefixes[1:]:
    notes = (f'the tensors {prefix}* were taken, not {prefixes[1]}*',)
  inside = {n.removeprefix(prefix): x for n, x in file.tensors.items() if n.startswith(prefix)}
  ignored = tuple(n for n in file.tensors if not n.startswith(prefix))
  return Selection(str(file.path), translator, layout, prefix, inside, ignored, notes)


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


def with_family(
  selection: Selection, metadata: ModelMetadata, rotary: str | None
) -> tuple[Selection, ModelMetadata]:
  """Completes the metadata by what the family of the tensors states; names those it does not use.

  Raises:
    UserError: for a family that is not supported, and for another one than config.json describes.
  """
  name, layout, inside = selection.name, selection.layout, selection.tensors
  notes, unused = (*metadata.notes, *selection.notes), ()
  if layout == 'Hugging Face':
    metadata, unused, of_family = hugging_face.complete(metadata, inside, name)
    inside, notes = {n: x for n, x in inside.items() if n not in unused}, notes + of_family
  if not selection.is_released and (family := families.describe(inside)):
    raise UserError(f'{name} holds {family}, which vit_jax does not support.')
  if layout == 'timm':
    metadata = assumptions.complete(metadata, inside, rotary, name)
    unused = timm_vit.unused(inside)
  notes += tuple(note for note in metadata.notes if note not in notes)
  changed = dict(tensors=inside, ignored=selection.ignored + unused, notes=notes)
  return dataclasses.replace(selection, **changed), metadata


def defaults(selection: Selection) -> ModelMetadata:
  """What is assumed of a file of that layout, before its tensors are translated."""
  if selection.is_released:
    return ModelMetadata(gelu='tanh')  # Google's models, whose pixels are in [-1, 1]
  if selection.layout == 'Hugging Face':
    return hugging_face.defaults(selection.tensors)
  return ModelMetadata(preprocessing=timm_config.DEFAULT_PREPROCESSING)


def translate(
  selection: Selection,
  metadata: ModelMetadata,
  num_heads: int | None,
  image_size: tuple[int, int] | None,
) -> tuple[Selection, ModelMetadata]:
  """The tensors by linen names, and the metadata for the image size.

  Args:
    selection, metadata: of `with_family`.
    num_heads, image_size: as in `open_weights`; a stated number of heads takes precedence.

  Raises:
    UserError: for tensors that no supported model has.
  """
  is_stated = metadata.is_own or metadata.image_size is not None
  heads = (None if is_stated else num_heads) or metadata.num_heads or num_heads
  tensors, changes = selection.translator.to_linen(selection.tensors, heads, selection.name)
  if selection.layout == 'Hugging Face':
    tensors, metadata, of_positions = aimv2.with_sincos_positions(tensors, metadata, image_size)
    changes += of_positions
  if metadata.pool_num_heads and 'MAPHead_0/probe' in tensors and selection.layout == 'timm':
    tensors = timm_vit.with_pool_heads(tensors, metadata.pool_num_heads, selection.name)
  encoder = encoder_params(tensors)  # all of them, except of a masked-patch checkpoint
  ignored = (*selection.ignored, *(name for name in tensors if name not in encoder))
  notes = (*selection.notes, *changes)
  return dataclasses.replace(selection, tensors=encoder, ignored=ignored, notes=notes), metadata
