"""The main job, in data-flow order: config -> data -> model -> step -> loop -> a usable model."""

import functools

import jax
from etils import epath

from vit_jax import signals
from vit_jax.config import Config, flatten
from vit_jax.data.loading.loader import DataLoader, num_workers, open_streams
from vit_jax.distributed import sharding
from vit_jax.distributed.failures import FailureLog
from vit_jax.distributed.processes import (
  broadcast_from_process_0,
  hangs_end,
  report_progress,
  should_stop,
)
from vit_jax.errors import PreemptedError, StoppedError, faults_named, memory_explained
from vit_jax.training import process_log
from vit_jax.training.evaluator import Result, open_evaluator
from vit_jax.training.export import MODEL, export_models
from vit_jax.training.initial_state import open_start
from vit_jax.training.live_report import LiveReport
from vit_jax.training.metrics import MetricsWriter
from vit_jax.training.phases import PhaseTimer
from vit_jax.training.preflight import open_sources
from vit_jax.training.profiling import Profiler
from vit_jax.training.program import build_program
from vit_jax.training.progress import Progress
from vit_jax.training.rollback import fetch_sound, skip_recorded, with_rollbacks
from vit_jax.training.run_history import RunHistory
from vit_jax.training.same_data import check_same_on_all_processes
from vit_jax.training.save_schedule import SaveSchedule
from vit_jax.training.throughput import ThroughputMeter
from vit_jax.training.trackers import Tracker
from vit_jax.training.workdir import resolve_workdir


def _preempted(step: int) -> PreemptedError:
  return PreemptedError(
    f'received SIGTERM; step {step} is saved, rerun the same command to resume.'
  )


