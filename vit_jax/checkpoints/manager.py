"""Checkpoints of a run: written asynchronously by Orbax; the last few and the best are kept."""

import dataclasses
import math
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

ITEM = 'default'  # Orbax's folder for the state, in the folder of a step
OLD_EMA_PARAMS = 'average'  # what older versions call the state's `ema_params`
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)  # TensorStore's for a full disk is ValueError


def _score(metrics: dict[str, float]) -> float:
  """Of the best checkpoint; older versions call it accuracy."""
  return metrics.get('score', metrics.get('accuracy', -math.inf))


def has_checkpoint(workdir: epath.Path) -> bool:
  """Returns True if the workdir has a checkpoint to resume from."""
  return bool(checkpoint_steps(workdir))


def checkpoint_steps(workdir: epath.Path) -> list[int]:
  """The steps of a run that have a complete checkpoint, newest first; some may be damaged."""
  return _steps(workdir / 'checkpoints')


def _steps(folder: epath.Path) -> list[int]:
  """The steps that have a complete checkpoint, newest first."""
  return sorted(ocp.utils.checkpoint_steps(folder), reverse=True) if folder.exists() else []


def _has_manifest(folder: epath.Path, step: int) -> bool:
  return (folder / str(step) / manifest.MANIFEST).exists()


def _rename_damaged(folder: epath.Path) -> list[str]:
  """Renames damaged checkpoints to <step>.damaged, if one is intact; returns warnings."""
  steps = _steps(folder)
  if steps and not any(_has_manifest(folder, step) for step in steps):
    return [f'the checkpoints have no {manifest.MANIFEST}, so they are used without verification']
  problems: dict[int, str] = {}
  intact: list[int] = []
  for step in steps:
    if problem := manifest.verify(folder / str(step), thorough=not intact):
      problems[step] = problem
    else:
      intact.append(step)
  if steps and not intact:
    listed = '; '.join(f'{step}: {problem}' for step, problem in problems.items())
    raise UserError(
      f'No checkpoint in {folder} is intact ({listed}); choose another --workdir, or remove '
      f'{folder} to start over.'
    )
  warnings = [
    f'the save {child.name} was interrupted and is ignored'
    for child in sorted(folder.glob('*.orbax-checkpoint-tmp*'))
  ]
  for step, problem in problems.items():
    renamed = folder / f'{step}.damaged'
    renamed.rmtree(missing_ok=True)
    (folder / str(step)).rename(renamed)
    warnings.append(
      f'checkpoint {step} is damaged: {problem}; it was renamed to {renamed.name}, and the newest '
      f'intact one is {intact[0]}'
    )
  return warnings


class Checkpointer:
  """Saves and restores the state of a run in `workdir/checkpoints`, one atomic folder per step.

  It renames damaged checkpoints, and keeps the last `keep` and the one with the best score. As a
  context manager it waits for the save in progress.

  Attributes:
    warnings: about damaged checkpoints and interrupted saves, one line each, on process 0.

  Raises:
    UserError: when there are checkpoints, but none is intact.
  """

  def __init__(self, workdir: epath.Path, keep: int):
    folder = workdir / 'checkpoints'
    self.warnings = _rename_damaged(folder) if jax.process_index() == 0 else []
    multihost_utils.sync_global_devices('damaged checkpoints are renamed')
    best = BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
    self._saving_step: int | None = None
    self._manager = ocp.CheckpointManager(
      folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(policies=[LatestN(n=keep), best]),
        best_fn=_score,  # without it metrics are not saved
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
      ),
    )
    metrics = [self._manager.metrics(step) for step in self._manager.all_steps()]
    self._best = max(map(_score, filter(None, metrics)), default=-math.inf)

  def _write_manifest(self) -> None:
    """Orbax calls it on process 0 when all files are written, before it renames the folder."""
    folder, step = self._manager.directory, self._saving_step
    temporary = next(folder.glob(f'{step}.orbax-checkpoint-tmp*'), None)
    manifest.write_manifest(temporary or folder / str(step))

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, kind: type[BaseException] | None, *unused) -> None:
    try:
      self._manager.wait_until_finished()
    except _WRITE_ERRORS as error:
      if kind in (None, PreemptedError):  # another error is the one to report
        raise self._write_error(error) from None
    finally:
      self._manager.close()

  def _write_error(self, error: Exception) -> UserError:
    reason = 'no space left' if 'No space left' in str(error) else first_line(error)
    return UserError(
      f'A checkpoint in {self._manager.directory} cannot be written ({reason}); '
      'the earlier ones are intact.'
    )

  def latest_step(self) -> int | None:
    """The step of the newest complete checkpoint; None without one."""
    return self._manager.latest_step()

  def is_best(self, score: float) -> bool:
    """Returns True if no checkpoint has reached this score, such as the test accuracy."""
    return score > self._best

  def save(self, step: int, state: Any, score: float | None) -> None:
    """Starts to save; returns once the arrays are copied, and writes them in the background.

    Raises:
      UserError: when this or an earlier checkpoint cannot be written.
    """
    metrics = None if score is None else {'score': score}
    self._best = max(self._best, -math.inf if score is None else score)
    try:
      self._manager.wait_until_finished()
      self._saving_step = step
      self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)
    except _WRITE_ERRORS as error:
      if is_out_of_memory(error):
        raise
      raise self._write_error(error) from None

  def restore(self, step: int, abstract_state: Any) -> Any:
    """Reads the state of `step`, which an older version may have written.

    Args:
      step: of a complete checkpoint.
      abstract_state: a tree of `ShapeDtypeStruct`s with the shardings to read into.

    Raises:
      UserError: when it cannot be read, for instance because it is of another model.
    """
    folder = self._manager.directory / str(step)
    try:
      if hasattr(abstract_state, 'ema_params') and OLD_EMA_PARAMS in stored_tree(folder / ITEM):
        fields = dict(vars(abstract_state))
        fields[OLD_EMA_PARAMS] = fields.pop('ema_params')
        fields = dict(self._manager.restore(step, args=ocp.args.StandardRestore(fields)))
        fields['ema_params'] = fields.pop(OLD_EMA_PARAMS)
        return dataclasses.replace(abstract_state, **fields)
      return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
    except Exception as error:  # noqa: BLE001 - Orbax and TensorStore raise a dozen types
      if is_out_of_memory(error):
        raise
      raise UserError(
        f'The checkpoint {folder} cannot be read although its files are intact '
        f'({first_line(error)}).'
      ) from None


