"""Multinomial logistic regression on frozen features, solved by L-BFGS in float64.

The protocol of DINOv2 and DINOv3 (`eval/log_regression.py`): the features as they are, an L2
penalty on the kernel, none on the bias; the inverse penalty C is the one of a grid that is best on
a tenth of the train examples, and the classifier that is tested is trained on all of them. Theirs
is a tenth of all, ours one of each class.

SciPy's L-BFGS-B minimizes, as in scikit-learn's `LogisticRegression`, and the objective is the
same, but for two classes: here they have a column each, so that C is half of scikit-learn's. That
needs all features in float64, and all scores: of 1.3 M x 1,024 features and 1,000 classes 10 GB
each. Here the loss is computed for blocks of examples, on a GPU if there is one, else on the CPU:
TPUs have no float64. The device holds the features in float32. L-BFGS sees features whose mean is
zero: that moves only the bias, which has no penalty, and takes fewer iterations.

Shapes: N examples, R rows of a block, D width of the features, C classes of the train examples.
"""

import dataclasses
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import signals
from vit_jax.evaluation.probes import feature_splits
from vit_jax.evaluation.probes.frozen_features import Features

C_GRID = tuple(np.logspace(-6, 5, 45).tolist())  # of DINOv2 and DINOv3
_BLOCK = 8_192


