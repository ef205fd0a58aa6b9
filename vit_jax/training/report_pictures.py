"""The pictures of a run's report: its first batch, and its most confident mistakes.

Both are read again from the data, which takes as long as a few examples and nothing of the devices.
"""

from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from vit_jax.config import StepConfig
from vit_jax.data.loading.loader import Stream
from vit_jax.data.loading.skipping import batch_numbers
from vit_jax.data_uri import picture_uri
from vit_jax.errors import UserError
from vit_jax.evaluation.classification import Result
from vit_jax.models.build import Model
from vit_jax.run_report.saved_pictures import MAX_PICTURES, Picture, Pictures
from vit_jax.text import plural
from vit_jax.training.step import draw_batch

_MAX_SIDE = 192  # pixels; larger images are shrunk
_MAX_LABELS = 4  # that are named, of several


def first_batch(stream: Stream, model: Model, step: StepConfig, first_step: int) -> Pictures:
  """The first images of the next batch as the model sees them, augmented and mixed.

  Args:
    stream: of the training data.
    model, step: of the run.
    first_step: the number of steps before it.

  Raises:
    UserError: for an example that cannot be read.
  """
  count = min(stream.batch_size, MAX_PICTURES + 1)  # each is mixed with the one before it
  batch = batch_numbers(np.array([first_step]), stream.skipped) * stream.batch_size
  positions = batch[0] + np.arange(count)
  indices = stream.example_indices(positions)
  arrays = _read(stream, indices.tolist(), positions.tolist())
  images, labels, note = arrays['image'], arrays['label'], 'After augmentation.'
  if step.objective == 'masked_patches':
    note = 'After augmentation, before patches are corrupted.'
  elif step.mixup_alpha or step.cutmix_alpha:
    key = jax.random.fold_in(jax.random.key(step.seed), first_step)
    mixed, _ = draw_batch({'image': images, 'label': labels}, model, step, key)
    images = np.rint(np.asarray(mixed['image'])).astype(np.uint8)
    labels, note = np.asarray(mixed['label']), 'After augmentation and mixing.'
  source = stream.reader.source
  pictures = [
    Picture(_uri(image), source.describe(index), _labels(label, source.class_names))
    for image, label, index in zip(images, labels, indices.tolist(), strict=True)
  ]
  return Pictures(first_step + 1, note, pictures[-MAX_PICTURES:])


def mistakes(stream: Stream, result: Result, step: int) -> Pictures | None:
  """The wrong predictions with the highest probability, of all test examples.

  Args:
    stream: of the test data.
    result: of all its examples.
    step: after which it was evaluated.

  Raises:
    UserError: for an example that cannot be read.
  """
  rows, source = result.rows, stream.reader.source
  if rows is None or len(source.class_names) <= int(rows.top_class.max()):
    return None
  wrong = np.flatnonzero(~rows.correct)
  chosen = wrong[np.argsort(-rows.confidence[wrong], kind='stable')][:MAX_PICTURES]
  images, names = _read(stream, rows.index[chosen].tolist(), [0] * len(chosen)), source.class_names
  pictures = [
    Picture(
      _uri(images['image'][i]),
      source.describe(int(rows.index[row])),
      _labels(images['label'][i], names),
      (names[rows.top_class[row]], float(rows.confidence[row])),
    )
    for i, row in enumerate(chosen.tolist())
  ]
  total = plural(result.examples, 'test example')
  return Pictures(
    step, f'{len(wrong):,} of {total} are wrong; the predicted class first.', pictures
  )


def _read(
  stream: Stream, indices: Sequence[int], positions: Sequence[int]
) -> dict[str, np.ndarray]:
  batch = {
    name: np.zeros((len(indices), *shape), kind)
    for name, (shape, kind) in stream.reader.shapes.items()
  }
  if stream.reader.read_rows(indices, positions, 0, batch) and not batch['mask'].all():
    raise UserError('An example cannot be read again.')
  return batch


def _labels(label: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, float]]:
  """The class, or the classes of the largest weights."""
  if label.ndim == 0:
    return [(class_names[int(label)], 1.0)]
  classes = np.argsort(-label.astype(np.float32), kind='stable')[:_MAX_LABELS].tolist()
  return [(str(class_names[i]), float(label[i])) for i in classes if label[i] > 0]


def _uri(pixels: np.ndarray) -> str:
  """An image (H, W, C) uint8; of another number of channels than three, their mean."""
  if pixels.shape[-1] != 3:
    pixels = np.rint(pixels.mean(axis=-1)).astype(np.uint8)
  image = Image.fromarray(pixels)
  image.thumbnail((_MAX_SIDE, _MAX_SIDE))
  return picture_uri(image)
