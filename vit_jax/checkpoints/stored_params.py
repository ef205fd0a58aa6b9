"""The parameters in a checkpoint, whatever wrote it."""

import math
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from vit_jax.checkpoints import manifest
from vit_jax.checkpoints.damage import complete_steps, has_manifest
from vit_jax.errors import UserError, first_line

ITEM = 'default'  # Orbax's folder for the state, in the folder of a step
OLD_EMA_PARAMS = 'average'  # what older versions call the state's `ema_params`


def _open_checkpointer() -> ocp.Checkpointer:
  """For this process alone, which waits for no other."""
  process = jax.process_index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=process, active_processes={process}, barrier_sync_key_prefix=f'process_{process}'
  )
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
  return ocp.Checkpointer(handler, multiprocessing_options=options)


def stored_tree(folder: epath.Path) -> dict[str, Any]:
  """The tree of an Orbax checkpoint, with metadata (shape, dtype) for each array."""
  with _open_checkpointer() as checkpointer:
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
    steps = complete_steps(candidate)
    with_manifest = [step for step in steps if has_manifest(candidate, step)]
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
    with _open_checkpointer() as checkpointer:
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