@dataclasses.dataclass(frozen=True)
class _Block:
  rows: slice
  values: jax.Array  # (R, D) float32, on the device
  labels: jax.Array  # (R,) int32
  mean: jax.Array  # (D,) float64, of all blocks

  @property
  def arrays(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    return self.values, self.labels, self.mean


def evaluate(
  train: Features,
  test: Features,
  *,
  c_grid: Sequence[float] = C_GRID,
  tolerance: float = 1e-4,
  max_iterations: int = 1_000,
) -> dict[str, float]:
  """Chooses C on a tenth of the train examples, trains on all, scores the test examples.

  Args:
    train: the examples to train on; a class without any is never predicted.
    test: the examples to score.
    c_grid: the values of C to choose from, positive; of equal accuracies the one with the lowest
      loss wins.
    tolerance: of the largest entry of the gradient of the mean loss; scikit-learn's default.
    max_iterations: of L-BFGS, for each C.

  Returns:
    `accuracy`; `held_out_accuracy` and `c` of the chosen C.

  Raises:
    UserError: if no class has two train examples; and as `feature_splits.check_splits`.
  """
  feature_splits.check_splits(train, test)
  held_out = feature_splits.held_out(train)
  classes, labels = np.unique(train.labels, return_inverse=True)
  blocks = _to_device(train.values, labels)
  weights = np.zeros((train.values.shape[1] + 1, len(classes)))
  best = None
  for c in sorted(c_grid):  # each starts at the solution of the one before
    weights = _minimize(blocks, ~held_out, c, weights, tolerance, max_iterations)
    accuracy, loss = _score(blocks, held_out, weights)
    if best is None or (accuracy, -loss) > best[:2]:
      best = accuracy, -loss, c, weights
  assert best is not None
  accuracy, _, c, weights = best
  is_used = np.ones_like(held_out)
  weights = _minimize(blocks, is_used, c, weights, tolerance, max_iterations)
  kernel, bias = _of_all_classes(weights, np.asarray(blocks[0].mean), classes, train.num_classes)
  test_accuracy = feature_splits.linear_accuracy(test, kernel, bias)
  return {'accuracy': test_accuracy, 'held_out_accuracy': accuracy, 'c': c}


def fit(
  train: Features, c: float, *, tolerance: float = 1e-4, max_iterations: int = 1_000
) -> tuple[np.ndarray, np.ndarray]:
  """Minimizes c * (sum of the losses) + |kernel|^2 / 2.

  Returns:
    (D, num_classes) kernel and (num_classes,) bias, float64; -inf for classes without examples.
  """
  classes, labels = np.unique(train.labels, return_inverse=True)
  blocks = _to_device(train.values, labels)
  weights = np.zeros((train.values.shape[1] + 1, len(classes)))
  is_used = np.ones(len(labels), bool)
  weights = _minimize(blocks, is_used, c, weights, tolerance, max_iterations)
  return _of_all_classes(weights, np.asarray(blocks[0].mean), classes, train.num_classes)


def _minimize(
  blocks: Sequence[_Block],
  is_used: np.ndarray,
  c: float,
  start: np.ndarray,
  tolerance: float,
  max_iterations: int,
) -> np.ndarray:
  """Returns the weights (D + 1, C) float64 of centered features, the last row the bias.

  Args:
    blocks: all examples.
    is_used: (N,) bool, the examples to train on.
    c: the inverse penalty.
    start: (D + 1, C), where to begin.
    tolerance, max_iterations: as in `evaluate`.
  """
  from scipy import optimize  # takes long to import

  count = np.count_nonzero(is_used)

  def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
    signals.check_interrupted()
    weights = flat.reshape(start.shape)
    with jax.enable_x64(True):
      on_device = jax.device_put(weights, blocks[0].values.sharding)
      sums = 0.0, np.zeros_like(weights)
      for block in blocks:
        of_block = _loss_and_gradient(on_device, *block.arrays, is_used[block.rows])
        sums = jax.tree.map(operator.add, sums, of_block)
    loss, gradient = jax.tree.map(lambda each: np.array(each) / count, sums)
    kernel, penalty = weights[:-1], 1 / (c * count)
    gradient[:-1] += penalty * kernel
    return float(loss) + penalty / 2 * np.sum(kernel**2), gradient.ravel()

  # The limits of scikit-learn: relative decrease of the loss, steps of a line search.
  limits = {'ftol': 64 * np.finfo(np.float64).eps, 'maxls': 50}
  options = {'gtol': tolerance, 'maxiter': max_iterations, **limits}
  result = optimize.minimize(objective, start.ravel(), jac=True, method='L-BFGS-B', options=options)
  return result.x.reshape(start.shape)


def _losses(
  weights: jax.Array, values: jax.Array, labels: jax.Array, mean: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(D + 1, C), (R, D), (R,), (D,) -> the logits (R, C) and losses (R,), float64."""
  logits = (values.astype(jnp.float64) - mean[None]) @ weights[:-1] + weights[None, -1]
  of_labels = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
  return logits, jax.nn.logsumexp(logits, axis=1) - of_labels


@jax.jit
@jax.value_and_grad
def _loss_and_gradient(
  weights: jax.Array, values: jax.Array, labels: jax.Array, mean: jax.Array, is_used: jax.Array
) -> jax.Array:
  """The sum of the losses of the examples that are used."""
  return jnp.sum(_losses(weights, values, labels, mean)[1] * is_used)


@jax.jit
def _correct_and_loss(
  weights: jax.Array, values: jax.Array, labels: jax.Array, mean: jax.Array, is_used: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The sums over the examples that are used."""
  logits, losses = _losses(weights, values, labels, mean)
  is_correct = logits.argmax(axis=1) == labels
  return jnp.sum(is_correct & is_used), jnp.sum(losses * is_used)


def _score(
  blocks: Sequence[_Block], is_used: np.ndarray, weights: np.ndarray
) -> tuple[float, float]:
  """The accuracy and the mean loss of the examples that are used."""
  with jax.enable_x64(True):
    sums = [
      jax.device_get(_correct_and_loss(weights, *block.arrays, is_used[block.rows]))
      for block in blocks
    ]
  correct, loss = np.sum(sums, axis=0) / np.count_nonzero(is_used)
  return float(correct), float(loss)


def _to_device(values: np.ndarray, labels: np.ndarray) -> list[_Block]:
  device = jax.local_devices()[0]
  if device.platform != 'gpu':
    device = jax.local_devices(backend='cpu')[0]
  mean = np.mean(values, axis=0, dtype=np.float64)
  with jax.enable_x64(True):
    return [
      _Block(rows, *jax.device_put((values[rows], labels[rows].astype(np.int32), mean), device))
      for rows in feature_splits.row_blocks(len(labels), _BLOCK)
    ]


def _of_all_classes(
  weights: np.ndarray, mean: np.ndarray, classes: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
  """The kernel and the bias of features as they are, and for the classes without examples."""
  kernel = np.zeros((len(weights) - 1, num_classes))
  bias = np.full(num_classes, -np.inf)
  kernel[:, classes], bias[classes] = weights[:-1], weights[-1] - mean @ weights[:-1]
  return kernel, bias
