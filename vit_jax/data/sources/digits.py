"""digits: scikit-learn's 1,797 handwritten digits, installed with the package."""

import numpy as np

from vit_jax.data.sources.source import Source
from vit_jax.errors import UserError


def open_digits(path: str, split: str) -> Source:
  """The fixed, stratified 80/20 split of scikit-learn's digits: 1,437 train and 360 test."""
  from sklearn import datasets, model_selection

  del path
  digits = datasets.load_digits()
  train, test = model_selection.train_test_split(
    np.arange(len(digits.target)), test_size=0.2, random_state=0, stratify=digits.target
  )
  if split not in ('train', 'test', 'all'):
    raise UserError(f'digits has the splits train, test and all, not {split!r}.')
  indices = {'train': train, 'test': test, 'all': np.arange(len(digits.target))}[split]
  images = np.rint(digits.images[indices] * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255
  images = np.repeat(images[..., None], 3, axis=-1)
  labels = digits.target[indices].astype(np.int32)
  return Source(
    name=f'digits ({split})',
    size=len(indices),
    read=lambda i: (images[i], labels[i]),
    class_names=tuple(str(name) for name in digits.target_names),
  )
