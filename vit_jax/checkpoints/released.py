"""The released npz layout: reading, writing, resized position embeddings, a swapped head.

In memory parameters carry the names of current linen; on disk the published, older ones.
"""

import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from vit_jax.errors import UserError

_BLOCK = r'(Transformer/encoderblock_\d+/)'
_TO_LINEN = {
    'MultiHeadDotProductAttention_1': 'MultiHeadDotProductAttention_0',
    'LayerNorm_2': 'LayerNorm_1',
    'MlpBlock_3': 'MlpBlock_0',
}
_TO_PUBLISHED = {linen: published for published, linen in _TO_LINEN.items()}
_POSITIONS = 'Transformer/posembed_input/pos_embedding'


def _rename(name: str, table: Mapping[str, str]) -> str:
  match = re.match(_BLOCK + r'([^/]+)(/.*)', name)
  return f'{match[1]}{table.get(match[2], match[2])}{match[3]}' if match else name


def flatten(params: Any) -> dict[str, Any]:
  """A parameter tree as {'embedding/kernel': leaf, …}."""
  return traverse_util.flatten_dict(params, sep='/')


def unflatten(tensors: Mapping[str, Any]) -> Any:
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(dict(tensors), sep='/')


def read_npz(path: epath.PathLike) -> dict[str, np.ndarray]:
  """Reads a released npz file; returns {linen name: array}. Nothing is ever unpickled.

  Raises:
    UserError: for a file that is missing, truncated, not an npz, or holds pickled objects.
  """
  path = epath.Path(path)
  try:
    with path.open('rb') as file:
      if file.read(4) not in (b'PK\x03\x04', b'PK\x05\x06', b'\x93NUM', b''):
        raise UserError(f'{path} is not an npz file.')
      file.seek(0)
      archive = np.load(file, allow_pickle=False)
      if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f'{path} is a single array, not an npz archive of parameters.')
      return {_rename(name, _TO_LINEN): archive[name] for name in archive.files}
  except FileNotFoundError:
    raise UserError(f'There is no checkpoint at {path}.') from None
  except (IsADirectoryError, PermissionError) as error:
    raise UserError(f'{path} cannot be read: {error.strerror}.') from None
  except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
    raise UserError(f'{path} is not a readable npz file, or a truncated one ({error}).') from None
  except ValueError as error:
    if 'pickle' in str(error):
      raise UserError(
          f'{path} is not a plain npz file of arrays: it holds pickled Python objects, '
          'which are never loaded because that can run code.'
      ) from None
    raise UserError(f'{path} is not a readable npz file ({error}).') from None


def write_npz(path: epath.PathLike, params: Any) -> None:
  """Writes a parameter tree under the published names, so that existing loaders read it."""
  tensors = {_rename(name, _TO_PUBLISHED): np.asarray(x) for name, x in flatten(params).items()}
  buffer = io.BytesIO()
  np.savez(buffer, **tensors)
  epath.Path(path).write_bytes(buffer.getbuffer())


def _interpolation(old: int, new: int) -> np.ndarray:
  """(new, old) weights of linear interpolation with aligned corners."""
  position = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
  low = np.minimum(position.astype(int), max(old - 2, 0))
  weights = np.zeros((new, old))
  weights[np.arange(new), low] = 1 - (position - low)
  weights[np.arange(new), np.minimum(low + 1, old - 1)] += position - low
  return weights


def resize_position_embedding(
    embedding: np.ndarray, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> np.ndarray:
  """Bilinear, corner-aligned interpolation as in the released code (Section 3.2).

  Args:
    embedding: (1, N, D), or (1, N + 1, D) with an entry for the class token, which is kept.
    old_grid, new_grid: (rows, columns) of patches.

  Returns:
    (1, N', D) or (1, N' + 1, D) in the same dtype.
  """
  tokens = embedding.shape[1] - old_grid[0] * old_grid[1]  # 1 with a class token, else 0
  token, grid = np.split(np.asarray(embedding), [tokens], axis=1)
  grid = grid.reshape(*old_grid, -1)
  rows, columns = (_interpolation(*pair) for pair in zip(old_grid, new_grid, strict=True))
  grid = np.einsum('ah,bw,hwd->abd', rows, columns, grid, optimize=True)
  grid = grid.reshape(1, new_grid[0] * new_grid[1], -1)
  return np.concatenate([token, grid.astype(embedding.dtype)], axis=1)


def square_grid(num_tokens: int, source: str) -> tuple[int, int]:
  """The grid of a square image with `num_tokens` patches."""
  side = round(num_tokens**0.5)
  if side * side != num_tokens:
    raise UserError(
        f'{source} has position embeddings for {num_tokens} patches, which is no square; '
        'it needs the config.json that says its image size.'
    )
  return side, side


def fit_to_model(
    tensors: Mapping[str, np.ndarray],
    abstract: Any,
    *,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    new_head: bool,
    source: str,
) -> Any:
  """Makes the tensors of a checkpoint the parameters of a model (Section 3.2).

  Args:
    tensors: {linen name: array} of the checkpoint.
    abstract: the model's tree of `ShapeDtypeStruct`s.
    old_grid, new_grid: patches of the checkpoint's and of the model's images.
    new_head: drop the checkpoint's head for a zero-initialised one; a `pre_logits` layer that
      the model does not have is then dropped, too.
    source: the checkpoint's name, for error messages.

  Returns:
    The parameter tree, numpy float32.

  Raises:
    UserError: naming the first tensors that differ.
  """
  tensors, wanted = dict(tensors), flatten(abstract)
  if new_head:
    for name in [name for name in tensors if name.startswith('head/')]:
      del tensors[name]
    tensors.update({
        name: np.zeros(leaf.shape, leaf.dtype)
        for name, leaf in wanted.items()
        if name.startswith('head/')
    })
    if 'pre_logits/kernel' not in wanted:
      tensors.pop('pre_logits/kernel', None)
      tensors.pop('pre_logits/bias', None)
  if old_grid != new_grid and _POSITIONS in tensors:
    tensors[_POSITIONS] = resize_position_embedding(tensors[_POSITIONS], old_grid, new_grid)

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
  for name, leaf in tensors.items():
    if leaf.dtype.kind != 'f' or not np.isfinite(leaf).all():
      raise UserError(
          f'{source}: the tensor {name} ({leaf.dtype}) holds values that are not finite floats.'
      )
  return jax.tree.map(lambda x: np.asarray(x, np.float32), unflatten(tensors))
