"""Loads a model from any source, ready to use: `vit_jax.load(…)`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from vit_jax.classifier import Classifier
from vit_jax.config import Preprocessing, height_width
from vit_jax.errors import UserError, first_line
from vit_jax.models import build
from vit_jax.weights import adapt
from vit_jax.weights.load import open_weights
from vit_jax.weights.metadata import read_labels


def load(
  source: epath.PathLike,
  image_size: int | Sequence[int] | None = None,
  num_classes: int | None = None,
  *,
  labels: Sequence[str] | epath.PathLike | None = None,
  mean: float | Sequence[float] | None = None,
  std: float | Sequence[float] | None = None,
  dtype: Any = None,
  device: Any = None,
  shardings: Callable[[Any], Any] | None = None,
  keep_pre_logits: bool = False,
  position_resize: str = 'auto',
  num_heads: int | None = None,
  gelu: str | None = None,
  rotary: str | None = None,
) -> Classifier:
  """Loads a model; its tensors determine depth, width, heads, patch size and head.

  Args:
    source: a published name ('augreg/…'), an .npz file in any released layout, a .safetensors
      file or state dict of timm or Transformers, a folder of either, or the workdir, the model/
      folder or an Orbax checkpoint of a run.
    image_size: pixels, int or (height, width), to which position embeddings are resized; None:
      the size that the weights were trained at.
    num_classes: replaces the head (and `pre_logits`) by a zero-initialized one of that size;
      0 removes the head, so that the model returns features.
    labels: a name for each class, or a text file with one a line; None: those of the source.
    mean, std: of pixels in [0, 1], for each channel, with which the weights were trained; None:
      as the source states, else 0.5.
    dtype: of the matrix products, 'float32' or 'bfloat16'; None: as the source states, else
      float32. Parameters and outputs stay float32.
    device: where the parameters are, a `jax.Device` or a platform such as 'cpu'.
    shardings: from the abstract parameter tree to a tree of shardings, for a model that is
      sharded over devices; each device gets only its shard.
    keep_pre_logits: keep that layer under a new head.
    position_resize: 'auto': as the family of the source does; 'corners', as in the released code;
      'half_pixel', 'bicubic', 'bicubic_offset', 'bicubic_antialias' or 'bilinear_antialias', as in
      PyTorch (`resize_position_embedding`).
    num_heads: only for PyTorch files of an unpublished width that do not store it.
    gelu: 'tanh', 'exact' or 'quick', for files that do not store it.
    rotary: 'none', 'dinov3', 'eva02' or 'perception_encoder', for state dicts of timm and of the
      authors, which do not store it.

  Raises:
    UserError: for a source that is missing, damaged or not a supported model, whose patches do
      not tile `image_size`, or which has another number of classes than `labels`.
  """
  if num_heads is not None and not (type(num_heads) is int and 0 < num_heads < 2**16):
    raise UserError(f'num_heads is {num_heads!r}; it must be positive.')
  size = None if image_size is None else height_width(image_size)
  weights = open_weights(
    source, size, num_heads, gelu, _numbers('mean', mean), _numbers('std', std), rotary
  )
  heads = getattr(weights.model, 'num_heads', 0)
  if num_heads is not None and heads not in (0, num_heads):
    raise UserError(f'{weights.name} has {heads} heads, but num_heads is {num_heads}.')
  metadata = weights.metadata
  model = build.with_dtype(weights.model, _dtype_name(dtype, metadata.dtype))
  if num_classes is not None:
    model = adapt.with_new_head(model, num_classes, keep_pre_logits)
  names = metadata.labels if num_classes is None and model.num_classes else None
  if labels is not None:
    names = read_labels(labels, model.num_classes)
  size = size or weights.image_size
  channels = weights.tensors[build.input_kernel(weights.tensors)].shape[2]
  new_head, image_shape = num_classes is not None, (*size, channels)
  tensors, report = adapt.adapt_weights(weights, model, image_shape, new_head, position_resize)
  sharding_tree = shardings and shardings(build.abstract_params(model, size, channels))
  params = adapt.read_params(tensors, weights.name, sharding_tree, _find_device(device))
  preprocessing = metadata.preprocessing or Preprocessing()
  return Classifier(
    model,
    params,
    size,
    names,
    preprocessing,
    metadata.loss,
    metadata.position_resize or 'corners',
    metadata.license,
    report,
  )


def _numbers(name: str, value: float | Sequence[float] | None) -> tuple[float, ...] | None:
  """One number, or one for each channel, as a tuple."""
  try:
    return None if value is None else tuple(map(float, np.ravel(value)))
  except (TypeError, ValueError):
    raise UserError(f'{name} is {value!r}; it takes a number, or one for each channel.') from None


def _dtype_name(dtype: Any, recorded: str | None) -> str:
  """'float32' or 'bfloat16', from a name or a dtype."""
  name = recorded or 'float32' if dtype is None else getattr(dtype, '__name__', str(dtype))
  if name not in build.DTYPES:
    raise UserError(f'dtype is {name!r}; choose one of {", ".join(build.DTYPES)}.')
  return name


def _find_device(device: Any) -> Any:
  """A `jax.Device`, from it or from the name of a platform; None: the default."""
  if not isinstance(device, str):
    return device
  try:
    return jax.local_devices(backend=device)[0]
  except RuntimeError as error:
    raise UserError(f'There is no device {device!r}: {first_line(error)}.') from None
