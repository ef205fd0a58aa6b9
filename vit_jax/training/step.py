"""The state of a run and its pure steps; `jit` and shardings are put around them elsewhere."""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from vit_jax.models.vit import VisionTransformer
from vit_jax.training.losses import LOSSES, is_correct, targets
from vit_jax.training.mixing import mix

Array = jax.Array
Metrics = dict[str, Array]


@flax.struct.dataclass
class TrainState:
  """All a run needs to go on, arrays only.

  Attributes:
    step: int32, the number of updates made.
    params: the parameter tree (float32).
    opt_state: of the optimizer.
    average: Polyak average of the parameters (float32), or None without averaging.
  """

  step: Array
  params: Any
  opt_state: Any
  average: Any

  @property
  def eval_params(self) -> Any:
    """What is evaluated and exported: the average where there is one."""
    return self.params if self.average is None else self.average


def scale_images(images: Array) -> Array:
  """uint8 in [0, 255] -> float32 in [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def init_state(
    model: VisionTransformer,
    optimizer: optax.GradientTransformation,
    image_size: tuple[int, int],
    seed: int,
    polyak: bool,
    params: Any = None,
    channels: int = 3,
) -> TrainState:
  """The state before the first step, from `seed` or from given parameters."""
  if params is None:
    params = model.init(jax.random.key(seed), jnp.zeros((1, *image_size, channels)))['params']
  average = jax.tree.map(jnp.copy, params) if polyak else None
  return TrainState(jnp.int32(0), params, optimizer.init(params), average)


def _split(batch: dict[str, Array], parts: int) -> dict[str, Array]:
  """(B, …) -> (parts, B / parts, …); strided, so that each device keeps its own rows."""
  return jax.tree.map(
      lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), batch
  )


def make_train_step(
    model: VisionTransformer,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Array], Array],
    *,
    loss: str,
    label_smoothing: float,
    accumulation_steps: int,
    polyak_decay: float,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
) -> Callable[[TrainState, dict[str, Array], Array], tuple[TrainState, Metrics]]:
  """Returns train_step(state, batch, key) -> (state, metrics).

  The batch is {'image': (B, H, W, C) uint8, 'label': (B,) int32 or (B, C)}; the key is the
  run's, and each step folds its number in. Metrics are float32 scalars.
  """

  def loss_fn(params: Any, batch: dict[str, Array], key: Array) -> Array:
    logits = model.apply(
        {'params': params},
        scale_images(batch['image']),
        deterministic=False,
        rngs={'dropout': key},
    )
    wanted = targets(batch['label'], model.num_classes, label_smoothing)
    return LOSSES[loss](logits, wanted).mean()

  def gradients(params: Any, batch: dict[str, Array], key: Array) -> tuple[Array, Any]:
    if accumulation_steps == 1:
      return jax.value_and_grad(loss_fn)(params, batch, key)

    def add(total: Any, part: tuple[dict[str, Array], Array]) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_fn)(params, *part)), None

    zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
    keys = jax.random.split(key, accumulation_steps)
    total, _ = jax.lax.scan(add, zeros, (_split(batch, accumulation_steps), keys))
    return jax.tree.map(lambda x: x / accumulation_steps, total)

  def train_step(
      state: TrainState, batch: dict[str, Array], key: Array
  ) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(key, state.step)
    if mixup_alpha or cutmix_alpha:  # the whole batch, so that accumulation changes no partner
      key, mix_key = jax.random.split(key)
      batch = mix(batch, model.num_classes, mixup_alpha, cutmix_alpha, mix_key)
    value, grads = gradients(state.params, batch, key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
      average = optax.incremental_update(params, average, 1 - polyak_decay)
    metrics = {
        'train/loss': value,
        'train/gradient_norm': optax.tree.norm(grads),
        'train/parameter_norm': optax.tree.norm(params),
        'train/learning_rate': schedule(state.step),
    }
    return TrainState(state.step + 1, params, opt_state, average), metrics

  return train_step


def make_eval_step(
    model: VisionTransformer, loss: str
) -> Callable[[Any, dict[str, Array]], Metrics]:
  """Returns eval_step(params, batch) -> sums over the examples with batch['mask'].

  {'examples': int32, 'correct': int32, 'loss': float32}, all scalars.
  """

  def eval_step(params: Any, batch: dict[str, Array]) -> Metrics:
    mask = batch['mask']
    logits = model.apply({'params': params}, scale_images(batch['image']))
    losses = LOSSES[loss](logits, targets(batch['label'], model.num_classes))
    return {
        'examples': mask.sum(dtype=jnp.int32),
        'correct': (is_correct(logits, batch['label']) & mask).sum(dtype=jnp.int32),
        'loss': jnp.where(mask, losses, 0).sum(),
    }

  return eval_step
