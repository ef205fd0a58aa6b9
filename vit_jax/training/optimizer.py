"""Learning-rate schedules and optimizers (Section 4.1, Tables 3 and 4 of the paper)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.config import OptimizerConfig, ScheduleConfig
from vit_jax.models.lora import ADAPTER
from vit_jax.training.outliers import skip_outliers
from vit_jax.training.parameter_groups import in_head, scale_groups

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def make_schedule(config: ScheduleConfig, total_steps: int) -> Schedule:
  """step -> learning rate (float32): linear warmup times the chosen decay.

  With p = (step - warmup) / (total - warmup), clipped to [0, 1]:
    constant  base
    linear    end + (base - end) (1 - p)
    cosine    base (1 + cos(pi p)) / 2
    rsqrt     base sqrt(timescale / (timescale + max(step - warmup, 0)))

  The last `cooldown_steps` go linearly to zero (arXiv 2106.04560, Section 3.5).

  Raises:
    UserError: for a warmup that does not end before the run.
  """
  base, warmup = config.learning_rate, config.resolve_steps(total_steps).warmup_steps

  def progress(step: jax.Array) -> jax.Array:
    return jnp.clip((step - warmup) / (total_steps - warmup), 0, 1)

  def rsqrt(step: jax.Array) -> jax.Array:
    return base * jnp.sqrt(config.timescale / (config.timescale + jnp.maximum(step - warmup, 0)))

  decays = {
    'constant': lambda step: jnp.float32(base),
    'linear': lambda step: config.end + (base - config.end) * (1 - progress(step)),
    'cosine': lambda step: base * 0.5 * (1 + jnp.cos(jnp.pi * progress(step))),
    'rsqrt': rsqrt,
  }

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    rate = decays[config.decay](step)
    if warmup:
      rate = rate * jnp.minimum(1, step / warmup)
    if config.cooldown_steps:
      rate = rate * jnp.clip((total_steps - step) / config.cooldown_steps, 0, 1)
    return jnp.asarray(rate, jnp.float32)

  return schedule


_DECAYED = ('kernel', *ADAPTER)  # not biases, norms, the class token, positions


def decay_mask(params: Any) -> Any:
  """True for kernels and adapters, which are decayed."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _DECAYED, params)


def head_decay_mask(params: Any) -> Any:
  """True for the kernels of the head."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel' and in_head(path), params
  )


def _adafactor(config: OptimizerConfig, momentum_dtype: str) -> list[optax.GradientTransformation]:
  """Adafactor as arXiv 2106.04560 (Section 3.4) changed it.

  The momentum is kept, updates are not scaled by the size of a parameter, and the second moment
  decays by 1 - t^-0.8, at most `config.b2`. google-research/big_vision does not limit updates by
  default (`max_update_rms` = 0), optax does.
  """

  def second_moment_decay(step: jax.typing.ArrayLike, exponent: jax.typing.ArrayLike) -> jax.Array:
    t = jnp.asarray(step, jnp.float32) + 1
    return jnp.minimum(1 - t ** -jnp.asarray(exponent), config.b2)

  limit = config.max_update_rms
  return [
    optax.scale_by_factored_rms(
      min_dim_size_to_factor=config.min_dim_to_factor, decay_rate_fn=second_moment_decay
    ),
    optax.clip_by_block_rms(limit) if limit else optax.identity(),
    optax.ema(config.b1, debias=False, accumulator_dtype=momentum_dtype),
  ]


def make_optimizer(config: OptimizerConfig, schedule: Schedule) -> optax.GradientTransformation:
  """Clipping by global norm, the update rule, decoupled weight decay, the learning rate.

  The decay is multiplied by the learning rate (as in `optax.adamw`), and reaches kernels only.
  Both may be others for the head, and the rate for each layer; a rate is that of the decay, too.
  The parameters are those of `trained_params`: frozen ones have neither updates nor moments.

    adamw      Adam (pretraining, Table 3)
    sgd        momentum, in bfloat16 as in the released code (Table 4)
    adafactor  factored second moment, bfloat16 momentum (arXiv 2106.04560, Section 3.4)

  `config.momentum_dtype` is that of the momentum, Adam's first moment; second moments are float32.
  With `config.skip_factor` it is wrapped in `skip_outliers`.
  """
  momentum_dtype = config.momentum_dtype
  if momentum_dtype == 'auto':
    momentum_dtype = 'float32' if config.name == 'adamw' else 'bfloat16'
  rules = {
    'adamw': lambda: [
      optax.scale_by_adam(config.b1, config.b2, config.epsilon, mu_dtype=momentum_dtype)
    ],
    'sgd': lambda: [optax.trace(config.b1, accumulator_dtype=momentum_dtype)],
    'adafactor': lambda: _adafactor(config, momentum_dtype),
  }
  chain = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
  chain += rules[config.name]()
  if config.weight_decay:
    chain.append(optax.add_decayed_weights(config.weight_decay, decay_mask))
    if more := config.head_decay_multiplier - 1:
      chain.append(optax.add_decayed_weights(more * config.weight_decay, head_decay_mask))
  if {config.head_lr_multiplier, config.backbone_lr_multiplier, config.layer_decay} != {1}:
    chain.append(scale_groups(config))
  optimizer = optax.chain(*chain, optax.scale_by_learning_rate(schedule))
  if not config.skip_factor:
    return optimizer
  return skip_outliers(optimizer, config.skip_factor, config.skip_decay)
