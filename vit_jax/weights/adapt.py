"""From the tensors of a checkpoint to the parameters of a model (Section 3.2 of the paper).

Position embeddings are resized, the head is swapped, and what happened is reported.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import build
from vit_jax.weights.formats.lazy_tensor import Tensor
from vit_jax.weights.layouts.released import POSITIONS, flatten, unflatten

RESIZE_METHODS = ('corners', 'half_pixel')
_READERS = 4


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of the tensors of a checkpoint; `str()` of it is a table.

  Attributes:
    source, layout: where they come from, and how they were laid out.
    taken: names of tensors that were taken as they are.
    resized, reinitialised, ignored: lines of text, a tensor each.
    notes: what else a reader should know.
  """

  source: str
  layout: str
  taken: tuple[str, ...]
  resized: tuple[str, ...] = ()
  reinitialised: tuple[str, ...] = ()
  ignored: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()

  @property
  def is_plain(self) -> bool:
    """Whether all there was was taken as it is."""
    return not (self.resized or self.reinitialised or self.ignored or self.notes)

  def __str__(self) -> str:
    lines = [f'{self.source} ({self.layout})']
    for title, names in (
      ('taken', self.taken),
      ('resized', self.resized),
      ('re-initialised', self.reinitialised),
      ('ignored', self.ignored),
    ):
      few = names if title != 'taken' else ()
      text = '; '.join(few[:4]) + (f'; and {len(few) - 4} more' if len(few) > 4 else '')
      lines.append(f'  {title:<15}{len(names):>5}  {text}'.rstrip())
    return '\n'.join(lines + [f'  note: {note}' for note in self.notes])


def _interpolation(old: int, new: int, method: str) -> np.ndarray:
  """(new, old) weights of linear interpolation."""
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
  """Bilinear interpolation of the grid (Section 3.2).

  Args:
    embedding: (1, N, D), or (1, N + 1, D) with an entry for the class token, which is kept.
    old_grid, new_grid: (rows, columns) of patches.
    method: 'corners' keeps the corner entries in the corners, as the released code does
      (`scipy.ndimage.zoom`); 'half_pixel' keeps the centres of patches in place, without
      antialiasing, as `jax.image.resize` and PyTorch do.

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
  """The first layer's kernel (h, w, C, D) for images with another number of channels.

  For one channel the sum over the old ones, so that a gray image gives what it gave as RGB
  (nearly, where a ResNet standardizes its weights); else the old ones in turn, scaled so that the
  response keeps its size.
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
) -> tuple[dict[str, Tensor], Report]:
  """Makes the tensors of a checkpoint those of a model, without reading them yet.

  Args:
    tensors: {linen name: tensor} of the checkpoint.
    abstract: the model's tree of `ShapeDtypeStruct`s.
    old_grid, new_grid: patches of the checkpoint's and of the model's images, (rows, columns);
      None for models without position embeddings.
    new_head: drop the checkpoint's head for a zero-initialised one; a `pre_logits` layer that
      the model does not have is then dropped, too.
    resize: how position embeddings are resized, one of RESIZE_METHODS.
    source, layout: for the report and for error messages.
    ignored, notes: of what was done before.

  Returns:
    {linen name: tensor}, one for each parameter of the model, and what happened.

  Raises:
    UserError: naming the first tensors that differ.
  """
  if resize not in RESIZE_METHODS:
    raise UserError(f'position_resize is {resize!r}; choose one of {", ".join(RESIZE_METHODS)}.')
  tensors, wanted = dict(tensors), flatten(abstract)
  dropped, fresh, resized = [], [], []
  if new_head:
    heads = [name for name in tensors if name.startswith('head/')]
    if 'pre_logits/kernel' not in wanted:
      heads += [name for name in tensors if name.startswith('pre_logits/')]
    dropped = [f'{name} {tensors.pop(name).shape}' for name in heads]
    for name, leaf in wanted.items():
      if name.startswith('head/'):
        tensors[name] = Tensor.of(np.broadcast_to(np.float32(0), leaf.shape))
        fresh.append(f'{name} {leaf.shape} = 0')
  kernel = build.input_kernel(wanted)
  if kernel in tensors and tensors[kernel].shape[2:3] != wanted[kernel].shape[2:3]:
    old, new = tensors[kernel], wanted[kernel].shape
    tensors[kernel] = old.map(
      (*old.shape[:2], new[2], *old.shape[3:]), lambda x: adapt_channels(_float32(x), new[2])
    )
    resized.append(f'{kernel} {old.shape} -> {new}, for {new[2]} channels')
  if old_grid != new_grid and POSITIONS in tensors:
    old, new = tensors[POSITIONS], wanted[POSITIONS].shape
    tensors[POSITIONS] = old.map(
      new, lambda x: resize_position_embedding(_float32(x), old_grid, new_grid, resize)
    )
    resized.append(f'{POSITIONS} {old.shape} -> {new}, {resize}')
  _check_same(tensors, wanted, source)
  changed = set(name for name in wanted if name.startswith('head/')) if new_head else set()
  changed |= {name for name in wanted if any(line.startswith(f'{name} ') for line in resized)}
  kinds = sorted({str(tensor.dtype) for tensor in tensors.values()} - {'float32'})
  report = Report(
    source,
    layout,
    taken=tuple(sorted(wanted.keys() - changed)),
    resized=tuple(resized),
    reinitialised=tuple(fresh),
    ignored=(*dropped, *ignored),
    notes=(*notes, *(f'{kind} weights became float32' for kind in kinds)),
  )
  return tensors, report


