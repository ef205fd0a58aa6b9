"""Adapts the tensors of a file to a model: position embeddings, head, channels (Section 3.2)."""

import concurrent.futures
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.config import choices
from vit_jax.config.schema import PositionResize
from vit_jax.errors import UserError
from vit_jax.hardware import num_cores
from vit_jax.models import build
from vit_jax.text import plural
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts.released import POSITIONS, flatten, unflatten

_READERS = 4  # threads


@dataclasses.dataclass(frozen=True)
class LoadReport:
  """What happened to each tensor of a file; `str()` of it is a table.

  Attributes:
    source, layout: name and layout of the file.
    taken: names of the tensors that were loaded unchanged.
    resized, reinitialized, ignored: lines of text, one for each tensor.
    notes: other changes.
  """

  source: str
  layout: str
  taken: tuple[str, ...]
  resized: tuple[str, ...] = ()
  reinitialized: tuple[str, ...] = ()
  ignored: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()

  @property
  def is_plain(self) -> bool:
    """Whether all tensors of the file were loaded unchanged."""
    return not (self.resized or self.reinitialized or self.ignored or self.notes)

  def __str__(self) -> str:
    lines = [f'{self.source} ({self.layout})', f'  {"taken":<15}{len(self.taken):>5}']
    for title, tensors in (
      ('resized', self.resized),
      ('re-initialized', self.reinitialized),
      ('ignored', self.ignored),
    ):
      text = '; '.join(tensors[:4]) + (f'; and {len(tensors) - 4} more' if tensors[4:] else '')
      lines.append(f'  {title:<15}{len(tensors):>5}  {text}'.rstrip())
    return '\n'.join(lines + [f'  note: {note}' for note in self.notes])


def _interpolation(old: int, new: int, method: str) -> np.ndarray:
  """The (new, old) matrix of linear interpolation."""
  if method == 'corners':
    position = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
  else:
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
  low = np.minimum(position.astype(int), max(old - 2, 0))
  weights = np.zeros((new, old))
  weights[np.arange(new), low] = 1 - (position - low)
  weights[np.arange(new), np.minimum(low + 1, old - 1)] += position - low
  return weights


def resize_position_embedding(
  embedding: np.ndarray,
  old_grid: tuple[int, int],
  new_grid: tuple[int, int],
  method: str = 'corners',
) -> np.ndarray:
  """Resizes position embeddings by bilinear interpolation of their grid (Section 3.2).

  Args:
    embedding: (1, N, D), or (1, N + 1, D) with an entry for the class token, which is kept.
    old_grid, new_grid: (rows, columns) of patches.
    method: 'corners' aligns the corner entries, as the released code does
      (`scipy.ndimage.zoom`); 'half_pixel' aligns the centres of patches, without antialiasing,
      as `jax.image.resize` and PyTorch do.

  Returns:
    (1, N', D) or (1, N' + 1, D) in the same dtype.
  """
  tokens = embedding.shape[1] - old_grid[0] * old_grid[1]  # 1 with a class token, else 0
  token, grid = np.split(np.asarray(embedding), [tokens], axis=1)
  grid = grid.reshape(*old_grid, -1)
  rows, columns = (_interpolation(*pair, method) for pair in zip(old_grid, new_grid, strict=True))
  grid = np.einsum('ah,bw,hwd->abd', rows, columns, grid, optimize=True)
  grid = grid.reshape(1, new_grid[0] * new_grid[1], -1)
  return np.concatenate([token, grid.astype(embedding.dtype)], axis=1)


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
  """Adapts the first layer's kernel (h, w, C, D) to images with another number of channels.

  One channel gets the sum over the old ones, so that a gray image gives the same output as its
  RGB copy (nearly, where a ResNet standardizes its weights). Otherwise the old channels are
  repeated in turn and scaled, so that the response keeps its size.
  """
  old = kernel.shape[2]
  if channels == 1:
    return kernel.sum(axis=2, keepdims=True)
  return kernel[:, :, np.arange(channels) % old] * np.float32(old / channels)


