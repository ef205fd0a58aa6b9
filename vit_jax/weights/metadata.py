"""What is said about a model besides its tensors: sizes, labels, preprocessing.

It stands in the config.json of our own folders, of Transformers and of timm, or in the header
of a safetensors file that we wrote.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from vit_jax.config import height_width
from vit_jax.errors import UserError, first_line
from vit_jax.models.build import MAX_IMAGE_SIDE
from vit_jax.models.losses import LOSSES
from vit_jax.weights.formats.lazy_tensor import FACTS, Tensor, read_text

DEFAULT_CROP_FRACTION = 0.875  # shorter side to 256, centre 224
_GELUS = {
  'gelu': 'exact',
  'gelu_python': 'exact',
  'gelu_pytorch_tanh': 'tanh',
  'gelu_new': 'tanh',
  'gelu_fast': 'tanh',
  'gelu_accurate': 'tanh',
  'gelu_tanh': 'tanh',
}
_TRANSFORMERS = {  # what its ViTConfig takes for what a config.json does not say
  'hidden_act': 'gelu',
  'image_size': 224,
  'layer_norm_eps': 1e-12,
  'num_attention_heads': 12,
}
_HALF = (0.5, 0.5, 0.5)
_DAMAGE = (
  ValueError,
  KeyError,
  TypeError,
  AttributeError,
  IndexError,
  ArithmeticError,
  RecursionError,
)


@dataclasses.dataclass(frozen=True)
class ModelMetadata:
  """Facts about a model that its tensors do not tell.

  Attributes:
    image_size: (height, width) in pixels; None when unknown.
    crop_fraction: the central part of an image that is looked at, in (0, 1].
    loss: 'softmax' or 'sigmoid'.
    labels: a name for each class; None when unknown.
    num_heads: None when unknown.
    gelu: 'tanh' or 'exact'.
    layer_norm_epsilon: positive.
    mean, std: with which pixels in [0, 1] were normalized, for red, green and blue.
  """

  image_size: tuple[int, int] | None = None
  crop_fraction: float = DEFAULT_CROP_FRACTION
  loss: str = 'softmax'
  labels: list[str] | None = None
  num_heads: int | None = None
  gelu: str = 'tanh'
  layer_norm_epsilon: float = 1e-6
  mean: tuple[float, float, float] = _HALF
  std: tuple[float, float, float] = _HALF

  def __post_init__(self):
    right = {
      'image_size': max(self.image_size or (1,)) <= MAX_IMAGE_SIDE,
      'loss': self.loss in LOSSES,
      'crop_fraction': 0 < self.crop_fraction <= 1,
      'gelu': self.gelu in ('tanh', 'exact'),
      'layer_norm_epsilon': 0 <= self.layer_norm_epsilon < 1,
      'num_heads': self.num_heads is None
      or (type(self.num_heads) is int and 0 < self.num_heads < 2**16),
      'labels': isinstance(self.labels, list | None)
      and all(isinstance(label, str) for label in self.labels or ()),
      'mean': len(self.mean) == 3 and all(map(math.isfinite, self.mean)),
      'std': len(self.std) == 3 and all(0 < x < math.inf for x in self.std),
    }
    for name, holds in right.items():
      if not holds:
        raise ValueError(f'its {name} is one that no model has')

  @property
  def is_normalized(self) -> bool:
    """Whether pixels were brought to another range than [-1, 1]."""
    return (self.mean, self.std) != (_HALF, _HALF)

  @classmethod
  def read(cls, folder: epath.Path) -> 'ModelMetadata':
    """From config.json and what stands beside it; `folder` may have none of them.

    Raises:
      UserError: when one of them is damaged.
    """
    try:
      config = _read_json(folder / 'config.json')
      if 'architecture' in config or 'pretrained_cfg' in config:
        return cls._from_timm(config)
      if 'model_type' in config or 'architectures' in config:
        return cls._from_hugging_face(config, _read_json(folder / 'preprocessor_config.json'))
      if (folder / 'config.json').exists():
        for name in ('image_size', 'crop_fraction', 'loss'):
          _ = config[name]  # a KeyError names what is missing
      labels = None
      if (folder / 'labels.txt').exists():
        labels = read_text(folder / 'labels.txt').splitlines()
      return cls.from_facts(config, labels)
    except (*_DAMAGE, OSError, UserError) as error:
      raise UserError(
        f'{folder}/config.json or a file beside it is damaged ({_reason(error)}).'
      ) from None

  @classmethod
  def from_facts(cls, facts: Mapping[str, Any], labels: list[str] | None) -> 'ModelMetadata':
    """From what `facts` wrote."""
    size, model = facts.get('image_size'), facts.get('model') or {}
    names = ('crop_fraction', 'loss', 'gelu', 'layer_norm_epsilon')
    return cls(
      image_size=None if size is None else height_width(size),
      labels=labels if labels is not None else facts.get('labels'),
      num_heads=model.get('num_heads'),
      **{name: facts[name] for name in names if name in facts},
    )

  @classmethod
  def from_metadata(cls, metadata: Mapping[str, str], name: str) -> 'ModelMetadata':
    """From the header of a safetensors file; empty for those of other people."""
    try:
      return cls.from_facts(json.loads(metadata.get(FACTS, '{}')), None)
    except (*_DAMAGE, UserError) as error:
      raise UserError(f'{name}: {FACTS} in its header is damaged ({_reason(error)}).') from None

  @classmethod
  def of_run(cls, workdir: epath.Path) -> 'ModelMetadata':
    """From the config.json of a workdir whose run has not ended."""
    try:
      run = _read_json(workdir / 'config.json')
      facts = {**run, **(run.get('data') or {}), **(run.get('model') or {})}
      facts.pop('model', None)  # its heads are those of the variant, where they are 0
      return cls.from_facts(facts, None)
    except (*_DAMAGE, OSError, UserError) as error:
      raise UserError(f'{workdir}/config.json is damaged ({_reason(error)}).') from None

  @classmethod
  def _from_hugging_face(
    cls, config: Mapping[str, Any], processor: Mapping[str, Any]
  ) -> 'ModelMetadata':
    config = {**_TRANSFORMERS, **config}
    gelu, size = config['hidden_act'], config['image_size']
    if gelu not in _GELUS:
      raise ValueError(f'the activation {gelu} is not known here')
    names = config.get('id2label') or {}
    labels = [names[str(i)] for i in range(len(names))]
    if labels == [f'LABEL_{i}' for i in range(len(labels))]:
      labels = None
    own = config.get(FACTS) or {}
    multi_label = config.get('problem_type') == 'multi_label_classification'
    mean, std = processor.get('image_mean') or _HALF, processor.get('image_std') or _HALF
    if not processor.get('do_normalize', True):
      mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    factor = processor.get('rescale_factor', 1 / 255) if processor.get('do_rescale', True) else 1
    if not abs(scale := 255 * factor - 1) <= 1e-6:  # pixels did not come to [0, 1] before it
      mean, std = ([x / (scale + 1) for x in values] for values in (mean, std))
    return cls(
      image_size=height_width(size if isinstance(size, int) else tuple(size)),
      crop_fraction=own.get('crop_fraction', _crop_fraction(processor)),
      loss=own.get('loss', 'sigmoid' if multi_label else 'softmax'),
      labels=labels or None,
      num_heads=config['num_attention_heads'],
      gelu=_GELUS[gelu],
      layer_norm_epsilon=float(config['layer_norm_eps']),
      mean=tuple(map(float, mean)),
      std=tuple(map(float, std)),
    )

  @classmethod
  def _from_timm(cls, config: Mapping[str, Any]) -> 'ModelMetadata':
    about, arguments = config.get('pretrained_cfg') or {}, config.get('model_args') or {}
    size = arguments.get('img_size') or (about.get('input_size') or [3, 224, 224])[1:]
    layer = arguments.get('act_layer', 'gelu_tanh')
    return cls(
      image_size=height_width(size if isinstance(size, int) else tuple(size)),
      crop_fraction=about.get('crop_pct') or DEFAULT_CROP_FRACTION,
      labels=config.get('label_names') or about.get('label_names'),
      num_heads=arguments.get('num_heads'),
      gelu=_GELUS[layer],
      mean=tuple(map(float, about.get('mean') or _HALF)),
      std=tuple(map(float, about.get('std') or _HALF)),
    )

  def with_transformers_defaults(self) -> 'ModelMetadata':
    """With the numerics of `ViTForImageClassification`, for its weights without a config.json."""
    return dataclasses.replace(
      self,
      gelu=_GELUS[_TRANSFORMERS['hidden_act']],
      layer_norm_epsilon=_TRANSFORMERS['layer_norm_eps'],
    )

  def check_classes(self, num_classes: int, name: str) -> None:
    """Raises `UserError` unless there are as many labels as classes."""
    if num_classes and self.labels is not None and len(self.labels) != num_classes:
      raise UserError(
        f'{name}: there are {len(self.labels)} labels beside it, the head has {num_classes} '
        'classes.'
      )

  def unnormalized(self, tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Lets a model take pixels in [-1, 1]: its own normalization goes into the first layer."""
    tensors = dict(tensors)
    if not self.is_normalized:
      return tensors
    if 'conv_root/kernel' in tensors or 'root_block/conv_root/kernel' in tensors:
      raise UserError(
        f'{name} normalizes pixels with mean {self.mean}, which the standardized first layer '
        'of a ResNet cannot take over.'
      )
    if not {'embedding/kernel', 'embedding/bias'} <= tensors.keys():
      return tensors  # no model of ours, as will be said
    kernel, bias = tensors['embedding/kernel'], tensors['embedding/bias']
    mean, std = np.float32(self.mean), np.float32(self.std)
    tensors['embedding/kernel'] = kernel.map(
      kernel.shape, lambda x: np.asarray(x, np.float32) / (2 * std[:, None])
    )
    tensors['embedding/bias'] = bias.map(
      bias.shape,
      lambda x: (
        np.float32(x)
        + np.einsum('hwcd,c->d', np.asarray(kernel.read(), np.float32), (0.5 - mean) / std)
      ),
    )
    return tensors


