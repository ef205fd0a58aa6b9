"""Checkpoints of a running training: Orbax, asynchronous, the last few and the best kept."""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from vit_jax.checkpoints import manifest
from vit_jax.errors import PreemptedError, UserError, first_line, is_out_of_memory

_METRIC = 'accuracy'
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)  # TensorStore's for a full disk is ValueError


def _folder(workdir: epath.Path) -> epath.Path:
  return workdir / 'checkpoints'


def _accuracy(metrics: dict[str, float]) -> float:
  return metrics[_METRIC]


def has_checkpoint(workdir: epath.Path) -> bool:
  """Whether checkpoints are there to go on from."""
  folder = _folder(workdir)
  return folder.exists() and bool(ocp.utils.checkpoint_steps(folder))


def _steps_with_manifest(folder: epath.Path) -> list[int]:
  """The steps to choose from, newest first: those that carry a manifest, if there are any.

  Other programs, and this one before it had manifests, write none; what Orbax has committed must
  be trusted then.
  """
  steps = sorted(ocp.utils.checkpoint_steps(folder), reverse=True)
  ours = [step for step in steps if (folder / str(step) / manifest.MANIFEST).exists()]
  return ours or steps


def _put_aside_damaged(folder: epath.Path) -> list[str]:
  """Renames steps that are not what was written; says what was found.

  Raises:
    UserError: when there are steps, but none is intact; then nothing is renamed.
  """
  steps = sorted(ocp.utils.checkpoint_steps(folder), reverse=True)
  if steps and not (folder / str(_steps_with_manifest(folder)[0]) / manifest.MANIFEST).exists():
    return [f'the checkpoints have no {manifest.MANIFEST} yet, so they are taken as they are']
  problems, newest = {}, None
  for step in steps:
    if problem := manifest.verify(folder / str(step), thorough=newest is None):
      problems[step] = problem
    elif newest is None:
      newest = step
  if steps and newest is None:
    raise UserError(
      f'No checkpoint in {folder} is intact ('
      f'{"; ".join(f"{step}: {problem}" for step, problem in problems.items())}); choose '
      f'another --workdir, or remove {folder} to start from the beginning.'
    )
  notes = [
    f'{child.name} was cut short; going on without it'
    for child in sorted(folder.glob('*.orbax-checkpoint-tmp*'))
  ]
  for step, problem in problems.items():
    aside = folder / f'{step}.damaged'
    if aside.exists():
      aside.rmtree()
    (folder / str(step)).rename(aside)
    notes.append(
      f'checkpoint {step} is damaged: {problem}; it is now {aside.name}, and the newest intact '
      f'one is {newest}'
    )
  return notes


class Checkpointer:
  """The folder `workdir/checkpoints`: one sub-folder a step, complete or not there at all.

  A checkpoint whose step was evaluated carries its accuracy; the best of these is kept beside
  the last `keep`. Damaged ones are put aside first. As a context manager it waits for what is
  being written.

  Attributes:
    notes: what was found damaged or cut short, one line each, on process 0.
  """

  def __init__(self, workdir: epath.Path, keep: int):
    folder = _folder(workdir)
    self.notes = []
    if jax.process_index() == 0 and folder.exists():
      self.notes = _put_aside_damaged(folder)
    multihost_utils.sync_global_devices('damaged checkpoints are put aside')
    best = BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False)
    self._saving = None  # the step that is being written
    self._manager = ocp.CheckpointManager(
      folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(policies=[LatestN(n=keep), best]),
        best_fn=_accuracy,  # without it metrics are not saved
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
      ),
    )
    metrics = [self._manager.metrics(step) for step in self._manager.all_steps()]
    self._best = max((m[_METRIC] for m in metrics if m), default=-1.0)

  def _write_manifest(self) -> None:
    """Called by Orbax on process 0 when all files are written, before it renames the folder."""
    folder = self._manager.directory
    written = [*folder.glob(f'{self._saving}.orbax-checkpoint-tmp*'), folder / str(self._saving)]
    manifest.write_manifest(written[0])

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, kind: type[BaseException] | None, *unused) -> None:
    try:
      self._manager.wait_until_finished()
    except _WRITE_ERRORS as error:
      if kind in (None, PreemptedError):  # else the error under way says more
        raise self._cannot_write(error) from None
    finally:
      self._manager.close()

  def _cannot_write(self, error: Exception) -> UserError:
    why = 'no space left' if 'No space left' in str(error) else first_line(error)
    return UserError(
      f'A checkpoint in {self._manager.directory} cannot be written ({why}); '
      'the ones before it are whole.'
    )

  def latest_step(self) -> int | None:
    """The step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def is_best(self, accuracy: float) -> bool:
    """Whether no saved state has reached this accuracy."""
    return accuracy > self._best

  def save(self, step: int, state: Any, accuracy: float | None) -> None:
    """Starts saving; returns once the arrays are copied, the writing goes on behind.

    Raises:
      UserError: when this or an earlier save could not be written.
    """
    metrics = None if accuracy is None else {_METRIC: accuracy}
    self._best = max(self._best, -1.0 if accuracy is None else accuracy)
    try:
      self._manager.wait_until_finished()
      self._saving = step
      self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)
    except _WRITE_ERRORS as error:
      if is_out_of_memory(error):
        raise
      raise self._cannot_write(error) from None

  def restore(self, step: int, abstract_state: Any) -> Any:
    """Reads the state of `step` into the shardings of `abstract_state`."""
    try:
      return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
    except Exception as error:  # noqa: BLE001 - Orbax and TensorStore raise a dozen kinds
      if is_out_of_memory(error):
        raise
      raise UserError(
        f'The checkpoint {self._manager.directory / str(step)} cannot be read '
        f'({first_line(error)}); its files are those that were written.'
      ) from None


def find_step(folder: epath.Path) -> epath.Path | None:
  """The newest complete step in a workdir, in its checkpoints/, or `folder` if it is a step."""
  for candidate in (folder, folder / 'default'):
    if (candidate / '_METADATA').exists():
      return candidate
  for candidate in (folder / 'checkpoints', folder):
    steps = _steps_with_manifest(candidate) if candidate.exists() else ()
    for step in steps:
      listed = (candidate / str(step) / manifest.MANIFEST).exists()
      if not listed or manifest.verify(candidate / str(step)) is None:
        return candidate / str(step) / 'default'
    if steps:
      raise UserError(f'No checkpoint in {candidate} is intact.')
  return None


def read_step(folder: epath.Path) -> dict[str, np.ndarray]:
  """The parameters in an Orbax checkpoint (the average, where one is kept), by their names.

  Args:
    folder: as `find_step` finds it.

  Raises:
    UserError: for a checkpoint that cannot be read.
  """
  try:
    with ocp.PyTreeCheckpointer() as checkpointer:
      tree = checkpointer.metadata(folder).item_metadata.tree
      key = next((key for key in ('average', 'params') if tree.get(key)), None)
      item = {key: tree[key]} if key else tree
      restored = checkpointer.restore(
        folder,
        args=ocp.args.PyTreeRestore(
          item=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), item),
          restore_args=jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray), item),
          partial_restore=True,
        ),
      )
  except Exception as error:  # noqa: BLE001 - Orbax and TensorStore raise a dozen kinds
    raise UserError(f'The checkpoint {folder} cannot be read ({first_line(error)}).') from None
  return traverse_util.flatten_dict(restored[key] if key else restored, sep='/')
