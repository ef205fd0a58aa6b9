"""The step that scores one batch; callers add `jit` and shardings."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from vit_jax.models.build import Model
from vit_jax.models.losses import LOSSES, is_correct, targets
from vit_jax.models.pixels import scale_pixels


def make_eval_step(
  model: Model, loss: str
) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
  """Returns eval_step(params, batch) -> sums over the examples that batch['mask'] selects.

  The batch is {'image': (B, H, W, C) uint8, 'label': (B,) int32 or (B, classes), 'mask': (B,)
  bool}; the sums are scalars {'examples': int32, 'correct': int32, 'loss': float32}. `loss` is a
  key of LOSSES.
  """

  def eval_step(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    mask = batch['mask']
    logits = cast(jax.Array, model.apply({'params': params}, scale_pixels(batch['image'])))
    losses = LOSSES[loss](logits, targets(batch['label'], model.num_classes))
    return {
      'examples': mask.sum(dtype=jnp.int32),
      'correct': (is_correct(logits, batch['label']) & mask).sum(dtype=jnp.int32),
      'loss': jnp.where(mask, losses, 0).sum(),
    }

  return eval_step
