"""Loads weights into a model with another image size, head or channels (Section 3.2)."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from vit_jax.config import Preprocessing, choices
from vit_jax.config.schema import InitHead, PositionResize
from vit_jax.errors import UserError
from vit_jax.hardware import num_cores
from vit_jax.models import build
from vit_jax.models.encoder_block import QKV_BIASES
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.vit import VisionTransformer
from vit_jax.text import plural, printable
from vit_jax.weights import layer_scale, normalization
from vit_jax.weights.dropped_tokens import can_drop, without_tokens
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.init_head import keeps_head
from vit_jax.weights.layouts.released import flatten, unflatten
from vit_jax.weights.load import SourceWeights, open_weights
from vit_jax.weights.metadata import ModelMetadata
from vit_jax.weights.position_tables import is_position_table, resize_table
from vit_jax.weights.qkv_biases import missing_biases

_NORMALIZATION = ('pixel_mean', 'pixel_std')


@dataclasses.dataclass(frozen=True)
class LoadReport:
  """What happened to each tensor of a file; `str()` of it is a table."""

  source: str  # name of the file
  layout: str
  loaded: tuple[str, ...]  # names of the tensors that were loaded unchanged
  resized: tuple[str, ...]  # lines of text, one for each tensor, as the next two
  reinitialized: tuple[str, ...]
  ignored: tuple[str, ...]
  notes: tuple[str, ...]  # other changes
  license: str | None = None  # terms of the weights that their owner wants to be named
  position_resize: str | None = None  # how the family of the file resizes position embeddings

  @property
  def is_plain(self) -> bool:
    """Whether all tensors of the file were loaded unchanged."""
    return not (self.resized or self.reinitialized or self.ignored or self.notes)

  def __str__(self) -> str:
    lines = [f'{self.source} ({self.layout})', f'  {"loaded":<15}{len(self.loaded):>5}']
    resized, new, ignored = self.resized, self.reinitialized, self.ignored
    for title, tensors in (('resized', resized), ('re-initialized', new), ('ignored', ignored)):
      text = '; '.join(tensors[:4]) + (f'; and {len(tensors) - 4} more' if tensors[4:] else '')
      lines.append(f'  {title:<15}{len(tensors):>5}  {text}'.rstrip())
    return '\n'.join(map(printable, lines + [f'  note: {note}' for note in self.notes]))


def load_params(
  source: epath.PathLike,
  model: build.Model,
  image_shape: tuple[int, int, int],
  position_resize: str = 'auto',
  shardings: Any = None,
  preprocessing: Preprocessing | None = None,
  init_head: InitHead = 'new',
  class_names: Sequence[str] = (),
) -> tuple[Any, LoadReport]:
  """Loads the weights from which to train `model`, by default with a new head (Section 3.2).

  Args:
    source: as in `vit_jax.load`.
    model: must have the architecture of the source, except for the head; a `pre_logits` layer is
      loaded if the model has one. Tokens that it lacks are dropped (`can_drop`).
    image_shape: (H, W, C); position embeddings are resized to it, and the kernel of the first
      layer is adapted to C channels.
    position_resize: as in `vit_jax.load`.
    shardings: a tree of shardings; each device gets only its shard. None: the default device.
    preprocessing: of the run, for a note if the source has another one; None: no note.
    init_head, class_names: as in `keeps_head`.

  Returns:
    The parameter tree (float32), and a report of what happened to each tensor, and of where the
    model and its preprocessing differ from those of the source.

  Raises:
    UserError: for a source that is missing or damaged, or has another architecture, or a head that
      cannot be kept.
  """
  head = init_head, class_names
  weights, tensors, report = _open_adapted(source, model, image_shape, position_resize, *head)
  if differences := _differences(weights, model, preprocessing):
    note = f'the source has {", ".join(differences)}'
    report = dataclasses.replace(report, notes=(*report.notes, note))
  return read_params(tensors, weights.name, shardings), report


def check_source(
  source: epath.PathLike,
  model: build.Model,
  image_shape: tuple[int, int, int],
  position_resize: str = 'auto',
  init_head: InitHead = 'new',
  class_names: Sequence[str] = (),
) -> None:
  """Raises the `UserError` of `load_params` without reading the tensors."""
  _open_adapted(source, model, image_shape, position_resize, init_head, class_names)


def _open_adapted(
  source: epath.PathLike,
  model: build.Model,
  image_shape: tuple[int, int, int],
  position_resize: str,
  init_head: InitHead,
  class_names: Sequence[str],
) -> tuple[SourceWeights, dict[str, Tensor], LoadReport]:
  weights = open_weights(source, image_shape[:2], getattr(model, 'num_heads', 0) or None)
  _check_architecture(weights, model)
  new_head = not keeps_head(weights, model, init_head, class_names)
  return weights, *adapt_weights(weights, model, image_shape, new_head, position_resize)


def _differences(
  weights: SourceWeights, model: build.Model, preprocessing: Preprocessing | None
) -> list[str]:
  """The config fields of a source that a run has otherwise: 'model.gelu=exact', …"""
  old, new = (getattr(each, 'numerics', build.RELEASED_NUMERICS) for each in (weights.model, model))
  differences = []
  if old.gelu != new.gelu:
    differences.append(f'model.gelu={old.gelu}')
  if old.layer_norm_epsilon != new.layer_norm_epsilon:
    differences.append(f'model.layer_norm_epsilon={old.layer_norm_epsilon:g}')
  own = weights.metadata.preprocessing
  if own is None or preprocessing is None:
    return differences
  for each in dataclasses.fields(Preprocessing):
    value = getattr(own, each.name)
    is_used = each.name != 'fill' or own.resize == 'border'
    if is_used and value != getattr(preprocessing, each.name):
      differences.append(f'data.test.{each.name}={value}')
  return differences


def with_new_head(
  model: build.Model, num_classes: int, keep_pre_logits: bool = False
) -> build.Model:
  """The model with another number of classes, and without `pre_logits` unless it is kept.

  0 removes the head alone: the features are those after `pre_logits`.

  Raises:
    UserError: for a number of classes that no head has.
  """
  if not (type(num_classes) is int and 0 <= num_classes <= build.MAX_CLASSES):
    raise UserError(f'num_classes is {num_classes!r}; it must be from 0 to {build.MAX_CLASSES:,}.')
  if num_classes and getattr(model, 'pre_logits', 0) and not keep_pre_logits:
    model = model.clone(pre_logits=0)
  return model.clone(num_classes=num_classes)


def adapt_params(
  params: Any,
  model: build.Model,
  image_size: tuple[int, int],
  new_image_size: tuple[int, int],
  new_head: bool,
  position_resize: str,
) -> Any:
  """Adapts a parameter tree in memory to `model` and to another image size; see `adapt_weights`."""
  tensors = {name: Tensor.from_array(np.asarray(x)) for name, x in flatten(params).items()}
  channels = tensors[build.input_kernel(tensors)].shape[2]
  grid = build.patch_grid(image_size, model)
  name, metadata = 'the model', ModelMetadata(image_size)
  weights = SourceWeights(name, 'memory', tensors, (), (), model, grid, image_size, metadata)
  image_shape = (*new_image_size, channels)
  adapted, _ = adapt_weights(weights, model, image_shape, new_head, position_resize)
  return read_params(adapted, name)


def _check_architecture(weights: SourceWeights, model: build.Model) -> None:
  """Raises `UserError` naming the fields in which the architectures differ."""
  if type(weights.model) is not type(model):
    raise UserError(
      f'{weights.name} is a {type(weights.model).__name__}, but model.variant is a '
      f'{type(model).__name__}; choose another variant.'
    )
  old, new = build.architecture(weights.model), build.architecture(model)
  ignored = {'num_classes', 'head_bias', 'layer_scale'}
  if old.get('pixel_mean') and not new['pixel_mean']:
    ignored |= {*_NORMALIZATION}
    old['patch_bias'] = True  # into which the normalization is folded
  ignored |= set() if new.get('pre_logits') else {'pre_logits'}
  if isinstance(model, VisionTransformer) and isinstance(weights.model, VisionTransformer):
    if can_drop(weights.model, model):
      ignored |= {'pool', 'class_token', 'registers'}
  if {*QKV_BIASES[old.get('qkv_bias', 'all')]} <= {*QKV_BIASES[new.get('qkv_bias', 'all')]}:
    ignored.add('qkv_bias')
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
  new_head: bool,
  position_resize: str,
) -> tuple[dict[str, Tensor], LoadReport]:
  """Adapts the tensors of a source to a model, without reading them yet.

  Args:
    weights, model: of the same architecture, except for the head.
    image_shape: (H, W, C).
    new_head: replace the head by a zero-initialized one; a `pre_logits` layer that the model does
      not have is then dropped too.
    position_resize: the method of `resize_position_embedding`; auto: that of the source's family.

  Raises:
    UserError: naming the first tensors that differ, or for a size that the patches do not tile, or
      that a Mixer was not trained at.
  """
  methods = choices(PositionResize)
  if position_resize not in methods:
    raise UserError(f'position_resize is {position_resize!r}; choose one of {", ".join(methods)}.')
  image_size, channels = image_shape[:2], image_shape[2]
  if position_resize == 'auto':
    position_resize = weights.metadata.position_resize or 'corners'
  build.check_image_size(image_size, model, 'image_size')
  params = flatten(build.abstract_params(model, image_size, channels))
  tensors, old_head, zeros, resized, dropped = _normalized(weights, model), {}, {}, {}, ()
  if isinstance(model, VisionTransformer) and isinstance(weights.model, VisionTransformer):
    tensors, dropped = without_tokens(tensors, weights.model, model)
  if new_head:
    for prefix in ('head/',) if 'pre_logits/kernel' in params else ('head/', 'pre_logits/'):
      names = [name for name in tensors if name.startswith(prefix)]
      old_head |= {name: tensors.pop(name) for name in names}
    for name, leaf in params.items():
      if name.startswith('head/'):
        zeros[name] = Tensor.from_array(np.broadcast_to(np.float32(0), leaf.shape))
    tensors |= zeros
  kernel = build.input_kernel(params)
  if kernel in tensors and tensors[kernel].shape[2:3] != (channels,):
    old = tensors[kernel]
    shape = (*old.shape[:2], channels, *old.shape[3:])
    tensors[kernel] = old.map(shape, lambda x: adapt_channels(_float32(x), channels))
    resized[kernel] = f'{kernel} {old.shape} -> {shape}, for {channels} channels'
  old_grid, new_grid = weights.grid, build.patch_grid(image_size, model)
  if isinstance(model, MlpMixer) and old_grid != new_grid:
    old_size, new_size = ('x'.join(map(str, size)) for size in (weights.image_size, image_size))
    raise UserError(
      f'{weights.name} is an MLP-Mixer, whose token-mixing MLPs fit images of {old_size} pixels '
      f'only; it cannot be loaded for {new_size}.'
    )
  if old_grid and new_grid and old_grid != new_grid:
    old_params = flatten(build.abstract_params(model, weights.image_size, channels))
    for name in filter(is_position_table, tensors):
      old = tensors[name]
      if name in params and old.shape == old_params[name].shape:
        resize = functools.partial(
          resize_table, name, old=old_grid, new=new_grid, method=position_resize
        )
        tensors[name] = old.map(params[name].shape, lambda x, resize=resize: resize(_float32(x)))
        resized[name] = f'{name} {old.shape} -> {params[name].shape}, {position_resize}'
  _check_same_shapes(tensors, params, weights.name)
  dtypes = sorted({str(tensor.dtype) for tensor in tensors.values()} - {'float32'})
  return tensors, LoadReport(
    weights.name,
    weights.layout,
    loaded=tuple(sorted(params.keys() - resized.keys() - zeros.keys())),
    resized=tuple(resized.values()),
    reinitialized=tuple(f'{name} {tensor.shape} = 0' for name, tensor in zeros.items()),
    ignored=(
      *(f'{name} {weights.tensors[name].shape}' for name in (*dropped, *old_head)),
      *weights.ignored,
    ),
    notes=(*weights.notes, *(f'{dtype} weights were converted to float32' for dtype in dtypes)),
    license=weights.metadata.license,
    position_resize=weights.metadata.position_resize,
  )


def _normalized(weights: SourceWeights, model: build.Model) -> dict[str, Tensor]:
  """The tensors for a model with that normalization of pixels and LayerScale, or without."""
  mean, std = (getattr(weights.model, name, ()) for name in _NORMALIZATION)
  tensors = dict(weights.tensors)
  if isinstance(model, VisionTransformer) and model.block_bias:
    zeros = missing_biases(tensors, model.qkv_bias)
    tensors |= {name: Tensor.from_array(x) for name, x in zeros.items()}
  if getattr(weights.model, 'layer_scale', 0) and not getattr(model, 'layer_scale', 0):
    tensors = layer_scale.fold(tensors)
  if not mean or mean == getattr(model, 'pixel_mean', ()):
    return tensors
  return normalization.fold(tensors, mean, std, weights.name)


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
  """Adapts the first layer's kernel (h, w, C, D) to images with another number of channels.

  One channel gets the sum over the old ones, so that a gray image gives the same output as its
  RGB copy (nearly, where a ResNet standardizes its weights). Otherwise the old channels are
  repeated in turn and scaled, so that the response keeps its size.
  """
  if channels == 1:
    return kernel.sum(axis=2, keepdims=True)
  old = kernel.shape[2]
  return kernel[:, :, np.arange(channels) % old] * np.float32(old / channels)


def _check_same_shapes(tensors: Mapping[str, Any], params: Mapping[str, Any], source: str) -> None:
  """Raises `UserError` unless the tensors are float parameters of the same names and shapes."""
  old, new = ({name: tuple(x.shape) for name, x in tree.items()} for tree in (tensors, params))
  differing = [
    f'{name} (file: {old.get(name, "missing")}, model: {new.get(name, "missing")})'
    for name in sorted(old | new)
    if old.get(name) != new.get(name)
  ]
  if differing:
    raise UserError(
      f'{source} does not match the model in {plural(len(differing), "tensor")}: '
      f'{"; ".join(differing[:3])}{"; …" if len(differing) > 3 else "."}'
    )
  for name, tensor in tensors.items():
    if tensor.dtype.kind != 'f' and tensor.dtype.name != 'bfloat16':
      raise UserError(
        f'{source}: the tensor {name} has dtype {tensor.dtype}, which is not a float.'
      )


def _float32(x: np.ndarray) -> np.ndarray:
  return np.asarray(x, np.float32)


def read_params(
  tensors: Mapping[str, Tensor], source: str, shardings: Any = None, device: Any = None
) -> Any:
  """Reads {linen name: tensor} onto the devices, a few at a time; returns the float32 tree.

  Each device gets its shard; without `shardings`, one device gets all.

  Raises:
    UserError: for damaged data and for non-finite values, naming `source`.
  """
  sharding_of = {} if shardings is None else flatten(shardings)

  def put(name: str) -> jax.Array:
    with np.errstate(over='ignore', invalid='ignore'):
      x = _float32(tensors[name].read())  # JAX copies a transposed view faster than NumPy
      is_finite = np.isfinite(x.sum()) or np.isfinite(x).all()  # one fast pass, mostly
    if not is_finite:
      raise UserError(f'{source}: the tensor {name} has non-finite values.')
    if name in sharding_of:
      return jax.make_array_from_callback(x.shape, sharding_of[name], lambda index: x[index])
    return jax.device_put(x, device)

  with concurrent.futures.ThreadPoolExecutor(min(4, num_cores())) as pool:
    # Large ones first, so that no reader ends up alone with one of them.
    order = sorted(tensors, key=lambda name: -np.prod(tensors[name].shape, dtype=float))
    arrays = dict(zip(order, pool.map(put, order), strict=True))
  return unflatten({name: arrays[name] for name in tensors})
