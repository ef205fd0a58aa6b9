"""Sharpness-aware minimization: SAM (arXiv 2010.01412) and GSAM (arXiv 2203.08065).

Two gradients a step, both of the whole batch (and of the same images, mixed and dropped alike), so
that the curve is the same on every mesh. The released models were trained with a perturbation of
each device, from the gradient of its own part of the batch, which depends on the number of devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.config import ScheduleConfig, StepConfig
from vit_jax.training.optimizer import Schedule

Array = jax.Array
Gradients = Callable[[Any, Any, Array], tuple[Array, Any]]  # (params, batch, key) -> (loss, grads)
_EPSILON = 1e-12  # added to norms, as in google-research/big_vision, trainers/proj/gsam/gsam.py


def make_rho(step: StepConfig, config: ScheduleConfig, schedule: Schedule) -> Schedule | None:
  """step -> radius of the perturbation (float32); None without SAM.

  It goes with the learning rate (arXiv 2203.08065, Algorithm 1): `sam_rho` at its peak and
  `sam_rho_min` at its end; constant if `sam_rho_min` is 0. During the warmup it may be smaller
  than `sam_rho_min`, as in the original code, but not negative.

  Args:
    step: has both radii.
    config, schedule: of the learning rate.
  """
  if not step.sam_rho:
    return None
  highest = config.learning_rate
  lowest = config.end if config.decay == 'linear' else 0.0
  largest, smallest = step.sam_rho, step.sam_rho_min or step.sam_rho

  def rho(step: jax.typing.ArrayLike) -> Array:
    if highest == lowest or largest == smallest:
      return jnp.float32(largest)
    share = (schedule(step) - lowest) / (highest - lowest)
    return jnp.maximum(smallest + (largest - smallest) * share, 0)

  return rho


def sharpness_aware_gradients(
  gradients: Gradients, params: Any, batch: Any, key: Array, rho: Array, alpha: float
) -> tuple[Array, Any]:
  """The loss at `params`, and the gradient that SAM or GSAM gives to the optimizer.

  SAM's is that of the loss at `params` + rho g / |g|, with the gradient g of the loss at `params`.
  GSAM subtracts `alpha` times the part of g that is orthogonal to it, which minimizes the gap
  between the two losses (arXiv 2203.08065, Section 4.2).

  Args:
    gradients: (params, batch, key) -> (loss, gradient), a pure function.
    params, batch, key: its arguments.
    rho: radius of the perturbation.
    alpha: 0 is SAM.
  """
  loss, clean = gradients(params, batch, key)
  scale = rho / (optax.tree.norm(clean) + _EPSILON)
  perturbed = jax.tree.map(lambda x, g: x + scale * g, params, clean)
  _, sharp = gradients(perturbed, batch, key)
  if not alpha:
    return loss, sharp
  norm = optax.tree.norm(sharp) + _EPSILON
  direction = jax.tree.map(lambda g: g / norm, sharp)
  along = optax.tree.sum(jax.tree.map(jnp.multiply, direction, clean))
  return loss, jax.tree.map(
    lambda g, c, unit: g - alpha * (c - along * unit), sharp, clean, direction
  )
