"""Scores a loaded model on a split of a data set, on all local devices."""

import jax
import tqdm

from vit_jax.classifier import Classifier
from vit_jax.config import MeshConfig, OnBadExample
from vit_jax.data.loading.loader import DataLoader, open_stream
from vit_jax.data.loading.reader import ReadConfig
from vit_jax.data.sources import Source, check_same_classes, open_source
from vit_jax.distributed import sharding
from vit_jax.errors import UserError
from vit_jax.evaluation import classification
from vit_jax.evaluation.eval_step import make_eval_step


def score(
  model: Classifier,
  data: str,
  split: str,
  batch_size: int,
  on_bad_example: OnBadExample = 'error',
  workers: int = 0,
) -> tuple[Source, classification.Result]:
  """Scores every example of a split once, preprocessed as the model expects.

  Args:
    model: with or without labels.
    data: a data source, such as 'folder:/path'.
    split: a split of the source.
    batch_size: over all devices; changes no result.
    on_bad_example: whether an unreadable image ends the evaluation or is left out.
    workers: reading processes; 0: threads.

  Returns:
    (the open source, the result).

  Raises:
    UserError: for data that cannot be read, or whose classes are neither the model's nor mere
      numbers; for a batch size that the devices do not divide.
  """
  source = open_source(data, split)
  num_classes = model.model.num_classes
  is_numbered = source.class_names == tuple(map(str, range(num_classes)))
  if model.labels is not None and not is_numbered:
    check_same_classes(model.labels, source.class_names, source.name)
  elif source.num_classes != num_classes:
    raise UserError(
      f'{source.name} has {source.num_classes} classes, but the model has {num_classes}.'
    )
  mesh = sharding.make_mesh(MeshConfig())
  sharding.check_batch_size(mesh, batch_size, '--batch_size')
  config = ReadConfig(
    data,
    split,
    model.image_size,
    channels=model.channels,
    preprocessing=model.preprocessing,
    on_bad_example=on_bad_example,
  )
  stream = open_stream(config, batch_size, source)
  params = jax.device_put(model.params, sharding.replicated(mesh))
  eval_step = jax.jit(make_eval_step(model.model, model.loss))
  with DataLoader({'test': stream}, mesh, workers) as loader:
    batches, total = loader.batches('test'), stream.num_batches
    batches = tqdm.tqdm(batches, total=total, unit='batch', leave=False, disable=None)
    result = classification.evaluate(eval_step, params, batches)
  return source, result
