"""Reads one example: fetch from the source, decode, transform; handles bad examples.

Everything here is a pure function of the data, the seed and the position in the sequence of
examples, and knows nothing of devices, so threads and worker processes read the same pixels.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from vit_jax.config import AugmentConfig, OnBadExample, Preprocessing
from vit_jax.data.augmentation import transforms
from vit_jax.data.augmentation.preprocessing import preprocess
from vit_jax.data.decoding.images import LazyImage, open_image
from vit_jax.data.loading.shared_memory import Shapes, Slot
from vit_jax.data.sources import Source, open_source
from vit_jax.data.sources.real_labels import with_real_labels
from vit_jax.errors import BadExampleError, UserError

_MAX_SUBSTITUTES = 100  # so many bad examples in a row are not an accident


@dataclasses.dataclass(frozen=True)
class ReadConfig:
  """How to read the examples of a split, in plain values that can be sent to a worker process.

  Attributes:
    source, split: as in `open_source`.
    image_size: (height, width), pixels.
    seed: of the augmentation.
    channels: of the pixels.
    augment: random changes to training images; None for tests.
    preprocessing: of test images.
    on_bad_example: 'error' ends the run; 'skip' replaces a bad training example by another one
      and masks out a bad test example.
    labels: 'real' puts ImageNet-ReaL labels in place of those of the source.
  """

  source: str
  split: str
  image_size: tuple[int, int]
  seed: int = 0
  channels: int = 3
  augment: AugmentConfig | None = None
  preprocessing: Preprocessing = Preprocessing()
  on_bad_example: OnBadExample = 'error'
  labels: Literal['', 'real'] = ''

  def open(self) -> Source:
    """Opens the source with its labels; raises `UserError` as `open_source` and `labels` do."""
    source = open_source(self.source, self.split)
    return with_real_labels(source) if self.labels == 'real' else source


Transform = Callable[[LazyImage, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads the examples of a source.

  Attributes:
    source: the examples.
    transform: (image, rng) -> (H, W, C) uint8; the rng must be its only source of randomness.
    image_shape: (H, W, C).
    seed: of the rngs.
    substitutes: replaces a bad example by another one (training).
    masks: masks out a bad example (tests). By default a bad example is an error.
  """

  source: Source
  transform: Transform
  image_shape: tuple[int, int, int]
  seed: int = 0
  substitutes: bool = False
  masks: bool = False

  @property
  def shapes(self) -> Shapes:
    """Shape and dtype of the image, label and mask of one example."""
    label = ((self.source.num_classes,), np.uint8) if self.source.multi_label else ((), np.int32)
    return {'image': (self.image_shape, np.uint8), 'label': label, 'mask': ((), np.bool_)}

  def read(self, index: int, position: int, out: dict[str, np.ndarray]) -> dict[int, str]:
    """Reads one example into its row of a batch.

    Args:
      index: of the example; negative: padding, which is zeros.
      position: in the endless sequence of examples; determines the randomness.
      out: the example's row of 'image', 'label' and 'mask', which is overwritten.

    Returns:
      The bad examples it tried to read: {index: error message}.

    Raises:
      BadExampleError: for a bad example, unless it is substituted or masked.
      UserError: when a hundred substitutes in a row are bad, too.
    """
    bad: dict[int, str] = {}
    for array in out.values():
      array[...] = 0
    if index < 0:
      return bad
    for attempt in range(_MAX_SUBSTITUTES):
      rng = np.random.Generator(np.random.Philox(key=[self.seed, position]))
      try:
        stored, label = self.source.read(index)
        image = open_image(stored, _ExampleName(self.source, index), self.image_shape[2])
        out['image'][...] = self.transform(image, rng)
        out['label'][...] = label
        out['mask'][...] = True
        return bad
      except BadExampleError as error:
        bad[index] = str(error)
        if self.masks:
          return bad
        if not self.substitutes:
          raise BadExampleError(
            f'{str(error).rstrip(".")}; to skip it, add --config.data.on_bad_example=skip '
            '(vit_jax.evaluate: --on_bad_example=skip).'
          ) from None
      counter = np.random.Philox(key=[self.seed, position], counter=[0, 0, 0, attempt + 1])
      index = int(np.random.Generator(counter).integers(self.source.size))
    raise UserError(
      f'{_MAX_SUBSTITUTES} examples of {self.source.name} in a row cannot be read; the last '
      f'one: {next(reversed(bad.values()))}'
    )

  def read_rows(
    self, indices: Sequence[int], positions: Sequence[int], first_row: int, batch: Slot
  ) -> dict[int, str]:
    """Reads examples into the rows of a batch from `first_row` on; see `read`."""
    bad: dict[int, str] = {}
    for row, (index, position) in enumerate(zip(indices, positions, strict=True), start=first_row):
      bad |= self.read(index, position, {name: a[row : row + 1] for name, a in batch.items()})
    return bad


class _ExampleName:
  """The name of an example, looked up only when an error message prints it."""

  def __init__(self, source: Source, index: int):
    self._source, self._index = source, index

  def __str__(self) -> str:
    return self._source.describe(self._index)


def make_reader(config: ReadConfig, source: Source | None = None) -> Reader:
  """Makes the reader of a config; see `loader.open_stream`."""
  skip, size, augment = config.on_bad_example == 'skip', config.image_size, config.augment

  def transform(image: LazyImage, rng: np.random.Generator) -> np.ndarray:
    if augment is None:
      return preprocess(image.pixels(), size, config.preprocessing)
    return transforms.augment(image, size, augment, rng)

  return Reader(
    source or config.open(),
    transform,
    (*size, config.channels),
    config.seed,
    substitutes=skip and augment is not None,
    masks=skip and augment is None,
  )
