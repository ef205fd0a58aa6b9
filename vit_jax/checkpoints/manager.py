"""Checkpoints of a run: written asynchronously by Orbax; the last few and the best are kept."""

import contextlib
import dataclasses
import math
import socket
import sys
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, EveryNSteps, LatestN

from vit_jax.checkpoints import divided_reads, manifest
from vit_jax.checkpoints.damage import rename_damaged
from vit_jax.checkpoints.save_barrier import PeerSaveError, SaveBarrier
from vit_jax.checkpoints.stored_params import ITEM, OLD_EMA_PARAMS, stored_tree
from vit_jax.distributed.processes import broadcast_from_process_0, gather_from_all
from vit_jax.errors import (
  MachineError,
  PreemptedError,
  RunError,
  UserError,
  first_line,
  is_out_of_memory,
)
from vit_jax.retries import is_lack_of_space_or_rights, is_temporary, storage_error, with_retries

_WRITE_ERRORS = (OSError, ValueError, RuntimeError)  # TensorStore's for a full disk is ValueError
_MAX_SKIPPED = 3  # saves in a row


def _score(metrics: dict[str, float]) -> float:
  """Of the best checkpoint; older versions call it accuracy."""
  return metrics.get('score', metrics.get('accuracy', -math.inf))


def _write_error(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Exception | None:
  """Calls a function that writes; returns its error, if it is one of storage."""
  try:
    function(*args, **kwargs)
  except Exception as error:
    if is_out_of_memory(error) or not (isinstance(error, _WRITE_ERRORS) or is_temporary(error)):
      raise
    return error
  return None


@dataclasses.dataclass(frozen=True)
class _Save:
  """A save in progress.

  Attributes:
    step: of the state.
    metrics: of the checkpoint, for Orbax.
    before_commit: called on process 0 before the checkpoint is complete.
    state: of the last save of a run, to save it again; None of any other, whose arrays the next
      step overwrites.
  """

  step: int
  metrics: dict[str, float] | None
  before_commit: Callable[[], None]
  state: Any = None


class Checkpointer:
  """Saves and restores the state of a run in `workdir/checkpoints`, one atomic folder per step.

  It renames damaged checkpoints, and keeps the last `keep`, the one with the best score, and those
  of steps that `keep_every` divides. A save
  that fails is skipped with a warning, unless space or rights are missing; after three in a row,
  or when the last save of a run fails twice, the run ends. All processes decide alike. As a context
  manager it waits for the save in progress.

  Attributes:
    warnings: about damaged checkpoints and interrupted saves, one line each, on process 0.

  Raises:
    UserError: when there are checkpoints, but none is intact.
    MachineError: when they cannot be read for now.
  """

  def __init__(self, workdir: epath.Path, keep: int, keep_every: int = 0):
    folder = workdir / 'checkpoints'
    self.warnings = rename_damaged(folder)
    multihost_utils.sync_global_devices('damaged checkpoints are renamed')
    best = BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
    policies = [LatestN(n=keep), best, *([EveryNSteps(keep_every)] if keep_every else [])]
    self._saving: _Save | None = None
    self._num_skipped = 0  # saves in a row
    self._manager = with_retries(
      ocp.CheckpointManager,
      folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(policies=policies),
        best_fn=_score,  # without it metrics are not saved
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(
          post_finalization_callback=self._before_commit,
          barrier_sync_fn=SaveBarrier(self._write_part) if jax.process_count() > 1 else None,
        ),
      ),
    )
    self._best = self._best_score()

  def _scores(self) -> dict[int, float]:
    """The scores of the steps that have one."""
    metrics = {
      step: with_retries(self._manager.metrics, step) for step in self._manager.all_steps()
    }
    return {step: _score(each) for step, each in metrics.items() if each}

  def _best_score(self) -> float:
    return max(self._scores().values(), default=-math.inf)

  def _before_commit(self) -> None:
    """Orbax calls it on process 0 when all files are written, before it renames the folder."""
    assert self._saving is not None
    self._saving.before_commit()
    manifest.write_manifest(self._unfinished())

  def _write_part(self) -> None:
    """Called in the background when this one of several processes has written its files."""
    manifest.write_part(self._unfinished(), jax.process_index())

  def _unfinished(self) -> epath.Path:
    """The folder that the save in progress writes to."""
    assert self._saving is not None
    folder, step = self._manager.directory, self._saving.step
    return next(folder.glob(f'{step}.orbax-checkpoint-tmp*'), folder / str(step))

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, kind: type[BaseException] | None, *unused) -> None:
    try:
      if kind in (None, PreemptedError):
        self.wait()
      else:  # the error to report; the other processes are elsewhere
        with contextlib.suppress(*_WRITE_ERRORS):
          self._manager.wait_until_finished()
    finally:
      with contextlib.suppress(*_WRITE_ERRORS):  # of writes: `wait` has reported what counts
        self._manager.close()

  def latest_step(self) -> int | None:
    """The step of the newest complete checkpoint; None without one."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The step of the complete checkpoint with the best score, the latest of equal ones."""
    scores = self._scores()
    return max(scores, key=lambda step: (scores[step], step), default=None)

  def score(self, step: int) -> float:
    """The score that was saved with a checkpoint."""
    return self._scores()[step]

  def folder(self, step: int) -> epath.Path:
    """Where the state of a step is, for `read_params`."""
    return self._manager.directory / str(step) / ITEM

  def is_best(self, score: float) -> bool:
    """Returns True if no checkpoint has reached this score, such as the test accuracy."""
    return score > self._best

  def save(
    self,
    step: int,
    state: Any,
    score: float | None,
    *,
    is_last: bool = False,
    before_commit: Callable[[], None] = lambda: None,
  ) -> None:
    """Starts to save; returns once the arrays are copied, and writes them in the background.

    Args:
      step: of the state.
      state: a tree of arrays.
      score: of the state on the test data, if it was evaluated.
      is_last: whether the run ends with this save; then it is never skipped, and the arrays must
        not be overwritten.
      before_commit: called on process 0 in the background before the checkpoint is complete.

    Raises:
      UserError: when this or an earlier checkpoint cannot be written for lack of space or rights.
      MachineError: when too many saves have failed.
    """
    self.wait()
    metrics = None if score is None else {'score': score}
    self._best = max(self._best, -math.inf if score is None else score)
    save = _Save(step, metrics, before_commit, state if is_last else None)
    error = self._start(save, state)
    if error is not None and not is_lack_of_space_or_rights(error):
      error = self._start(save, state)
    if error is not None:
      self._fail(save, first_line(error), is_lack_of_space_or_rights(error))

  def _start(self, save: _Save, state: Any) -> Exception | None:
    """Starts a save; returns the error of this process, if it is the only one of the run."""
    self._saving = save
    error = _write_error(
      self._manager.save, save.step, args=ocp.args.StandardSave(state), metrics=save.metrics
    )
    if error is None:
      return None
    with contextlib.suppress(Exception):  # it may fail after its thread has started
      self._manager.wait_until_finished()
    self._saving = None
    if jax.process_count() > 1:  # the others wait for this one, and must end with it
      raise self._end_of_run(save, first_line(error), is_lack_of_space_or_rights(error))
    self._remove_remains(save.step)
    with_retries(self._manager.reload)
    return error

  def wait(self) -> None:
    """Waits for the save in progress; repeats it if it is the last of the run, and failed.

    Raises:
      UserError, MachineError: as `save`.
    """
    save = self._saving
    if save is None or not (failure := self._wait(save)):
      return
    reason, is_permanent = failure
    if save.state is not None and not is_permanent:
      error = self._start(save, save.state)
      failure = self._wait(save) if error is None else (first_line(error), False)
    if failure:
      self._fail(save, *failure)

  def _wait(self, save: _Save) -> tuple[str, bool] | None:
    """The reason why the save in progress failed on any process, and whether that is permanent."""
    error = _write_error(self._manager.wait_until_finished)
    failure = None
    if error is not None:
      is_permanent = is_lack_of_space_or_rights(error)
      reason = f'{first_line(error).rstrip(".")} on {socket.gethostname()}'
      failure = [isinstance(error, PeerSaveError), not is_permanent, reason]
    failures = sorted(filter(None, gather_from_all(failure)))
    self._saving = None
    if not failures:
      self._num_skipped = 0
      return None
    with_retries(self._manager.reload)
    if broadcast_from_process_0(save.step in self._manager.all_steps()):
      return None  # it is complete; only older ones could not be removed
    self._remove_remains(save.step)
    _, is_temporary_failure, reason = failures[0]  # a cause rather than a consequence
    return reason, not is_temporary_failure

  def _fail(self, save: _Save, reason: str, is_permanent: bool) -> None:
    """Warns that a save is skipped, or raises the error that ends the run, on all processes."""
    self._num_skipped += 1
    if is_permanent or save.state is not None or self._num_skipped >= _MAX_SKIPPED:
      raise self._end_of_run(save, reason, is_permanent)
    self._best = self._best_score()
    if jax.process_index() == 0:
      print(
        f'warning: the checkpoint of step {save.step} is skipped ({reason}); the next save tries '
        'again',
        file=sys.stderr,
        flush=True,
      )

  def _end_of_run(self, save: _Save, reason: str, is_permanent: bool) -> RunError:
    reason = 'no space left' if 'No space left' in reason else reason
    text = f'A checkpoint in {self._manager.directory} cannot be written ({reason})'
    if is_permanent:
      return UserError(f'{text}; the earlier ones are intact.')
    if socket.gethostname() not in text:
      text += f' on {socket.gethostname()}'
    return MachineError(
      f'{text}; step {save.step} is lost, the earlier ones are intact: rerun the same command to '
      'resume.'
    )

  def _remove_remains(self, step: int) -> None:
    """Removes what a failed save left, if it can, lest it takes space until the next start."""
    if jax.process_index() == 0:
      folder = self._manager.directory
      with contextlib.suppress(Exception):
        for child in (*folder.glob(f'{step}.orbax-checkpoint-tmp*'), folder / str(step)):
          child.rmtree(missing_ok=True)

  def restore(self, step: int, abstract_state: Any) -> Any:
    """Reads the state of `step`, which an older version may have written.

    Args:
      step: of a complete checkpoint.
      abstract_state: a tree of `ShapeDtypeStruct`s with the shardings to read into.

    Raises:
      UserError: when it cannot be read, for instance because it is of another model.
      MachineError: when it cannot be read for now.
    """
    folder = self._manager.directory / str(step)
    try:
      return with_retries(self._restore, step, abstract_state)
    except Exception as error:  # noqa: BLE001 - Orbax and TensorStore raise a dozen types
      if is_out_of_memory(error):
        raise
      message = f'The checkpoint {folder} cannot be read although its files are intact'
      raise storage_error(message, error) from None

  def _restore(self, step: int, abstract_state: Any) -> Any:
    is_divided = jax.process_count() > 1
    to_read = divided_reads.divide(abstract_state) if is_divided else abstract_state
    state = self._read(step, to_read)
    return divided_reads.gather(state, abstract_state) if is_divided else state

  def _read(self, step: int, abstract_state: Any) -> Any:
    folder = self._manager.directory / str(step)
    if hasattr(abstract_state, 'ema_params') and OLD_EMA_PARAMS in stored_tree(folder / ITEM):
      fields = dict(vars(abstract_state))
      fields[OLD_EMA_PARAMS] = fields.pop('ema_params')
      fields = dict(self._manager.restore(step, args=ocp.args.StandardRestore(fields)))
      fields['ema_params'] = fields.pop(OLD_EMA_PARAMS)
      return dataclasses.replace(abstract_state, **fields)
    return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
