"""Checkpoints of a running training: Orbax, asynchronous, the last few and the best kept."""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from vit_jax.errors import UserError, first_line

_METRIC = 'accuracy'
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)  # TensorStore's for a full disk is ValueError


def _folder(workdir: epath.Path) -> epath.Path:
  return workdir / 'checkpoints'


def has_checkpoint(workdir: epath.Path) -> bool:
  """Whether a complete checkpoint is there to go on from."""
  folder = _folder(workdir)
  return folder.exists() and bool(ocp.utils.checkpoint_steps(folder))


class Checkpointer:
  """The folder `workdir/checkpoints`: one sub-folder a step, complete or not there at all.

  A checkpoint whose step was evaluated carries its accuracy; the best of these is kept beside
  the last `keep`. As a context manager it waits for what is being written.
  """

  def __init__(self, workdir: epath.Path, keep: int):
    best = BestN(
        get_metric_fn=lambda metrics: metrics[_METRIC], n=1, keep_checkpoints_without_metrics=False
    )
    self._manager = ocp.CheckpointManager(
        _folder(workdir),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies=[LatestN(n=keep), best]),
            cleanup_tmp_directories=True,
        ),
    )
    metrics = [self._manager.metrics(step) for step in self._manager.all_steps()]
    self._best = max((m[_METRIC] for m in metrics if m), default=-1.0)

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, kind: type[BaseException] | None, *unused) -> None:
    try:
      self._manager.wait_until_finished()
    except _WRITE_ERRORS as error:
      if kind is None:  # else the error under way says more
        raise self._cannot_write(error) from None
    finally:
      self._manager.close()

  def _cannot_write(self, error: Exception) -> UserError:
    return UserError(
        f'A checkpoint in {self._manager.directory} cannot be written ({first_line(error)}); '
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
      self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)
    except _WRITE_ERRORS as error:
      raise self._cannot_write(error) from None

  def restore(self, step: int, abstract_state: Any) -> Any:
    """Reads the state of `step` into the shardings of `abstract_state`."""
    try:
      return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
    except Exception as error:  # noqa: BLE001 - Orbax and TensorStore raise a dozen kinds
      raise UserError(
          f'The checkpoint {self._manager.directory / str(step)} cannot be read '
          f'({first_line(error)}); remove that folder to go on from the one before it.'
      ) from None


def find_step(folder: epath.Path) -> epath.Path | None:
  """The newest complete step in a workdir, in its checkpoints/, or `folder` if it is a step."""
  for candidate in (folder, folder / 'default'):
    if (candidate / '_METADATA').exists():
      return candidate
  for candidate in (folder / 'checkpoints', folder):
    steps = ocp.utils.checkpoint_steps(candidate) if candidate.exists() else ()
    if steps:
      return candidate / str(max(steps)) / 'default'
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