def _check_same(tensors: Mapping[str, Tensor], wanted: Mapping[str, Any], source: str) -> None:
  def shape(tree: Mapping[str, Any], name: str) -> str:
    return str(tuple(tree[name].shape)) if name in tree else 'missing'

  differing = [
    f'{name} (file: {shape(tensors, name)}, model: {shape(wanted, name)})'
    for name in sorted(tensors.keys() | wanted.keys())
    if shape(tensors, name) != shape(wanted, name)
  ]
  if differing:
    raise UserError(
      f'{source} does not fit the model in {len(differing)} tensors: '
      f'{"; ".join(differing[:3])}{"; …" if len(differing) > 3 else "."}'
    )
  for name, tensor in tensors.items():
    if tensor.dtype.kind != 'f' and tensor.dtype.name != 'bfloat16':
      raise UserError(f'{source}: the tensor {name} is of type {tensor.dtype}, which is no float.')


def _float32(x: np.ndarray) -> np.ndarray:
  return np.asarray(x, np.float32)


def _is_finite(x: np.ndarray) -> bool:
  with np.errstate(over='ignore', invalid='ignore'):
    return bool(np.isfinite(x.sum()) or np.isfinite(x).all())  # a sum is read once, and fast


def read_params(tensors: Mapping[str, Tensor], source: str, shardings: Any = None) -> Any:
  """Reads the tensors to where they belong, a few at a time.

  Args:
    tensors: {linen name: tensor}.
    source: for error messages.
    shardings: a tree of `Sharding`s; a device gets no more than its part. None: the default
      device.

  Returns:
    The parameter tree, float32.

  Raises:
    UserError: for damaged data, and for values that are no finite numbers.
  """
  places = {} if shardings is None else flatten(shardings)

  def place(name: str) -> jax.Array:
    with np.errstate(over='ignore', invalid='ignore'):
      x = _float32(tensors[name].read())  # a transposed view is left to JAX, which is faster
    if not _is_finite(x):
      raise UserError(f'{source}: the tensor {name} holds values that are not finite numbers.')
    if name in places:
      return jax.make_array_from_callback(x.shape, places[name], lambda index: x[index])
    return jax.device_put(x)

  with concurrent.futures.ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
    # Large ones first, so that the last reader is not left with one of them.
    order = sorted(tensors, key=lambda name: -np.prod(tensors[name].shape, dtype=float))
    placed = dict(zip(order, pool.map(place, order), strict=True))
  return unflatten({name: placed[name] for name in tensors})
