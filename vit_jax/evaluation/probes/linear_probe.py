"""Linear probes of frozen features: logistic regression by L-BFGS, and classifiers by SGD."""

from collections.abc import Sequence

from vit_jax.evaluation.probes import logistic_regression, sgd_probe
from vit_jax.evaluation.probes.frozen_features import Features


def evaluate(
  train: Features,
  test: Features,
  *,
  c_grid: Sequence[float] = logistic_regression.C_GRID,
  learning_rates: Sequence[float] = sgd_probe.LEARNING_RATES,
  steps: int = 12_500,
  batch_size: int = 1_024,
  seed: int = 0,
) -> dict[str, float]:
  """Scores both probes; an empty grid leaves its probe out.

  Args:
    train: the examples to train on.
    test: the examples to score.
    c_grid: of `logistic_regression.evaluate`.
    learning_rates, steps, batch_size, seed: of `sgd_probe.evaluate`.

  Returns:
    The metrics of `logistic_regression.evaluate` with the prefix `lbfgs_`, those of
    `sgd_probe.evaluate` with the prefix `sgd_`.

  Raises:
    UserError: as these two.
  """
  metrics = {}
  if c_grid:
    result = logistic_regression.evaluate(train, test, c_grid=c_grid)
    metrics |= {f'lbfgs_{name}': value for name, value in result.items()}
  if learning_rates:
    result = sgd_probe.evaluate(
      train, test, learning_rates=learning_rates, steps=steps, batch_size=batch_size, seed=seed
    )
    metrics |= {f'sgd_{name}': value for name, value in result.items()}
  return metrics
