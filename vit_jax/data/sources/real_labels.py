"""ImageNet's validation images with ReaL labels (arXiv 2006.07159) in place of their own."""

import dataclasses

import numpy as np

from vit_jax.data import imagenet
from vit_jax.data.sources.source import Example, Source, multi_hot
from vit_jax.errors import UserError
from vit_jax.text import printable, shortened

_NUM_CHECKED = 8  # examples whose names are checked first, where that reads records


def with_real_labels(source: Source) -> Source:
  """Returns the same images with labels (1000,) uint8, zeros for an image that has none.

  An image is known by its original name, ILSVRC2012_val_00000001.JPEG, in `source.location`. The
  classes are the synsets of ILSVRC2012.

  Raises:
    UserError: if images have other names: at once where files are listed, or the first records
      have them, else when such an image is read.
  """

  def number_of(i: int) -> int:
    name = source.describe(i)
    number = imagenet.val_number(name)
    if number is None:
      raise UserError(
        f'{printable(shortened(name, 400))} is not called ILSVRC2012_val_00000001.JPEG or the '
        "like, and ReaL labels are looked up by these names of ImageNet's validation images."
      )
    return number

  def read(i: int) -> Example:
    image, _ = source.read(i)
    return image, multi_hot(imagenet.real_labels()[number_of(i)], len(imagenet.synsets()))

  is_listed = source.files is not None and len(source.files()) == source.size
  step = 1 if is_listed else max(source.size // _NUM_CHECKED, 1)
  for i in np.arange(0, source.size, step).tolist():
    number_of(i)
  return dataclasses.replace(
    source,
    name=f'{source.name}, ReaL labels',
    read=read,
    class_names=imagenet.synsets(),
    multi_label=True,
    labels=None,
  )
