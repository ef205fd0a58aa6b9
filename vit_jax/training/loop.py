"""The main job, in data-flow order: config -> data -> model -> step -> loop -> a usable model."""

import dataclasses
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from vit_jax.checkpoints.training import Checkpointer, has_checkpoint
from vit_jax.classifier import Classifier
from vit_jax.data import loader
from vit_jax.data.sources import check_same_classes, open_source
from vit_jax.errors import NonFiniteLossError, PreemptedError, UserError, memory_explained
from vit_jax.evaluation import classification
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.parallel import processes
from vit_jax.training import setup
from vit_jax.training.inspection import inspect_data
from vit_jax.training.program import build_program
from vit_jax.training.reporting import MetricsWriter, Progress


def _finite_or_stop(step: int, metrics: dict[str, Any]) -> dict[str, float]:
  """Fetches the metrics of a step; a loss, gradient or update that is no number ends the run."""
  values = {name: float(value) for name, value in jax.device_get(metrics).items()}
  for name in ('train/loss', 'train/gradient_norm', 'train/parameter_norm'):
    if not np.isfinite(values[name]):
      raise NonFiniteLossError(
          f'{name} is {values[name]} at step {step}; the checkpoints before it are kept; '
          'a lower learning rate, a longer warmup or config.optimizer.clip_norm may help.'
      )
  return values


def _export(vit: Classifier, workdir: epath.Path) -> None:
  """Leaves `workdir/model/`, which every other command takes as --model."""
  params = vit.params
  if jax.process_count() > 1:
    params = multihost_utils.process_allgather(params, tiled=True)
  if jax.process_index() == 0:
    try:
      dataclasses.replace(vit, params=jax.device_get(params)).save(workdir / 'model', 'model')
    except OSError as error:
      raise UserError(f'{workdir}/model cannot be written: {error.strerror or error}.') from None


@memory_explained()
def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: epath.PathLike
) -> dict[str, float]:
  """Trains as the config says, evaluates, and leaves a model; goes on where it was stopped.

  Args:
    config: all fields of configs/default.py.
    workdir: gets config.json, metrics.jsonl, TensorBoard events, checkpoints/ and model/.

  Returns:
    The last evaluation: {'accuracy', 'loss', 'examples'}.

  Raises:
    UserError: for a config, data or workdir that cannot work.
    NonFiniteLossError: when the loss stops being a number.
    DeviceMemoryError: when the devices have too little memory.
    PreemptedError: after SIGTERM (inside `processes.joined`), when the state is saved.
  """
  workdir = setup.find_workdir(workdir)
  mesh = mesh_lib.make_mesh(config.mesh)

  # Data and model.
  train = open_source(config.data.train.source, config.data.train.split)
  config = setup.with_steps(config, train.size)
  setup.check_config(config, mesh)
  total_steps = config.total_steps
  test = open_source(config.data.test.source, config.data.test.split)
  check_same_classes(train.class_names, test.class_names, test.name)
  setup.check_num_classes(config.data.num_classes, train)
  program = build_program(config, mesh, train.num_classes, train.multi_label)
  streams = setup.open_streams(config, train, test)

  # The state: from the last checkpoint, from other weights, or from the seed.
  resuming = processes.agreed(has_checkpoint(workdir))
  start_params, report = None, None
  if not resuming:
    if card := inspect_data(config, train, test):
      print(card, flush=True)
    start_params, report = setup.initial_params(config, program)
  setup.open_workdir(config, workdir)
  checkpointer = Checkpointer(workdir, config.checkpoint.keep)
  first_step = processes.agreed(checkpointer.latest_step() or 0)
  if first_step:
    state = checkpointer.restore(first_step, program.abstract_state)
  else:
    state = program.init(start_params)
    del start_params

  # The loop. Metrics reach the host one step late, so that the devices never wait for it.
  key = jax.jit(
      lambda: jax.random.key(config.seed), out_shardings=mesh_lib.replicated(mesh)
  )()
  writer = MetricsWriter(workdir, first_step, enabled=jax.process_index() == 0)
  progress = Progress(config, program, first_step)
  progress.start((train, test), workdir)
  for line in (*checkpointer.notes, *([str(report)] if report else [])):
    progress.say(line)
  previous, result = None, None
  feed = loader.Feed(streams, mesh, setup.num_workers(config), config.data.threads)
  with checkpointer, writer, progress, feed:
    train_batches = feed.batches('train', first_step, total_steps)

    def evaluate() -> dict[str, float]:
      return classification.evaluate(
          program.eval_step, state.eval_params, feed.batches('test')
      )

    train_step = progress.compile() if first_step < total_steps else None
    for step, batch in enumerate(progress.waiting_for(train_batches), start=first_step + 1):
      with jax.transfer_guard('disallow'):
        state, metrics = train_step(state, batch, key)
      if previous is not None:
        _finite_or_stop(step - 1, previous)
      previous, result = metrics, None
      progress.update()
      last = step == total_steps
      if step % config.log_every == 0 or last:
        values = _finite_or_stop(step, metrics)
        writer.write(step, values | progress.log(step, values['train/loss'], feed))
      if step % config.eval_every == 0 or last:
        with progress.paused():
          result = evaluate()
        writer.write(step, {f'test/{name}': value for name, value in result.items()})
        progress.say_result(step, result, feed)
      best = result is not None and checkpointer.is_best(result['accuracy'])
      stopping = processes.preempted(step) and not last
      if step % config.checkpoint.every == 0 or best or last or stopping:
        _finite_or_stop(step, metrics)  # what is kept is sound
        with progress.paused():
          checkpointer.save(step, state, result and result['accuracy'])
      if stopping:
        raise PreemptedError(
            f'SIGTERM came; step {step} is saved, and the same command goes on from there.'
        )
    result = result or evaluate()  # a run that had ended before
    vit = Classifier(
        program.model,
        state.eval_params,
        program.image_size,
        list(test.class_names),
        config.data.crop_fraction,
        config.loss,
    )
    _export(vit, workdir)
  progress.finish(result, workdir / 'model', config.data.test)
  return result
