"""digits: scikit-learn's 1,797 handwritten digits, installed with the package."""

from typing import Any

import numpy as np

from vit_jax.data.sources.source import Source
from vit_jax.errors import UserError


def split_names(path: str) -> tuple[str, ...]:
  del path
  return 'train', 'test'


def open_split(path: str, split: str) -> Source:
  """Opens a split: train (1,437), test (360; stratified, always the same), or all."""
  from sklearn import datasets, model_selection

  del path
  if split not in ('train', 'test', 'all'):
    raise UserError(f'digits has the splits train, test and all, not {split!r}.')
  digits: Any = datasets.load_digits()
  everything = np.arange(len(digits.target))
  train, test = model_selection.train_test_split(
    everything, test_size=0.2, random_state=0, stratify=digits.target
  )
  indices = {'train': train, 'test': test, 'all': everything}[split]
  images = np.rint(digits.images[indices] * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255
  images = np.repeat(images[..., None], 3, axis=-1)
  labels = digits.target[indices].astype(np.int32)
  return Source(
    name=f'digits ({split})',
    size=len(indices),
    read=lambda i: (images[i], labels[i]),
    class_names=tuple(map(str, digits.target_names)),
    labels=lambda: labels,
    shuffled=True,
  )
