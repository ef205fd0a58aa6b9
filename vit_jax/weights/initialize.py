"""From a checkpoint to the initial parameters of a model that is to be trained."""

import dataclasses
from typing import Any

from etils import epath

from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.weights import adapt
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.load import Checkpoint, open_checkpoint


def load_params(
  source: epath.PathLike,
  model: build.Model,
  image_shape: tuple[int, int, int],
  position_resize: str = 'corners',
  shardings: Any = None,
) -> tuple[Any, adapt.Report]:
  """Loads the weights to start training `model` from, with a new head (Section 3.2).

  Args:
    source: as `vit_jax.load` takes it.
    model: must have the same architecture, except for the head; its `pre_logits` layer is kept
      when it has one.
    image_shape: (H, W, C); position embeddings are resized to it, and the weights of the first
      layer are spread over C channels.
    position_resize: 'corners', as the released code resizes, or 'half_pixel'.
    shardings: a tree of shardings; no device gets more than its shard. None: the default device.

  Returns:
    The parameter tree (float32), and what happened to each tensor.

  Raises:
    UserError: for a source that is missing or damaged, or has another architecture.
  """
  checkpoint = open_checkpoint(source, image_shape[:2], getattr(model, 'num_heads', None))
  _check_architecture(checkpoint, model)
  tensors, report = adapt_checkpoint(
    checkpoint, model, image_shape, new_head=True, position_resize=position_resize
  )
  old, new = (getattr(each, 'numerics', None) for each in (checkpoint.model, model))
  for name, field in (('approximate_gelu', 'gelu'), ('layer_norm_epsilon',) * 2):
    if getattr(old, name, None) != getattr(new, name, None):
      note = f'model.{field} differs from the file, which has {name}={getattr(old, name)}'
      report = dataclasses.replace(report, notes=(*report.notes, note))
  return adapt.read_params(tensors, checkpoint.name, shardings), report


def _check_architecture(checkpoint: Checkpoint, model: build.Model) -> None:
  """Raises `UserError` naming the fields in which the architectures differ."""
  if type(checkpoint.model) is not type(model):
    raise UserError(
      f'{checkpoint.name} is a {type(checkpoint.model).__name__}, but model.variant means a '
      f'{type(model).__name__}.'
    )
  old, new = build.architecture(checkpoint.model), build.architecture(model)
  ignored = {'num_classes'} if new.get('pre_logits') else {'num_classes', 'pre_logits'}
  differing = [
    f'{name} is {old[name]} in the file, {new[name]} in the config'
    for name in old
    if old[name] != new[name] and name not in ignored
  ]
  if differing:
    raise UserError(f'{checkpoint.name} has another architecture: {"; ".join(differing)}.')


def adapt_checkpoint(
  checkpoint: Checkpoint,
  model: build.Model,
  image_shape: tuple[int, int, int],
  *,
  new_head: bool,
  position_resize: str,
) -> tuple[dict[str, Tensor], adapt.Report]:
  """The tensors of a checkpoint as `model` needs them for (H, W, C) images, still unread."""
  image_size, channels = image_shape[:2], image_shape[2]
  build.check_image_size(image_size, model, 'image_size')
  return adapt.adapt_params(
    checkpoint.tensors,
    build.abstract_params(model, image_size, channels),
    old_grid=checkpoint.grid,
    new_grid=build.patch_grid(image_size, model),
    new_head=new_head,
    resize=position_resize,
    source=checkpoint.name,
    layout=checkpoint.layout,
    ignored=checkpoint.ignored,
    notes=checkpoint.notes,
  )
