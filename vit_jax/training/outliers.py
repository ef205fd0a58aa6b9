"""Skips updates whose gradient norm is an outlier: parameters and moments stay as they are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


class OutlierState(NamedTuple):
  """What is known of the gradient norms of a run; the last entry of the optimizer's state."""

  sum_of_norms: Array  # float32, weighted: divided by the sum of the weights it is the mean
  num_norms: Array  # int32, in the sum
  skipped: Array  # int32, the updates skipped so far
  skipped_in_a_row: Array  # int32, those since the last update that was not


def skip_outliers(
  optimizer: optax.GradientTransformation, factor: float, decay: float
) -> optax.GradientTransformation:
  """Skips the updates whose gradient norm is larger than `factor` times its running mean.

  The mean is exponential. It counts an outlier as the limit that it exceeds, so that a lasting
  change of the norms ends the skipping, and a single outlier hardly moves it. Before
  1 / (1 - decay) norms are known, none is an outlier. The learning rate follows the number of the
  step.

  Args:
    optimizer: a chain that ends in the learning rate's schedule.
    factor: more than 1.
    decay: of the mean, in [0, 1).

  Returns:
    An optimizer whose state is that of `optimizer` followed by an `OutlierState`.
  """

  def init(params: Any) -> Any:
    zero = jnp.int32(0)
    return *optimizer.init(params), OutlierState(jnp.float32(0), zero, zero, zero)  # pyright: ignore

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    before, norms = tuple(state[:-1]), state[-1]
    norm = optax.tree.norm(updates)
    limit, norms = _observe(norm, norms, factor, decay)
    is_outlier = ~(norm <= limit)  # also of a norm that is not a number
    after: Any
    updates, after = optimizer.update(updates, before, params)
    updates = jax.tree.map(lambda x: jnp.where(is_outlier, jnp.zeros_like(x), x), updates)
    keep_old = lambda old, new: jnp.where(is_outlier, old, new)  # noqa: E731
    moments = jax.tree.map(keep_old, before[:-1], after[:-1])
    norms = norms._replace(
      skipped=norms.skipped + is_outlier,
      skipped_in_a_row=jnp.where(is_outlier, norms.skipped_in_a_row + 1, 0),
    )
    return updates, (*moments, after[-1], norms)

  return optax.GradientTransformation(init, update)


def _observe(
  norm: Array, norms: OutlierState, factor: float, decay: float
) -> tuple[Array, OutlierState]:
  """The largest norm that is not an outlier, and the running mean updated with a finite norm."""
  weight = 1 - jnp.float32(decay) ** norms.num_norms
  mean = norms.sum_of_norms / jnp.where(norms.num_norms > 0, weight, 1)
  limit = jnp.where(norms.num_norms >= round(1 / (1 - decay)), factor * mean, jnp.inf)
  total = decay * norms.sum_of_norms + (1 - decay) * jnp.minimum(norm, limit)
  is_finite = jnp.isfinite(norm)
  return limit, norms._replace(
    sum_of_norms=jnp.where(is_finite, total, norms.sum_of_norms),
    num_norms=norms.num_norms + is_finite,
  )


def outlier_metrics(opt_state: Any) -> dict[str, Array]:
  """{'train/skipped_updates', 'train/skipped_in_a_row'} as float32; {} without `skip_outliers`."""
  norms = opt_state[-1]
  if not isinstance(norms, OutlierState):
    return {}
  return {
    'train/skipped_updates': jnp.float32(norms.skipped),
    'train/skipped_in_a_row': jnp.float32(norms.skipped_in_a_row),
  }
