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
  """Returns eval_step(params, batch) -> the scores of the examples that batch['mask'] selects.

  The batch is {'image': (B, H, W, C) uint8, 'label': (B,) int32 or (B, classes), 'mask': (B,)
  bool}. The scores are sums, scalars {'examples': int32, 'correct': int32, 'loss': float32}, and
  for labels (B,) also 'label' and 'top_class': (B,) int32, -1 for other examples.
  `loss` is a key of LOSSES.
  """

  def eval_step(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    mask = batch['mask']
    logits = cast(jax.Array, model.apply({'params': params}, scale_pixels(batch['image'])))
    losses = LOSSES[loss](logits, targets(batch['label'], model.num_classes))
    scores = {
      'examples': mask.sum(dtype=jnp.int32),
      'correct': (is_correct(logits, batch['label']) & mask).sum(dtype=jnp.int32),
      'loss': jnp.where(mask, losses, 0).sum(),
    }
    if batch['label'].ndim == 1:
      pairs = {'label': batch['label'], 'top_class': jnp.argmax(logits, axis=-1)}
      scores |= {name: jnp.where(mask, x, -1).astype(jnp.int32) for name, x in pairs.items()}
    return scores

  return eval_step