def stored_tree(folder: epath.Path) -> dict[str, Any]:
  """The tree of an Orbax checkpoint, with metadata (shape, dtype) for each array."""
  with ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.metadata(folder).item_metadata.tree


def find_checkpoint(folder: epath.Path) -> epath.Path | None:
  """Finds the newest intact checkpoint in a workdir, its checkpoints/, or the folder of a step.

  Returns:
    The folder for `read_params`; None without a checkpoint.

  Raises:
    UserError: when there are checkpoints, but none is intact.
  """
  for step_folder in (folder, folder / ITEM):
    if (step_folder / '_METADATA').exists():
      return step_folder
  for candidate in (folder / 'checkpoints', folder):
    steps = _steps(candidate)
    with_manifest = [step for step in steps if _has_manifest(candidate, step)]
    for step in with_manifest or steps:  # other programs write no manifests
      if not with_manifest or not manifest.verify(candidate / str(step)):
        return candidate / str(step) / ITEM
    if steps:
      raise UserError(f'No checkpoint in {candidate} is intact; choose another folder.')
  return None


def _check_declared_size(arrays: list[Any], size: int) -> None:
  """Raises `ValueError` for arrays, or chunks of them, that cannot be in `size` bytes of files."""
  declared = 0
  for array in arrays:
    chunk = getattr(array.storage, 'chunk_shape', None) or ()
    declared += max(math.prod(array.shape), math.prod(chunk)) * np.dtype(array.dtype).itemsize
  if declared > 50 * size + 2**26:  # trained weights hardly compress
    raise ValueError(f'it declares {declared:,} bytes of arrays in {size:,} bytes of files')


def read_params(folder: epath.Path) -> dict[str, np.ndarray]:
  """Reads the parameters, or their moving average if it is kept: {'head/bias': array, …}.

  Args:
    folder: from `find_checkpoint`.

  Raises:
    UserError: when it cannot be read.
  """
  try:
    size = manifest.folder_size(folder)
    tree = stored_tree(folder)
    key = next((key for key in ('ema_params', OLD_EMA_PARAMS, 'params') if tree.get(key)), None)
    wanted = {key: tree[key]} if key else tree
    _check_declared_size(jax.tree.leaves(wanted), size)
    with ocp.PyTreeCheckpointer() as checkpointer:
      restored = checkpointer.restore(
        folder,
        args=ocp.args.PyTreeRestore(
          item=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), wanted),
          restore_args=jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray), wanted),
          partial_restore=True,
        ),
      )
  except Exception as error:  # noqa: BLE001 - Orbax and TensorStore raise a dozen types
    raise UserError(f'The checkpoint {folder} cannot be read ({first_line(error)}).') from None
  params = restored[key] if key else restored
  return traverse_util.flatten_dict(params, sep='/')  # pyright: ignore[reportReturnType]
