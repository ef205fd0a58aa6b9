"""k-nearest-neighbor accuracy of frozen features.

The protocol of DINO (arXiv 2104.14294; `eval_knn.py`): the k train examples of the highest cosine
similarity s vote for their class with the weight exp(s / temperature).

Of equal similarities the example that is first in the split counts as nearer; of classes with equal
votes the first wins. DINO leaves both open. It does not notice either if an example is its own
neighbor; here a split that is tested on itself is refused.

Similarities are computed on a device, in float32, for blocks of test and train examples, so that
only blocks are in its memory; the features are normalized block by block.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError
from vit_jax.evaluation.probes import feature_splits
from vit_jax.evaluation.probes.frozen_features import Features
from vit_jax.text import plural

_TEST_BLOCK, _TRAIN_BLOCK = 2_048, 16_384  # their similarities have 134 MB


def evaluate(
  train: Features,
  test: Features,
  *,
  neighbors: Sequence[int] = (10, 20, 100, 200),
  temperature: float = 0.07,
) -> dict[str, float]:
  """Scores the test examples by votes of their nearest train examples.

  Args:
    train: the examples that vote.
    test: the examples to score.
    neighbors: numbers of examples that vote, k.
    temperature: of the votes, positive.

  Returns:
    `accuracy_{k}nn` for each k.

  Raises:
    UserError: if k is larger than the number of train examples; and as
      `feature_splits.check_splits`.
  """
  feature_splits.check_splits(train, test)
  check_neighbors(len(train.labels), neighbors, train.name)
  correct = dict.fromkeys(sorted(neighbors), 0)
  for rows, similarities, indices in nearest(train, test, max(neighbors)):
    weights = np.exp((similarities - similarities[:, :1]).astype(np.float64) / temperature)
    voters = train.labels[indices]
    for count in correct:
      winners = _winners(voters[:, :count], weights[:, :count], train.num_classes)
      correct[count] += int(np.count_nonzero(winners == test.labels[rows]))
  return {f'accuracy_{k}nn': count / len(test.labels) for k, count in correct.items()}


def check_neighbors(num_examples: int, neighbors: Sequence[int], name: str) -> None:
  """Raises `UserError` if `name` has fewer examples than neighbors."""
  if max(neighbors) > num_examples:
    raise UserError(
      f'{name} has {plural(num_examples, "example")}, fewer than the {max(neighbors)} neighbors '
      'that should vote.'
    )


def nearest(
  train: Features,
  test: Features,
  count: int,
  test_block: int = _TEST_BLOCK,
  train_block: int = _TRAIN_BLOCK,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
  """Yields the nearest train examples of each block of test examples.

  Args:
    train, test: the features.
    count: number of neighbors, k, at most that of the train examples.
    test_block, train_block: numbers of examples; they change no result but the rounding.

  Yields:
    (rows, similarities, indices): a block of R test examples; (R, k) float32, descending; (R, k)
    int32 train examples.
  """
  train_block = min(train_block, len(train.labels))
  for rows in feature_splits.row_blocks(len(test.labels), test_block):
    queries = _normalize(jnp.asarray(test.values[rows]))
    shape = (len(queries), count)
    best = (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
    for keys in feature_splits.row_blocks(len(train.labels), train_block):
      # The last block overlaps the one before, whose rows are left out: one shape, one program.
      start = min(keys.start, len(train.labels) - train_block)
      values = train.values[start : start + train_block]
      best = _merge(best, queries, values, np.int32(start), np.int32(keys.start))
    yield rows, np.asarray(best[0]), np.asarray(best[1])


@functools.partial(jax.jit, donate_argnums=0)
def _merge(
  best: tuple[jax.Array, jax.Array],
  queries: jax.Array,
  values: jax.Array,
  start: jax.Array,
  first_new: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The best of the neighbors so far and of train examples start, start + 1, …"""
  similarities = jnp.matmul(queries, _normalize(values).T, precision='highest')
  indices = start + jnp.arange(len(values), dtype=jnp.int32)
  similarities = jnp.where(indices[None] >= first_new, similarities, -jnp.inf)
  # `top_k` prefers the first of equal values: those so far, and then lower indices.
  all_indices = jnp.concatenate([best[1], jnp.broadcast_to(indices, similarities.shape)], axis=1)
  top, places = jax.lax.top_k(jnp.concatenate([best[0], similarities], axis=1), best[0].shape[1])
  return top, jnp.take_along_axis(all_indices, places, axis=1)


def _normalize(values: jax.Array) -> jax.Array:
  """Rows of norm 1; rows of zeros stay zero."""
  norms = jnp.linalg.norm(values, axis=1, keepdims=True)
  return values / jnp.maximum(norms, 1e-12)


def _winners(voters: np.ndarray, weights: np.ndarray, num_classes: int) -> np.ndarray:
  """The class with the largest sum of weights in each row: (R, k), (R, k) -> (R,)."""
  keys = np.arange(len(voters))[:, None] * num_classes + voters
  votes = np.bincount(keys.ravel(), weights.ravel(), minlength=len(voters) * num_classes)
  return votes.reshape(len(voters), num_classes).argmax(axis=1)
