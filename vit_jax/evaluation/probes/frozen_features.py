"""Frozen features of a split: what few-shot, nearest-neighbor and linear evaluations work on."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.evaluation.eval_step import run_batches
from vit_jax.models import features as model_features
from vit_jax.models.build import Model
from vit_jax.models.pixels import scale_pixels


@dataclasses.dataclass(frozen=True)
class Features:
  """The features of the N examples of a split, in its order.

  Attributes:
    values: (N, D) float32, the input of the head; may be a memory-mapped file.
    labels: (N,) int32 classes.
    num_classes: of the data.
    name: of the data, for messages.
  """

  values: np.ndarray
  labels: np.ndarray
  num_classes: int
  name: str


def make_feature_step(model: Model) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
  """Returns feature_step(params, batch) -> {'features': (B, D) float32, 'label', 'mask': (B,)}.

  The batch is as for `make_eval_step`, with one label per example; callers add `jit` and
  shardings, with replicated outputs.
  """

  def feature_step(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    values = model_features.features(model, params, scale_pixels(batch['image']))
    return {'features': values.astype(jnp.float32), 'label': batch['label'], 'mask': batch['mask']}

  return feature_step


def extract(
  feature_step: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (features, labels), (n, D) float32 and (n,) int32, of the readable examples in order.

  Args:
    feature_step: as `make_feature_step` makes it.
    params: the parameter tree.
    batches: padded and masked, as `DataLoader` yields them.

  Raises:
    StoppedError: when the run must stop.
  """
  for rows in run_batches(feature_step, params, batches):
    yield rows['features'][rows['mask']], rows['label'][rows['mask']].astype(np.int32)


def gather(
  rows: Iterable[tuple[np.ndarray, np.ndarray]], size: int, dim: int
) -> tuple[np.ndarray, np.ndarray]:
  """Gathers what `extract` yields of at most `size` examples: (n, dim) float32, (n,) int32."""
  values, labels, count = np.empty((size, dim), np.float32), np.empty(size, np.int32), 0
  for features, classes in rows:
    values[count : count + len(features)] = features
    labels[count : count + len(classes)] = classes
    count += len(features)
  return values[:count], labels[:count]
