"""The main job, in data-flow order: config -> data -> model -> step -> loop -> a usable model."""

import dataclasses
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from vit_jax import signals
from vit_jax.checkpoints.damage import has_checkpoint
from vit_jax.checkpoints.manager import Checkpointer
from vit_jax.classifier import Classifier
from vit_jax.config import Config
from vit_jax.data.loading.loader import DataLoader, num_workers, open_streams
from vit_jax.distributed import sharding
from vit_jax.distributed.processes import broadcast_from_process_0, should_stop
from vit_jax.errors import NonFiniteLossError, PreemptedError, StoppedError, memory_explained
from vit_jax.models.masked_patches import MaskedPatchPredictor, encoder, encoder_params
from vit_jax.retries import storage_error
from vit_jax.training.evaluator import Result, open_evaluator
from vit_jax.training.metrics import MetricsWriter
from vit_jax.training.preflight import inspect_data, open_sources
from vit_jax.training.program import Program, build_program
from vit_jax.training.progress import Progress
from vit_jax.training.same_data import check_same_on_all_processes
from vit_jax.training.throughput import ThroughputMeter
from vit_jax.training.workdir import open_workdir, resolve_workdir
from vit_jax.weights.adapt import LoadReport, load_params


def _fetch_finite(step: int, metrics: dict[str, Any]) -> dict[str, float]:
  """Fetches the metrics of a step; raises `NonFiniteLossError` for a non-finite loss or norm."""
  values = {name: float(value) for name, value in jax.device_get(metrics).items()}
  for name in ('train/loss', 'train/gradient_norm', 'train/parameter_norm'):
    if not np.isfinite(values[name]):
      raise NonFiniteLossError(
        f'{name} is {values[name]} at step {step}; earlier checkpoints are kept. A lower '
        'learning rate, a longer warmup or config.optimizer.clip_norm may help.'
      )
  return values


def _export(vit: Classifier, workdir: epath.Path) -> None:
  """Writes `workdir/model/`, which every other command takes as --model."""
  if isinstance(vit.model, MaskedPatchPredictor):
    model, params = encoder(vit.model), encoder_params(vit.params)
    vit = dataclasses.replace(vit, model=model, params=params, labels=None)
  params = vit.params
  if jax.process_count() > 1:
    params = multihost_utils.process_allgather(params, tiled=True)
  if jax.process_index() == 0:
    vit = dataclasses.replace(vit, params=jax.device_get(params))
    try:
      vit.save(workdir / 'model', 'model', overwrite=True)
    except OSError as error:
      raise storage_error(f'{workdir}/model cannot be written', error) from None


def _load_start(config: Config, program: Program) -> tuple[Any, LoadReport]:
  """The parameters of `config.init_from`, adapted to the model and sharded."""
  return load_params(
    config.init_from,
    program.model,
    program.image_shape,
    config.position_resize,
    program.state_shardings.params,
    config.data.test.preprocessing,
  )


def _preempted(step: int) -> PreemptedError:
  return PreemptedError(
    f'received SIGTERM; step {step} is saved, rerun the same command to resume.'
  )