@memory_explained(
  'config.model.remat=full, a larger config.mesh.fsdp or config.accumulation_steps, or a smaller '
  'config.batch_size need less, and python -m vit_jax.plan says how much'
)
@with_rollbacks
def train_and_evaluate(
  config: Config, workdir: epath.PathLike, start: float | None = None
) -> dict[str, float]:
  """Trains, evaluates, and leaves a model; resumes from the last checkpoint.

  Args:
    config: of the run.
    workdir: gets config.json, metrics, TensorBoard events, report.html, restarts.jsonl,
      checkpoints/, model/, and best_model/ if an earlier step was better.
    start: the `time.monotonic()` at which the process began, for the record of the run's time.

  Returns:
    The metrics of the last evaluation: {'accuracy', 'loss', 'examples', …}, of masked patch
    prediction {'masked_patch_accuracy', 'loss', 'examples'}.

  Raises:
    UserError: for a config, data or workdir that cannot work.
    DivergedError: for a non-finite loss, or too many skipped updates.
    NoProgressError: when too many starts in a row have not reached a checkpoint.
    MachineError: for a fault of a machine after the first steps, or when storage fails for longer
      than it is retried.
    DeviceMemoryError: when the devices run out of memory.
    PreemptedError: after SIGTERM (inside `distributed_run`), once the state is saved.
  """
  timer, tracker = PhaseTimer(start), Tracker(config.tracker)
  workdir = resolve_workdir(workdir)
  mesh = sharding.make_mesh(config.mesh)

  # Data and model.
  train, test = open_sources(config.data)
  facts = check_same_on_all_processes({'train': train, 'test': test})
  config = skip_recorded(config.resolve_steps(train.size), workdir)
  data, labels = config.data, (train.num_classes, train.multi_label)
  sections = config.model, config.optimizer, config.schedule, config.step
  program = build_program(mesh, *sections, data.image_shape, *labels, config.lora)
  sharding.check_batch_size(mesh, config.eval_batch_size, 'eval_batch_size')
  streams = open_streams(data, train, test, config.batch_size, config.eval_batch_size, config.seed)
  evaluator = open_evaluator(config, program, train)

  # The state.
  begin = open_start(config, program, train, test, facts, workdir)
  process_log.open_log(workdir)
  checkpointer, first_step = begin.checkpointer, begin.first_step
  is_complete = first_step == config.total_steps
  progress = Progress(program, first_step)
  progress.print_start(train, test, workdir)
  history = RunHistory(workdir, first_step, timer, config.max_restarts)
  failures = FailureLog(workdir / 'failures', history.start)
  for line in failures.warnings():
    progress.print(line)
  compiling = None if is_complete else program.start_compiling()
  hangs_ended = functools.partial(hangs_end, workdir / 'hangs', config.hang_timeout)
  with timer.phase('initialization'), hangs_ended():
    state = begin.make_state(program)
  for line in begin.notes:
    progress.print(line)
  del begin  # and the parameters that it holds

  # The loop. Metrics reach the host one step late, so that the devices never wait for it.
  fetch = functools.partial(fetch_sound, after_skipped=config.rollback.after_skipped)
  key = program.random_key()
  report = LiveReport(workdir, first_step, program, streams)
  followers = (report.add, tracker)
  writer = MetricsWriter(workdir, first_step, jax.process_index() == 0, followers)
  meter = ThroughputMeter(program, first_step, timer)
  profiler = Profiler(config.profile.steps, workdir, timer, progress.print)
  previous, result = None, None
  loader = DataLoader(streams | evaluator.streams, mesh, num_workers(data), data.threads)
  saves = SaveSchedule(config.checkpoint, config.log_every)
  faults_are_named = faults_named(progress.has_steps)
  with (
    hangs_ended(),
    tracker.running(flatten(config), workdir),
    report,
    history,
    failures.recording(),
    checkpointer,
    writer,
    progress,
    loader,
    profiler,
    faults_are_named,
    timer.followed_by('save'),
  ):

    def evaluate(step: int, is_new: bool = True) -> Result | None:
      """Returns the result of the test data; reports it and others, if they are new."""
      with timer.phase('evaluation'):
        result, metrics = evaluator.run(step, state, loader, only_test=not is_new)
      if is_new and metrics:
        writer.write(step, metrics)
        report.renew(step, result)
        progress.print_result(step, result, metrics, loader)
      return result

    was_evaluated = bool(broadcast_from_process_0(writer.has_evaluation(first_step)))
    if is_complete or (first_step and not was_evaluated):
      try:  # SIGTERM may have ended the evaluation of the step that is resumed
        result = evaluate(first_step, is_new=not was_evaluated)
      except StoppedError:
        raise _preempted(first_step) from None
    batches = timer.steps(loader.batches('train', first_step, config.total_steps))
    train_step = program.train_step
    if compiling is not None:
      with timer.phase('compile'):
        compiled = compiling.result()
      train_step = compiled.call
      progress.print_compiled(compiled)
      report.add_compiled(compiled)
      report_progress()
    for step, batch in enumerate(batches, start=first_step + 1):
      signals.check_interrupted()
      with profiler.step(step, state), jax.transfer_guard('disallow'):
        state, metrics = train_step(state, batch, key)
      if previous is not None:
        fetch(step - 1, previous)
      previous, result = metrics, None
      progress.update()
      is_last = step == config.total_steps
      if step % config.log_every == 0 or is_last:
        values = fetch(step, metrics) | meter.measure(step, loader.bad_reads['train'])
        values |= history.log(step)
        writer.write(step, values)
        progress.print_metrics(step, values, loader)
      stopping = should_stop()
      if not stopping:
        try:
          result = evaluate(step)
        except StoppedError:
          stopping = True
      is_best = result is not None and checkpointer.is_best(result.score)
      if saves.is_due(step) or is_best or is_last or stopping:
        fetch(step, metrics)  # only sound states are saved
        with timer.phase('save'):
          score, ends = None if result is None else result.score, is_last or stopping
          checkpointer.save(step, state, score, is_last=ends, before_commit=writer.flush)
        report_progress()
      if stopping:
        raise _preempted(step)
    assert result is not None  # of the last step
    with timer.phase('save'):
      best_model = export_models(config, program.model, checkpointer, test, workdir)
  progress.print_end(result, test.class_names, workdir / MODEL, best_model, data)
  return result.metrics
