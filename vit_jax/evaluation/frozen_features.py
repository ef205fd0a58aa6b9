"""Frozen features of a split: what few-shot, nearest-neighbor and linear evaluations work on."""

import dataclasses

import numpy as np


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
