"""What describes a model besides its tensors: image size, labels, preprocessing, numerics.

vit_jax stores it in the config.json of its folders, in the header of safetensors files and in the
comment of npz files. What timm and Transformers store is read in `layouts/`.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from vit_jax.config import Preprocessing, choices, height_width
from vit_jax.config.schema import Loss, PositionResize
from vit_jax.errors import UserError, first_line
from vit_jax.files import parse_json, read_text, user_path
from vit_jax.models.build import DTYPES, MAX_IMAGE_SIDE
from vit_jax.models.encoder_block import GELUS
from vit_jax.models.rotary import ROTARIES, Rotary
from vit_jax.weights.formats.lazy_tensor import CONTENT_ERRORS, METADATA_KEY

_STORED = (
  'loss',
  'gelu',
  'layer_norm_epsilon',
  'dtype',
  'position_resize',
  'license',
)  # as they are
HALF = (0.5, 0.5, 0.5)  # mean and std that scale pixels from [0, 1] to [-1, 1]


class UnsupportedError(UserError):
  """A feature of an intact model: 'has …, which is not supported', without the model's name."""

  def __init__(self, feature: str):
    short = feature if len(feature) <= 100 else f'{feature[:100]}…'
    super().__init__(f'has {short}, which vit_jax does not support')


