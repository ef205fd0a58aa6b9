"""The state of a run and its pure steps; `jit` and shardings are put around them elsewhere."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_jax.config import NO_LORA, LoraConfig, StepConfig
from vit_jax.distributed.sharding import GradientShardings
from vit_jax.models.build import Model
from vit_jax.models.lora import add_adapters, merge_adapters
from vit_jax.models.losses import LOSSES, targets
from vit_jax.models.masked_patches import MaskedPatchPredictor, draw_corruptions, score_patches
from vit_jax.models.pixels import scale_pixels
from vit_jax.training.mixup import mix
from vit_jax.training.optimizer import Schedule
from vit_jax.training.outliers import outlier_metrics
from vit_jax.training.parameter_groups import with_trained
from vit_jax.training.sharpness import sharpness_aware_gradients

Array = jax.Array
Batch = dict[str, Any]  # of arrays, or of tuples of them
Metrics = dict[str, Array]
_ADAPTERS = 1  # folded into the key of the initial values for that of the adapters


@flax.struct.dataclass
class TrainState:
  """All that a run needs to resume, arrays only."""

  step: Array  # int32, the number of updates made
  params: Any  # the parameter tree, float32
  opt_state: Any  # of the optimizer
  ema_params: Any  # exponential moving average of the parameters, float32; None without one

  @property
  def eval_params(self) -> Any:
    """The parameters that are evaluated and exported: the moving average, where one is kept."""
    return self.params if self.ema_params is None else self.ema_params


def init_state(
  model: Model,
  optimizer: optax.GradientTransformation,
  image_shape: tuple[int, int, int],
  seed: int,
  params: Any = None,
  *,
  use_ema: bool = False,
  lora: LoraConfig = NO_LORA,
  select_trained: Callable[[Any], Any] = lambda params: params,
) -> TrainState:
  """The state before the first step, with parameters drawn from `seed` unless they are given.

  Adapters are added to them; `select_trained` is as in `make_train_step`.
  """
  key = jax.random.key(seed)
  if params is None:
    params = model.init(key, jnp.zeros((1, *image_shape)))['params']
  params = add_adapters(params, lora, jax.random.fold_in(key, _ADAPTERS))
  ema_params = jax.tree.map(jnp.copy, params) if use_ema else None
  return TrainState(jnp.int32(0), params, optimizer.init(select_trained(params)), ema_params)


def _micro_batches(batch: Batch, count: int, num_parts: int) -> Batch:
  """(B, …) -> (count, parts, B / count / parts, …); strided, so that devices keep their rows."""
  return jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(num_parts, -1, count, *x.shape[1:]), 2, 0), batch
  )


def draw_batch(batch: Batch, model: Model, config: StepConfig, key: Array) -> tuple[Batch, Array]:
  """The batch with what is drawn for it and the numbers of its examples; the key for dropout.

  All is drawn for the whole batch, so that accumulation changes no partner and no patch.
  """
  if config.mixup_alpha or config.cutmix_alpha:
    key, mix_key = jax.random.split(key)
    batch = mix(batch, model.num_classes, config.mixup_alpha, config.cutmix_alpha, mix_key)
  if isinstance(model, MaskedPatchPredictor):
    key, corruption_key = jax.random.split(key)
    corruption = draw_corruptions(batch['image'], model.patch_size, corruption_key)
    batch = batch | {'corruption': corruption}
  return batch | {'example': jnp.arange(batch['image'].shape[0])}, key


def _average_decay(config: StepConfig, step: Array) -> Array | float:
  """The decay of the moving average at a step, from 1.

  With warmup as tf.train.ExponentialMovingAverage with `num_updates`, which then counts the update
  that has just been made.
  """
  if not config.ema_warmup:
    return config.ema_decay
  return jnp.minimum(config.ema_decay, (1 + step) / (10 + step))


def make_train_step(
  model: Model,
  optimizer: optax.GradientTransformation,
  schedule: Schedule,
  config: StepConfig,
  rho: Schedule | None = None,
  shardings: GradientShardings | None = None,
  select_trained: Callable[[Any], Any] = lambda params: params,
  lora_scale: float = 0.0,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
  """Returns train_step(state, batch, key) -> (state, metrics).

  The batch is {'image': (B, H, W, C) uint8, 'label': (B,) int32 or (B, C)}; the key is the
  run's, and each step folds its number in. Metrics are float32 scalars. `rho` is the radius of
  SAM's perturbation, by the number of the step; None: without SAM. `shardings` are those of the
  gradients; None: on one device. `select_trained` puts None in place of frozen parameters, which
  keep their bits, in the average, too. `lora_scale` is that of adapters, if there are any.
  """
  num_micro_batches = config.accumulation_steps

  def loss_fn(trained: Any, params: Any, batch: Batch, key: Array) -> Array:
    params = merge_adapters(with_trained(params, trained), lora_scale)
    images: Array = scale_pixels(batch['image'])
    options: Any = {'deterministic': False, 'rngs': {'dropout': key}}
    options['examples'] = batch['example']
    if isinstance(model, MaskedPatchPredictor):
      corruption = batch['corruption']
      predictions: Any = model.apply({'params': params}, images, corruption, **options)
      return score_patches(model, predictions, batch['image'], corruption)[0].mean()
    logits: Any = model.apply({'params': params}, images, **options)
    labels = targets(batch['label'], model.num_classes, config.label_smoothing)
    return LOSSES[config.loss](logits, labels).mean()

  def gradients(params: Any, trained: Any, batch: Batch, key: Array) -> tuple[Array, Any]:
    if num_micro_batches == 1:
      return jax.value_and_grad(loss_fn)(trained, params, batch, key)

    # Each part of the batch, on other devices, sums gradients of its own, so that they are added up
    # over the devices once.
    num_parts = 1 if shardings is None else shardings.num_parts
    of_parts = jax.vmap(jax.value_and_grad(loss_fn), (None, None, 0, None), spmd_axis_name='data')

    def add(total: Any, micro_batch: Batch) -> tuple[Any, None]:
      loss, grads = jax.tree.map(jnp.add, total, of_parts(trained, params, micro_batch, key))
      if shardings is not None:
        grads = jax.lax.with_sharding_constraint(grads, shardings.parts)
      return (loss, grads), None

    zeros = jax.tree.map(lambda x: jnp.zeros((num_parts, *x.shape)), (jnp.float32(0), trained))
    total, _ = jax.lax.scan(add, zeros, _micro_batches(batch, num_micro_batches, num_parts))
    return jax.tree.map(lambda x: x.mean(axis=0) / num_micro_batches, total)

  def train_step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(key, state.step)
    trained, gradients_of = select_trained(state.params), functools.partial(gradients, state.params)
    arguments = trained, *draw_batch(batch, model, config, key)
    if rho is None:
      value, grads = gradients_of(*arguments)
    else:
      radius, alpha = rho(state.step), config.gsam_alpha
      value, grads = sharpness_aware_gradients(gradients_of, *arguments, radius, alpha)
    if shardings is not None:
      grads = jax.lax.with_sharding_constraint(grads, shardings.total)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    params, ema_params = with_trained(state.params, trained), state.ema_params
    if ema_params is not None:
      decay = _average_decay(config, state.step + 1)
      average = optax.incremental_update(trained, select_trained(ema_params), 1 - decay)
      ema_params = with_trained(ema_params, average)
    metrics = {
      'train/loss': value,
      'train/gradient_norm': optax.tree.norm(grads),
      'train/parameter_norm': optax.tree.norm(params),
      'train/learning_rate': schedule(state.step),
    }
    metrics |= outlier_metrics(opt_state)
    return TrainState(state.step + 1, params, opt_state, ema_params), metrics

  return train_step
