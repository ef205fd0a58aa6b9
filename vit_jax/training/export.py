"""The models that a run leaves: the last one, and the best one if an earlier step was better."""

import dataclasses
from typing import Any

import jax
from etils import epath
from flax import traverse_util

from vit_jax.checkpoints.manager import Checkpointer
from vit_jax.checkpoints.stored_params import read_params
from vit_jax.classifier import Classifier
from vit_jax.config import Config
from vit_jax.data.sources import Source
from vit_jax.models.build import Model
from vit_jax.models.lora import merge_adapters
from vit_jax.models.masked_patches import MaskedPatchPredictor, encoder, encoder_params
from vit_jax.retries import storage_error
from vit_jax.weights.initial_weights import read_inherited

MODEL, BEST_MODEL = 'model', 'best_model'


def export_models(
  config: Config, model: Model, checkpointer: Checkpointer, test: Source, workdir: epath.Path
) -> str:
  """Writes `workdir/model/`, and `workdir/best_model/` if an earlier checkpoint scored better.

  They are what every other command takes as --model. Process 0 reads the parameters from the
  checkpoints, so that no other host needs memory for all of them.

  Args:
    config: of the run.
    model: its module.
    checkpointer: of a run whose last step was saved; all processes wait for that save.
    test: the test data, which names the classes.
    workdir: of the run.

  Returns:
    A line about the best model, on process 0; '' if that is the last one.

  Raises:
    UserError, MachineError: when a checkpoint cannot be read, or a model cannot be written.
  """
  checkpointer.wait()
  if jax.process_index():
    return ''
  last, best = checkpointer.latest_step(), checkpointer.best_step()
  assert last is not None  # the last step was saved
  is_last_best = best in (None, last)
  names = {last: MODEL} if is_last_best else {last: MODEL, best: BEST_MODEL}
  inherited = read_inherited(workdir)
  try:
    (workdir / BEST_MODEL).rmtree(missing_ok=True)  # of a run that was shorter
    for step, name in names.items():
      params = traverse_util.unflatten_dict(read_params(checkpointer.folder(step)), sep='/')
      params = merge_adapters(params, config.lora.scale)
      vit = dataclasses.replace(_classifier(config, model, params, test), **inherited)
      vit.save(workdir / name, 'model', overwrite=True)
  except OSError as error:
    raise storage_error(f'The models in {workdir} cannot be written', error) from None
  if is_last_best:
    return ''
  score = checkpointer.score(best)
  return f'best model: {workdir / BEST_MODEL} (step {best:,}, score {score:.4f})\n'


def _classifier(config: Config, model: Model, params: Any, test: Source) -> Classifier:
  data, names = config.data, list(test.class_names)
  vit = Classifier(model, params, data.height_width, names, data.test.preprocessing, config.loss)
  if not isinstance(model, MaskedPatchPredictor):
    return vit
  params = encoder_params(params)
  return dataclasses.replace(vit, model=encoder(model), params=params, labels=None)
