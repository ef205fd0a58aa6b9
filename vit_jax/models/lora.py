"""Low-rank adaptation (LoRA, arXiv 2106.09685): adapters in the parameter tree, none in the model.

An adapter is two arrays beside the kernel that it changes, `lora_a` and `lora_b`. A model sees the
sum, kernel + scale * A B, which is computed within the compiled step, so modules, published names
and exported models are those without adapters.

Shapes: D width, K heads, M mlp_dim, R rank.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from vit_jax.config import LoraConfig
from vit_jax.errors import UserError
from vit_jax.models.precision import FULL_PRECISION

ADAPTER = ('lora_a', 'lora_b')
Path = tuple[str, ...]
_BLOCK = re.compile(r'(encoderblock|MixerBlock)_\d+')
_MLPS = ('MlpBlock_0', 'token_mixing', 'channel_mixing')


def has_adapters(params: Any) -> bool:
  """Whether a tree of parameters, or of what belongs to them, has adapters."""
  return any(path[-1] in ADAPTER for path in traverse_util.flatten_dict(params))


def add_adapters(params: Any, config: LoraConfig, key: jax.Array) -> Any:
  """Adds adapters that change nothing yet: B is zero, A uniform with variance 1 / (3 inputs).

  The latter as in microsoft/LoRA (loralib/layers.py); the paper has a Gaussian.

  Args:
    params: the tree of a model.
    config: its rank may be 0, for none.
    key: of the initial values.

  Returns:
    A tree of the same arrays, with `lora_a` and `lora_b` beside kernels: (D, R) and (R, K, D / K)
    of query, key and value, (K, D / K, R) and (R, D) of out, (D, R) and (R, M) in the MLP.

  Raises:
    UserError: for a projection that the model does not have, or a rank that is not low.
  """
  if not config.rank:
    return params
  flat: dict[Path, Any] = traverse_util.flatten_dict(params)
  projections = {path: _projection(path) for path in flat if path[-1] == 'kernel'}
  names = {*projections.values()} - {None}
  if missing := [name for name in config.projections if name not in names]:
    known = ', '.join(sorted(filter(None, names))) or 'none'
    config.refuse('projections', f'the model has no {missing[0]} in its blocks, but {known}')
  paths = sorted(path for path, name in projections.items() if name in config.projections)
  for each, path in zip(jax.random.split(key, len(paths)), paths, strict=True):
    inputs, outputs = _split(path, flat[path].shape)
    size = min(math.prod(inputs), math.prod(outputs))
    if config.rank >= size:
      raise UserError(
        f'config.lora.rank is {config.rank}; it must be less than {size}, the rank of '
        f'{"/".join(path)}.'
      )
    bound = math.prod(inputs) ** -0.5
    first = jax.random.uniform(each, (*inputs, config.rank), minval=-bound, maxval=bound)
    arrays = first, jnp.zeros((config.rank, *outputs))
    flat |= {(*path[:-1], name): x for name, x in zip(ADAPTER, arrays, strict=True)}
  return traverse_util.unflatten_dict(flat)


def merge_adapters(params: Any, scale: float) -> Any:
  """The tree that the model takes: each kernel with its adapter added, in float32.

  Args:
    params: with or without adapters; arrays of JAX or NumPy.
    scale: `LoraConfig.scale`.
  """
  flat: dict[Path, Any] = traverse_util.flatten_dict(params)
  merged = {}
  for path, x in flat.items():
    first, second = (flat.get((*path[:-1], name)) for name in ADAPTER)
    if path[-1] == 'kernel' and first is not None and second is not None:
      x = x + scale * jnp.tensordot(first, second, 1, precision=FULL_PRECISION)
    if path[-1] not in ADAPTER:
      merged[path] = x
  return traverse_util.unflatten_dict(merged)


def _projection(path: Path) -> str | None:
  """What the kernel at a path is in its block, in the words of the config."""
  if not any(map(_BLOCK.fullmatch, path)):
    return None
  if path[-3] in _MLPS:
    return 'mlp'
  return path[-2] if path[-2] in ('query', 'key', 'value', 'out') else None


def _split(path: Path, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """The axes of a kernel as (inputs, outputs)."""
  count = len(shape) - 1 if path[-2] == 'out' else 1
  return shape[:count], shape[count:]
