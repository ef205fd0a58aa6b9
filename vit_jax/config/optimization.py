"""The sections `optimizer` and `schedule` of the config."""

import dataclasses
import math
import re
from typing import Literal

from vit_jax.config.fields import NOT_NEGATIVE, POSITIVE, RATE, Range, Section, field

PROJECTIONS = ('query', 'key', 'value', 'out', 'mlp')  # that can have adapters


def _are_patterns(values: tuple[str, ...]) -> bool:
  try:
    return all(map(re.compile, values))
  except re.error:
    return False


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section, path='optimizer'):
  """The update rule, for all parameters or by groups: the head (with pre_logits), and the rest."""

  name: Literal['adamw', 'sgd', 'adafactor'] = field(
    'adamw', 'adamw (Table 3), sgd with momentum (Table 4), adafactor (arXiv 2106.04560)'
  )
  b1: float = field(0.9, 'momentum (first-moment decay)', RATE)
  momentum_dtype: Literal['auto', 'float32', 'bfloat16'] = field(
    'auto', 'of the momentum (first moment); auto: float32 for adamw, else bfloat16'
  )
  b2: float = field(
    0.999, 'adamw: second-moment decay; adafactor: its largest value, 1 - t^-0.8 before', RATE
  )
  epsilon: float = field(1e-8, 'adamw: added to the denominator', POSITIVE)
  max_update_rms: float = field(
    1.0,
    "adafactor: largest root mean square of a tensor's update, before momentum and rate (arXiv "
    '1804.04235, Section 6); 0: any (big_vision)',
    NOT_NEGATIVE,
  )
  min_dim_to_factor: int = field(
    32, 'adafactor: second moments with two axes of at least this size are factored', POSITIVE
  )
  weight_decay: float = field(0.0, 'decoupled, on kernels only', NOT_NEGATIVE)
  head_decay_multiplier: float = field(
    1.0, 'times weight_decay: that of the head (100 in arXiv 2106.04560)', NOT_NEGATIVE
  )
  head_lr_multiplier: float = field(
    1.0, 'times the learning rate: that of the head; 0: it is frozen', NOT_NEGATIVE
  )
  backbone_lr_multiplier: float = field(
    1.0, 'the same of all other parameters; 0: only the head is trained', NOT_NEGATIVE
  )
  freeze: tuple[str, ...] = field(
    (),
    'regular expressions of whole parameter names; those that match are not trained, as '
    "('embedding/.*', 'Transformer/encoderblock_[0-5]/.*')",
    Range('regular expressions', _are_patterns),
  )
  layer_decay: float = field(
    1.0,
    'times the learning rate, for each layer from the head down (arXiv 2106.08254): '
    'layer_decay^(depth + 1 - i) for block i, from 1, and i = 0 before the blocks; 1: none',
    Range('more than 0 and at most 1', lambda x: 0 < x <= 1),
  )
  clip_norm: float = field(1.0, 'largest global norm of the gradient; 0: no clipping', NOT_NEGATIVE)
  skip_factor: float = field(
    0.0,
    'an update is skipped if its gradient norm is more than this times the running mean; 0: none',
    Range('0 or more than 1', lambda x: x == 0 or 1 < x < math.inf),
  )
  skip_decay: float = field(0.99, 'decay of that mean; none is skipped in 1 / (1 - it) steps', RATE)

  def __post_init__(self):
    super().__post_init__()
    if not self.head_lr_multiplier and not self.backbone_lr_multiplier:
      self.refuse(
        'backbone_lr_multiplier', 'so is head_lr_multiplier; one of them must be positive'
      )


@dataclasses.dataclass(frozen=True)
class LoraConfig(Section, path='lora'):
  """Low-rank adaptation (arXiv 2106.09685) of init_from: adapters and head are trained alone."""

  rank: int = field(0, 'of the adapters; 0: none, and all parameters are trained', NOT_NEGATIVE)
  alpha: float = field(8.0, 'the adapters are scaled by alpha / rank', POSITIVE)
  projections: tuple[str, ...] = field(
    ('query', 'value'),
    'of each block that have adapters; mlp: all layers of the MLP',
    Range(
      f'at least one of {", ".join(PROJECTIONS)}', lambda x: len(x) > 0 and set(x) <= {*PROJECTIONS}
    ),
  )

  @property
  def scale(self) -> float:
    """What the product of an adapter is multiplied by."""
    return self.alpha / self.rank if self.rank else 0.0


NO_LORA = LoraConfig()


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Section, path='schedule'):
  """The learning rate of each step."""

  decay: Literal['cosine', 'linear', 'rsqrt', 'constant'] = field(
    'cosine', 'shape of the schedule after the warmup'
  )
  learning_rate: float = field(1e-3, 'peak learning rate', NOT_NEGATIVE)
  warmup_steps: float = field(
    0.0,
    'steps of linear warmup; below 1: a share of the run',
    Range(
      'a share of the run below 1, or a whole number of steps',
      lambda x: 0 <= x < math.inf and (x < 1 or x == round(x)),
    ),
  )
  end: float = field(0.0, 'linear: final learning rate', NOT_NEGATIVE)
  timescale: float = field(10_000.0, 'rsqrt: timescale in steps', POSITIVE)
  cooldown_steps: int = field(0, 'steps of linear decay to zero at the end', NOT_NEGATIVE)

  def resolve_steps(self, total_steps: int) -> 'ScheduleConfig':
    """The schedule with a whole number of warmup steps.

    Raises:
      UserError: when the warmup does not end before the run does.
    """
    share_or_steps = self.warmup_steps
    steps = round(share_or_steps * total_steps) if share_or_steps < 1 else share_or_steps
    if steps >= total_steps:
      self.refuse(
        'warmup_steps', f'the run has {total_steps} steps, and the warmup must end before it does'
      )
    return dataclasses.replace(self, warmup_steps=float(steps))