def read_labels(path: str, num_classes: int) -> list[str]:
  """The names in a text file, a line each.

  Raises:
    UserError: for a file that cannot be read, or names another number of classes.
  """
  try:
    labels = read_text(epath.Path(path).expanduser()).splitlines()
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read ({first_line(error)}).') from None
  if len(labels) != num_classes:
    raise UserError(f'{path} has {len(labels)} lines; the model has {num_classes} classes.')
  return labels


def _reason(error: Exception) -> str:
  return f'no {first_line(error)}' if isinstance(error, KeyError) else first_line(error)


def _read_json(path: epath.Path) -> dict[str, Any]:
  if not path.exists():
    return {}
  found = json.loads(read_text(path))
  if not isinstance(found, dict):
    raise ValueError(f'{path.name} holds no table')
  return found


def _crop_fraction(processor: Mapping[str, Any]) -> float:
  """The part of an image that a processor of Transformers keeps."""
  size, crop = processor.get('size'), processor.get('crop_size')
  if not processor.get('do_center_crop') or not isinstance(size, dict) or not crop:
    return 1.0
  shortest = size.get('shortest_edge') or min(size['height'], size['width'])
  kept = crop if isinstance(crop, int) else min(crop['height'], crop['width'])
  return min(kept / shortest, 1.0)
