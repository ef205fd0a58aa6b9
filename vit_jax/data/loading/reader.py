"""One example from a source to pixels: read, decode, transform, and what to do about a bad one.

Everything here is a pure function of the data, the seed and a position in the run's sequence of
examples, and knows nothing of devices, so that it runs alike in threads and in worker processes.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from vit_jax.config import AugmentConfig
from vit_jax.data.augmentation import transforms
from vit_jax.data.decoding.images import LazyImage, open_image
from vit_jax.data.sources import Source, open_source
from vit_jax.errors import BadExampleError, UserError

# So many examples in a row are no accident; a run does not look for a good one forever.
_MOST_SUBSTITUTES = 100


@dataclasses.dataclass(frozen=True)
class ReadConfig:
  """How the examples of a split are made, in plain values, so that a process can be told.

  Attributes:
    source, split: as `open_source` takes them.
    image_size: (height, width), pixels.
    seed: of augmentation.
    channels: of the pixels.
    augment: random changes to the images, for training; None for tests.
    crop_fraction: of tests, as `transforms.central_crop` takes it.
    on_bad_example: 'error' or 'skip'.
  """

  source: str
  split: str
  image_size: tuple[int, int]
  seed: int = 0
  channels: int = 3
  augment: AugmentConfig | None = None
  crop_fraction: float = 1.0
  on_bad_example: str = 'error'


Transform = Callable[[LazyImage, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads the examples of a source.

  Attributes:
    source: the examples.
    transform: (picture, rng) -> (H, W, C) uint8; all its randomness must come from the rng.
    image_shape: (H, W, C).
    seed: of the rngs.
    substitutes: an example that cannot be read is replaced by another one (training).
    masks: … is masked out (tests). With neither it ends the run.
  """

  source: Source
  transform: Transform
  image_shape: tuple[int, int, int]
  seed: int = 0
  substitutes: bool = False
  masks: bool = False

  @property
  def shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
    """The shape and dtype of one example's image, label and mask."""
    label = ((self.source.num_classes,), np.uint8) if self.source.multi_label else ((), np.int32)
    return {'image': (self.image_shape, np.uint8), 'label': label, 'mask': ((), np.bool_)}

  def read(self, index: int, position: int, out: dict[str, np.ndarray]) -> dict[int, str]:
    """Reads one example into its places in a batch.

    Args:
      index: of the example; negative for padding, which is zeros.
      position: in the endless sequence of examples; the randomness follows from it.
      out: the example's rows of 'image', 'label' and 'mask'.

    Returns:
      The bad examples that were met, by index, and what is wrong with them.

    Raises:
      BadExampleError: when it cannot be read and that is an error.
    """
    bad: dict[int, str] = {}
    for array in out.values():
      array[...] = 0
    if index < 0:
      return bad
    for attempt in range(_MOST_SUBSTITUTES):
      rng = np.random.Generator(np.random.Philox(key=[self.seed, position]))
      try:
        stored, label = self.source.read(index)
        name = _Name(self.source, index)
        picture = open_image(stored, name, self.image_shape[2])
        out['image'][...] = self.transform(picture, rng)
        out['label'][...] = label
        out['mask'][...] = True
        return bad
      except BadExampleError as error:
        bad[index] = str(error)
        if self.masks:
          return bad
        if not self.substitutes:
          hint = 'on_bad_example=skip goes on without it'
          raise BadExampleError(f'{str(error).rstrip(".")}; {hint}.') from None
      counter = np.random.Philox(key=[self.seed, position], counter=[0, 0, 0, attempt + 1])
      index = int(np.random.Generator(counter).integers(self.source.size))
    raise UserError(
      f'{_MOST_SUBSTITUTES} examples of {self.source.name} in a row cannot be read; the last '
      f'one: {next(reversed(bad.values()))}'
    )

  def read_rows(
    self, indices: Sequence[int], positions: Sequence[int], first: int, batch: dict[str, np.ndarray]
  ) -> dict[int, str]:
    """Reads several examples into the rows from `first` on of a batch; see `read`."""
    bad: dict[int, str] = {}
    for row, (index, position) in enumerate(zip(indices, positions, strict=True), start=first):
      out = {name: array[row : row + 1] for name, array in batch.items()}
      bad |= self.read(index, position, out)
    return bad


class _Name:
  """The name of an example, looked up only when it is printed."""

  def __init__(self, source: Source, index: int):
    self._source, self._index = source, index

  def __str__(self) -> str:
    return self._source.describe(self._index)


def make_reader(recipe: ReadConfig, source: Source | None = None) -> Reader:
  """The reader that a recipe describes, of a source that is open already or opened here."""
  skip, size = recipe.on_bad_example == 'skip', tuple(recipe.image_size)
  if recipe.augment is None:

    def transform(picture: LazyImage, rng: np.random.Generator) -> np.ndarray:
      del rng
      return transforms.central_crop(picture.pixels(None), size, recipe.crop_fraction)
  else:
    augment = recipe.augment

    def transform(picture: LazyImage, rng: np.random.Generator) -> np.ndarray:
      return transforms.augment(picture, size, augment, rng)

  return Reader(
    source or open_source(recipe.source, recipe.split),
    transform,
    (*size, recipe.channels),
    recipe.seed,
    substitutes=skip and recipe.augment is not None,
    masks=skip and recipe.augment is None,
  )