def adapt_params(
  tensors: Mapping[str, Tensor],
  abstract: Any,
  *,
  old_grid: tuple[int, int] | None,
  new_grid: tuple[int, int] | None,
  new_head: bool,
  resize: str,
  source: str,
  layout: str,
  ignored: tuple[str, ...] = (),
  notes: tuple[str, ...] = (),
) -> tuple[dict[str, Tensor], LoadReport]:
  """Adapts the tensors of a file to a model, without reading them yet.

  Args:
    tensors: {linen name: tensor} of the file.
    abstract: the model's parameter tree of `ShapeDtypeStruct`s.
    old_grid, new_grid: patches of the images of the file and of the model, (rows, columns); None
      for models without position embeddings.
    new_head: replace the head by a zero-initialized one; a `pre_logits` layer that the model does
      not have is then dropped too.
    resize: how position embeddings are resized: 'corners' or 'half_pixel'.
    source, layout: for the report and for error messages.
    ignored, notes: for the report, from earlier steps.

  Returns:
    {linen name: tensor}, one for each parameter of the model, and a report.

  Raises:
    UserError: naming the first tensors that differ.
  """
  methods = choices(PositionResize)
  if resize not in methods:
    raise UserError(f'position_resize is {resize!r}; choose one of {", ".join(methods)}.')
  params = flatten(abstract)
  adapted, dropped, reinitialized = dict(tensors), [], []
  if new_head:
    adapted, dropped, reinitialized = _replace_head(adapted, params)
  resized = {}
  kernel = build.input_kernel(params)
  if kernel in adapted and adapted[kernel].shape[2:3] != params[kernel].shape[2:3]:
    old, new = adapted[kernel], params[kernel].shape
    adapted[kernel] = _with_channels(old, new[2])
    resized[kernel] = f'{kernel} {old.shape} -> {new}, for {new[2]} channels'
  if POSITIONS in adapted and old_grid and new_grid and old_grid != new_grid:
    old, new = adapted[POSITIONS], params[POSITIONS].shape
    adapted[POSITIONS] = old.map(
      new, lambda x: resize_position_embedding(_float32(x), old_grid, new_grid, resize)
    )
    resized[POSITIONS] = f'{POSITIONS} {old.shape} -> {new}, {resize}'
  _check_same_shapes(adapted, params, source)
  unchanged = params.keys() - resized.keys()
  if new_head:
    unchanged = {name for name in unchanged if not name.startswith('head/')}
  dtypes = sorted({str(tensor.dtype) for tensor in adapted.values()} - {'float32'})
  report = LoadReport(
    source,
    layout,
    taken=tuple(sorted(unchanged)),
    resized=tuple(resized.values()),
    reinitialized=tuple(reinitialized),
    ignored=(*dropped, *ignored),
    notes=(*notes, *(f'{dtype} weights were converted to float32' for dtype in dtypes)),
  )
  return adapted, report


def _with_channels(kernel: Tensor, channels: int) -> Tensor:
  shape = (*kernel.shape[:2], channels, *kernel.shape[3:])
  return kernel.map(shape, lambda x: adapt_channels(_float32(x), channels))


def _replace_head(
  tensors: Mapping[str, Tensor], params: Mapping[str, Any]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
  """The tensors with a head of zeros, and lines for the dropped and the new ones."""
  prefixes = ('head/',) if 'pre_logits/kernel' in params else ('head/', 'pre_logits/')
  replaced = {name: x for name, x in tensors.items() if not name.startswith(prefixes)}
  # The head first, as in the report.
  dropped = [
    f'{name} {tensor.shape}'
    for prefix in prefixes
    for name, tensor in tensors.items()
    if name.startswith(prefix)
  ]
  reinitialized = []
  for name, leaf in params.items():
    if name.startswith('head/'):
      replaced[name] = Tensor.from_array(np.broadcast_to(np.float32(0), leaf.shape))
      reinitialized.append(f'{name} {leaf.shape} = 0')
  return replaced, dropped, reinitialized


def _check_same_shapes(
  tensors: Mapping[str, Tensor], params: Mapping[str, Any], source: str
) -> None:
  """Raises `UserError` unless the tensors are float parameters of the same names and shapes."""

  def shape(tree: Mapping[str, Any], name: str) -> str:
    return str(tuple(tree[name].shape)) if name in tree else 'missing'

  differing = [
    f'{name} (file: {shape(tensors, name)}, model: {shape(params, name)})'
    for name in sorted(tensors.keys() | params.keys())
    if shape(tensors, name) != shape(params, name)
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


def _is_finite(x: np.ndarray) -> bool:
  with np.errstate(over='ignore', invalid='ignore'):
    return bool(np.isfinite(x.sum()) or np.isfinite(x).all())  # one fast pass, mostly


def read_params(tensors: Mapping[str, Tensor], source: str, shardings: Any = None) -> Any:
  """Reads the tensors and puts them on their devices, a few at a time.

  Args:
    tensors: {linen name: tensor}.
    source: for error messages.
    shardings: a tree of `Sharding`s; each device gets only its shard. None: the default device.

  Returns:
    The parameter tree, float32.

  Raises:
    UserError: for damaged data and for non-finite values.
  """
  sharding_of = {} if shardings is None else flatten(shardings)

  def put(name: str) -> jax.Array:
    with np.errstate(over='ignore', invalid='ignore'):
      x = _float32(tensors[name].read())  # JAX copies a transposed view faster than NumPy
    if not _is_finite(x):
      raise UserError(f'{source}: the tensor {name} has non-finite values.')
    if name in sharding_of:
      return jax.make_array_from_callback(x.shape, sharding_of[name], lambda index: x[index])
    return jax.device_put(x)

  with concurrent.futures.ThreadPoolExecutor(min(_READERS, num_cores())) as pool:
    # Large ones first, so that no reader ends up alone with one of them.
    order = sorted(tensors, key=lambda name: -np.prod(tensors[name].shape, dtype=float))
    arrays = dict(zip(order, pool.map(put, order), strict=True))
  return unflatten({name: arrays[name] for name in tensors})
