"""From published or saved weights to the initial parameters of a model."""

import dataclasses
from typing import Any

from etils import epath

from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.weights import adapt
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.load import SourceWeights, open_weights


def load_params(
  source: epath.PathLike,
  model: build.Model,
  image_shape: tuple[int, int, int],
  position_resize: str = 'corners',
  shardings: Any = None,
) -> tuple[Any, adapt.LoadReport]:
  """Loads the weights from which to train `model`, with a new head (Section 3.2).

  Args:
    source: as in `vit_jax.load`.
    model: must have the architecture of the source, except for the head; a `pre_logits` layer is
      loaded if the model has one.
    image_shape: (H, W, C); position embeddings are resized to it, and the kernel of the first
      layer is adapted to C channels.
    position_resize: 'corners', as in the released code, or 'half_pixel'.
    shardings: a tree of shardings; each device gets only its shard. None: the default device.

  Returns:
    The parameter tree (float32), and a report of what happened to each tensor.

  Raises:
    UserError: for a source that is missing or damaged, or has another architecture.
  """
  weights = open_weights(source, image_shape[:2], getattr(model, 'num_heads', None))
  _check_architecture(weights, model)
  tensors, report = adapt_weights(
    weights, model, image_shape, new_head=True, position_resize=position_resize
  )
  old, new = (getattr(each, 'numerics', None) for each in (weights.model, model))
  for name, field in (('approximate_gelu', 'gelu'), ('layer_norm_epsilon',) * 2):
    if getattr(old, name, None) != getattr(new, name, None):
      note = f'model.{field} differs from the file, which has {name}={getattr(old, name)}'
      report = dataclasses.replace(report, notes=(*report.notes, note))
  return adapt.read_params(tensors, weights.name, shardings), report


def _check_architecture(weights: SourceWeights, model: build.Model) -> None:
  """Raises `UserError` naming the fields in which the architectures differ."""
  if type(weights.model) is not type(model):
    raise UserError(
      f'{weights.name} is a {type(weights.model).__name__}, but model.variant is a '
      f'{type(model).__name__}; choose another variant.'
    )
  old, new = build.architecture(weights.model), build.architecture(model)
  ignored = {'num_classes'} if new.get('pre_logits') else {'num_classes', 'pre_logits'}
  differing = [
    f'{name} is {old[name]} in the file, {new[name]} in the config'
    for name in old
    if old[name] != new[name] and name not in ignored
  ]
  if differing:
    raise UserError(f'{weights.name} has another architecture: {"; ".join(differing)}.')


def adapt_weights(
  weights: SourceWeights,
  model: build.Model,
  image_shape: tuple[int, int, int],
  *,
  new_head: bool,
  position_resize: str,
) -> tuple[dict[str, Tensor], adapt.LoadReport]:
  """The tensors of a source as `model` needs them for (H, W, C) images, not read yet.

  Raises:
    UserError: as `adapt.adapt_params`, or for an image size that the patches do not tile.
  """
  image_size, channels = image_shape[:2], image_shape[2]
  build.check_image_size(image_size, model, 'image_size')
  return adapt.adapt_params(
    weights.tensors,
    build.abstract_params(model, image_size, channels),
    old_grid=weights.grid,
    new_grid=build.patch_grid(image_size, model),
    new_head=new_head,
    resize=position_resize,
    source=weights.name,
    layout=weights.layout,
    ignored=weights.ignored,
    notes=weights.notes,
  )
