"""The points of `cost_scaling.py`: a base, and one of its variables set to another value."""

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import measurement, programs
from vit_jax.config import Config, load_config
from vit_jax.errors import UserError
from vit_jax.hardware import num_cores
from vit_jax.models import build
from vit_jax.models.vit import VisionTransformer

VARIABLES = ('batch', 'image_size', 'depth', 'width', 'devices')
# By default around S/16 on a CPU, and around B/16 on a TPU.
CPU_VALUES = {
  'batch': (1, 2, 4, 8, 16),
  'image_size': (64, 96, 128, 160, 224, 288, 384),
  'depth': (1, 2, 4, 8),
  'width': (64, 128, 192, 256, 384, 512, 768),
  'devices': (1, 2)[: num_cores()],
}
TPU_VALUES = {
  'batch': (8, 16, 32, 64, 128, 256),
  'image_size': (96, 160, 224, 240, 256, 320, 384, 512),
  'depth': (1, 2, 4, 8),
  'width': (192, 320, 384, 512, 768, 1024, 1280),
  'devices': (1, 4, 16, 64, 256),
}


@dataclasses.dataclass(frozen=True)
class Base:
  """What all points have in common but for one variable.

  Attributes:
    model: its name, such as B/16.
    values: {variable: value}.
    flags: of the config, for all points.
    num_heads: attention heads of its width.
    mlp_dim: hidden dimension of its MLPs.
  """

  model: str
  values: dict[str, int]
  flags: tuple[str, ...]
  num_heads: int
  mlp_dim: int


@dataclasses.dataclass(frozen=True)
class Point:
  """A config to be timed; `columns` of a table name it."""

  variable: str
  value: int
  is_base: bool
  config: Config
  columns: dict[str, Any]


def make_base(name: str, batch: int, depth: int, overrides: Sequence[str]) -> Base:
  """Reads the base off a model's name and config flags.

  Raises:
    UserError: for another model than a Vision Transformer on square images.
  """
  flags = [*programs.model_flags(name), f'--config.model.depth={depth}', *overrides]
  config = load_config('configs/default.py', flags)
  model = _build(config)
  height, width = config.data.height_width
  if not isinstance(model, VisionTransformer) or model.resnet_width or height != width:
    raise UserError(f'--model={name} must be a Vision Transformer on square images, such as B/16.')
  values = {'batch': batch, 'image_size': height, 'depth': model.depth, 'width': model.width}
  return Base(name, values | {'devices': 1}, tuple(flags), model.num_heads, model.mlp_dim)


def make_points(base: Base, values: Mapping[str, Sequence[int]]) -> list[Point]:
  """The points of each variable, of which the base is the first one.

  Raises:
    UserError: for a value that the config does not take.
  """
  return [
    _make_point(base, variable, value)
    for variable, others in values.items()
    for value in dict.fromkeys([base.values[variable], *others])
  ]


def _make_point(base: Base, variable: str, value: int) -> Point:
  values = base.values | {variable: value}
  batch_size = values['batch'] * values['devices']
  fields = {'batch_size': batch_size, 'eval_batch_size': batch_size}
  fields |= {'data.image_size': values['image_size'], 'model.depth': values['depth']}
  if variable == 'width' and value != base.values['width']:
    heads, remainder = divmod(value * base.num_heads, base.values['width'])
    if remainder or not heads:
      head_dim = base.values['width'] // base.num_heads
      raise UserError(f'--vary=width:{value} must be a multiple of {head_dim}, a head of the base.')
    mlp_dim = value * base.mlp_dim // base.values['width']
    fields |= {'model.width': value, 'model.num_heads': heads, 'model.mlp_dim': mlp_dim}
  flags = [f'--config.{name}={field}' for name, field in fields.items()]
  config = load_config('configs/default.py', [*base.flags, *flags])
  model = _build(config)
  patches = math.prod(size // model.patch_size for size in config.data.height_width)
  columns = {
    'variable': variable,
    'value': value,
    'model': base.model,
    'image_size': values['image_size'],
    'tokens': patches + (model.pool == 'token'),
    'depth': model.depth,
    'width': model.width,
    'batch_size': batch_size,
    'devices': values['devices'],
  }
  return Point(variable, value, value == base.values[variable], config, columns)


def _build(config: Config) -> Any:
  """The model with its sizes; whether its attention can run is left to where it runs."""
  model = dataclasses.replace(config.model, attention='auto')
  return build.model_from_config(model, num_classes=1, platform='cpu')


def work(columns: Mapping[str, Any]) -> float:
  """What a proportional cost is proportional to: images, tokens, depth and the width squared."""
  return math.prod(float(columns[name]) for name in ('batch_size', 'tokens', 'depth')) * (
    float(columns['width']) ** 2
  )


def read_vary(texts: Sequence[str], defaults: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
  """['depth:1,2', 'width'] -> {variable: its values}; without texts all variables.

  Raises:
    UserError: for another text.
  """
  result: dict[str, list[int]] = {}
  for text in texts or VARIABLES:
    name, _, values = text.partition(':')
    if name not in VARIABLES:
      raise UserError(f'--vary: {name[:40]!r} is not one of {", ".join(VARIABLES)}.')
    try:
      numbers = measurement.sizes(values) if values else defaults[name]
    except argparse.ArgumentTypeError as error:
      raise UserError(f'--vary={name}: {error}.') from None
    result[name] = [*result.get(name, []), *numbers]
  return result