@dataclasses.dataclass(frozen=True)
class ModelMetadata:
  """What the tensors of a model do not determine; None: unknown.

  Raises:
    ValueError, TypeError: for a value that no model can have.
  """

  image_size: tuple[int, int] | None = None  # (height, width) in pixels
  preprocessing: Preprocessing | None = None  # of images in tests and predictions
  loss: str = 'softmax'  # or 'sigmoid'
  labels: list[str] | None = None  # a name for each class
  num_heads: int | None = None
  pool_num_heads: int | None = None  # of pool map, if they are not those of the blocks
  gelu: str | None = None  # a key of GELUS
  rotary: Rotary | None = None  # of queries and keys
  layer_norm_epsilon: float = 1e-6  # added to the variance, in [0, 1)
  mean: tuple[float, ...] | None = None  # of pixels in [0, 1], one for each channel
  std: tuple[float, ...] | None = None
  dtype: str | None = None  # of the matrix products, a key of DTYPES
  pool: str | None = None  # that the tensors must have; stored with the model, as the next one
  final_norm: str | None = None  # that of the model; None: as its tensors tell
  position_resize: str | None = None  # how its family resizes position embeddings
  license: str | None = None  # terms of the weights that their owner wants to be named
  has_positions: bool = True  # False: trained without position embeddings; stored with the model
  family: str | None = None  # of Transformers, whose tensors are expected; not stored
  sizes: Mapping[str, Any] = dataclasses.field(
    default_factory=dict
  )  # fields of the model; not stored
  notes: tuple[str, ...] = ()  # what was assumed; not stored
  is_own: bool = False  # written by vit_jax, so that what it does not state does not exist

  def __post_init__(self):
    if self.image_size is not None and max(self.image_size) > MAX_IMAGE_SIDE:
      raise ValueError(f'image_size is over {MAX_IMAGE_SIDE} pixels')
    for name, allowed in (
      ('loss', choices(Loss)),
      ('gelu', GELUS),
      ('dtype', DTYPES),
      ('pool', ('token', 'gap', 'map', 'token_gap', 'distilled')),
      ('position_resize', choices(PositionResize)),
    ):
      value = getattr(self, name)
      if value not in allowed and (value is not None or name == 'loss'):
        raise ValueError(f'{name} is not one of {", ".join(allowed)}')
    if self.license is not None and type(self.license) is not str:
      raise ValueError('the license is not a string')
    labels, num_heads = self.labels, self.num_heads
    if labels is not None and not (type(labels) is list and all(type(x) is str for x in labels)):
      raise ValueError('labels are not a list of strings')
    if num_heads is not None and not (type(num_heads) is int and 0 < num_heads < 2**16):
      raise ValueError(f'num_heads is not a number from 1 to {2**16 - 1}')
    pool_num_heads = self.pool_num_heads
    if pool_num_heads is not None and not (type(pool_num_heads) is int and pool_num_heads > 0):
      raise ValueError('pool_num_heads is not a positive number')
    if not 0 <= self.layer_norm_epsilon < 1:
      raise ValueError('layer_norm_epsilon is not in [0, 1)')
    if self.mean is not None and not all(map(math.isfinite, self.mean)):
      raise ValueError('the mean of pixels is not finite')
    if self.std is not None and not all(0 < x < math.inf for x in self.std):
      raise ValueError('the std of pixels is not positive')

  def to_json(self, architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object that `from_json` reads, without labels."""
    fields = {name: getattr(self, name) for name in ('image_size', *_STORED)}
    fields['gelu'] = self.gelu or 'tanh'
    preprocessing = self.preprocessing and dataclasses.asdict(self.preprocessing)
    if preprocessing is not None:
      preprocessing |= {'mean': self.mean or HALF, 'std': self.std or HALF}
    model = {
      n: dataclasses.asdict(x) if n == 'rotary' and x else x for n, x in architecture.items()
    }
    return {'model': model, 'preprocessing': preprocessing, **fields}

  @classmethod
  def from_json(cls, content: Mapping[str, Any]) -> 'ModelMetadata':
    """The inverse of `to_json`, within `damage_explained`; absent keys take defaults."""
    size, model = content.get('image_size'), content.get('model') or {}
    rule = content.get('preprocessing')
    if rule is None and 'crop_fraction' in content:  # of older versions
      rule = {'crop_fraction': content['crop_fraction']}
    rule, mean, std = dict(rule or {}), None, None
    if rule:
      mean, std = (tuple(map(float, rule.pop(name, HALF))) for name in ('mean', 'std'))
    return cls(
      image_size=None if size is None else height_width(size),
      preprocessing=Preprocessing(**rule) if rule else None,
      num_heads=model.get('num_heads') or None,  # a ResNet may have 0
      pool_num_heads=model.get('pool_num_heads') or None,
      has_positions=model.get('position_embedding') != 'none',
      pool=model.get('pool'),
      final_norm=model.get('final_norm'),
      rotary=_read_rotary(model.get('rotary')),
      mean=mean,
      std=std,
      is_own=bool(content),
      **{name: content[name] for name in (*_STORED, 'labels') if name in content},
    )

  @classmethod
  def from_run_config(cls, config: Mapping[str, Any]) -> 'ModelMetadata':
    """From the config.json that a run writes at its start, within `damage_explained`."""
    # Without num_heads: 0 means the heads of the variant, and the tensors determine them.
    data = config.get('data') or {}
    model = config.get('model') or {}
    # A predictor of masked patches has no pooling yet, whatever the config says.
    known = {name: model.get(name) for name in ('position_embedding', 'pool', 'final_norm')}
    if config.get('objective') == 'masked_patches':
      del known['pool']
    if model.get('rotary') in ROTARIES:
      grid = tuple(model.get('rotary_grid', ()))
      rotary = dataclasses.replace(ROTARIES[model['rotary']], reference_grid=grid)
      known['rotary'] = dataclasses.asdict(rotary)
    fields = {**config, **data, **model, 'model': known, 'position_resize': None}
    test = data.get('test') or {}
    names = [each.name for each in dataclasses.fields(Preprocessing) if each.name in test]
    fields['dtype'] = None  # 'auto' depends on the machine
    if names:
      fields['preprocessing'] = {name: test[name] for name in names}
    return cls.from_json(fields)

  @classmethod
  def from_header(cls, header: Mapping[str, str], path: epath.PathLike) -> 'ModelMetadata':
    """From the header of a tensor file; the defaults if vit_jax did not write it."""
    with damage_explained(f'{path}: {METADATA_KEY} in its header'):
      return cls.from_json(parse_json(header.get(METADATA_KEY, '{}')))

  def check_num_labels(self, num_classes: int, source: str) -> None:
    """Raises `UserError` unless there are as many labels as classes."""
    if num_classes and self.labels is not None and len(self.labels) != num_classes:
      raise UserError(
        f'{source} has a head of {num_classes} classes but {len(self.labels)} labels; correct '
        'the labels beside it.'
      )


def _read_rotary(content: Any) -> Rotary | None:
  if content is None:
    return None
  return Rotary(**{**content, 'reference_grid': tuple(content.get('reference_grid', ()))})


@contextlib.contextmanager
def damage_explained(name: str) -> Iterator[None]:
  """Turns what reading damaged metadata raises into a `UserError`: '<name> is damaged (…).'"""
  try:
    yield
  except UnsupportedError:  # nothing is damaged
    raise
  except (*CONTENT_ERRORS, OSError, UserError) as error:
    reason = first_line(error) + (' is missing' if isinstance(error, KeyError) else '')
    raise UserError(f'{name} is damaged ({reason}).') from None


def read_json(path: epath.Path) -> dict[str, Any]:
  """Reads a JSON object, within `damage_explained`; {} if there is no file."""
  if not path.exists():
    return {}
  content = parse_json(read_text(path))
  if not isinstance(content, dict):
    raise ValueError(f'{path.name} is not a JSON object')
  return content


def read_labels(labels: Sequence[str] | epath.PathLike, num_classes: int) -> list[str]:
  """Class names, or those in a text file with one a line.

  Raises:
    UserError: for a file that cannot be read, or unless there is one for each class.
  """
  if not isinstance(labels, (str, os.PathLike)):
    names, source, unit = [str(label) for label in labels], 'labels', 'names'
  else:
    source, unit = os.fspath(labels), 'lines'
    try:
      names = read_text(user_path(source)).splitlines()
    except (OSError, ValueError) as error:
      reason = getattr(error, 'strerror', None) or first_line(error)
      raise UserError(f'{source} cannot be read ({reason}).') from None
  if len(names) != num_classes:
    raise UserError(f'{source} has {len(names)} {unit}; the model has {num_classes} classes.')
  return names