@memory_explained(
  'config.model.remat=full, a larger config.mesh.fsdp or config.accumulation_steps, or a smaller '
  'config.batch_size need less, and python -m vit_jax.plan says how much'
)
def train_and_evaluate(config: Config, workdir: epath.PathLike) -> dict[str, float]:
  """Trains, evaluates, and leaves a model; resumes from the last checkpoint.

  Args:
    config: of the run.
    workdir: gets config.json, metrics, TensorBoard events, checkpoints/ and model/.

  Returns:
    The metrics of the last evaluation: {'accuracy', 'loss', 'examples', …}, of masked patch
    prediction {'masked_patch_accuracy', 'loss', 'examples'}.

  Raises:
    UserError: for a config, data or workdir that cannot work.
    NonFiniteLossError: for a non-finite loss.
    DeviceMemoryError: when the devices run out of memory.
    MachineError: when storage fails for longer than it is retried.
    PreemptedError: after SIGTERM (inside `distributed_run`), once the state is saved.
  """
  workdir = resolve_workdir(workdir)
  mesh = sharding.make_mesh(config.mesh)

  # Data and model.
  train, test = open_sources(config.data)
  facts = check_same_on_all_processes({'train': train, 'test': test})
  config = config.resolve_steps(train.size)
  data, labels = config.data, (train.num_classes, train.multi_label)
  program = build_program(
    mesh, config.model, config.optimizer, config.schedule, config.step, data.image_shape, *labels
  )
  sharding.check_batch_size(mesh, config.eval_batch_size, 'eval_batch_size')
  streams = open_streams(data, train, test, config.batch_size, config.eval_batch_size, config.seed)
  evaluator = open_evaluator(config, program, train)

  # The state: from the last checkpoint, from other weights, or from the seed.
  start_params, report = None, None
  if not broadcast_from_process_0(has_checkpoint(workdir)):
    if card := inspect_data(data, train, test):
      print(card, flush=True)
    if config.init_from:
      start_params, report = _load_start(config, program)
  note = open_workdir(config, facts, workdir)
  checkpointer = Checkpointer(workdir, config.checkpoint.keep)
  first_step = broadcast_from_process_0(checkpointer.latest_step() or 0)
  is_complete = first_step == config.total_steps
  progress = Progress(program, first_step)
  progress.print_start(train, test, workdir)
  compiling = None if is_complete else program.start_compiling()
  if first_step:
    state = checkpointer.restore(first_step, program.abstract_state)
  else:
    state = program.init(start_params)
    del start_params

  # The loop. Metrics reach the host one step late, so that the devices never wait for it.
  key = program.random_key()
  writer = MetricsWriter(workdir, first_step, enabled=jax.process_index() == 0)
  meter = ThroughputMeter(program, first_step)
  for line in (*checkpointer.warnings, note, str(report or '')):
    if line:
      progress.print(line)
  previous, result = None, None
  loader = DataLoader(streams | evaluator.streams, mesh, num_workers(data), data.threads)
  with checkpointer, writer, progress, loader:

    def evaluate(step: int, is_new: bool = True) -> Result | None:
      """Returns the result of the test data; reports it and others, if they are new."""
      with meter.paused():
        result, metrics = evaluator.run(step, state, loader, only_test=not is_new)
      if is_new and metrics:
        writer.write(step, metrics)
        progress.print_result(step, result, metrics, loader)
      return result

    was_evaluated = bool(broadcast_from_process_0(writer.has_evaluation(first_step)))
    if is_complete or (first_step and not was_evaluated):
      try:  # SIGTERM may have ended the evaluation of the step that is resumed
        result = evaluate(first_step, is_new=not was_evaluated)
      except StoppedError:
        raise _preempted(first_step) from None
    batches = meter.time_waiting(loader.batches('train', first_step, config.total_steps))
    train_step = program.train_step
    if compiling is not None:
      compiled = compiling.result()
      train_step = compiled.call
      progress.print_compiled(compiled)
      meter.restart()
    for step, batch in enumerate(batches, start=first_step + 1):
      signals.check_interrupted()
      with jax.transfer_guard('disallow'):
        state, metrics = train_step(state, batch, key)
      if previous is not None:
        _fetch_finite(step - 1, previous)
      previous, result = metrics, None
      progress.update()
      is_last = step == config.total_steps
      if step % config.log_every == 0 or is_last:
        values = _fetch_finite(step, metrics) | meter.measure(step, loader.bad_reads['train'])
        writer.write(step, values)
        progress.print_metrics(step, values, loader)
      stopping = should_stop()
      if not stopping:
        try:
          result = evaluate(step)
        except StoppedError:
          stopping = True
      is_best = result is not None and checkpointer.is_best(result.score)
      if step % config.checkpoint.every == 0 or is_best or is_last or stopping:
        _fetch_finite(step, metrics)  # only sound states are saved
        with meter.paused():
          score, ends = None if result is None else result.score, is_last or stopping
          checkpointer.save(step, state, score, is_last=ends, before_commit=writer.flush)
      if stopping:
        raise _preempted(step)
    assert result is not None  # of the last step
    image_size, names = data.height_width, list(test.class_names)
    params, preprocessing = program.eval_params(state), data.test.preprocessing
    vit = Classifier(program.model, params, image_size, names, preprocessing, config.loss)
    _export(vit, workdir)
  progress.print_end(result, names, workdir / 'model', data)
  return result.metrics
