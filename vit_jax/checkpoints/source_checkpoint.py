"""The checkpoint of another run: found without touching its folder, read into another layout."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from vit_jax.checkpoints import manifest
from vit_jax.checkpoints.damage import checkpoint_steps, has_manifest
from vit_jax.checkpoints.stored_params import ITEM, OLD_EMA_PARAMS, stored_tree
from vit_jax.errors import UserError, first_line, is_out_of_memory

_OUTLIERS = 'sum_of_norms'  # names the entry of `skip_outliers` in the optimizer's state


def choose_step(workdir: epath.Path, step: int | None) -> int:
  """The step whose checkpoint is intact; None chooses the newest one.

  Raises:
    UserError: when there is none, naming those that there are.
  """
  folder, steps = workdir / 'checkpoints', checkpoint_steps(workdir)
  listed = ', '.join(map(str, reversed(steps)))
  if not steps:
    raise UserError(f'{workdir} has no checkpoints, so no run can start from its state.')
  if step is not None and step not in steps:
    raise UserError(f'{workdir} has no checkpoint of step {step}; it has those of {listed}.')
  problems = {}
  is_verifiable = any(has_manifest(folder, each) for each in steps)
  for each in steps if step is None else [step]:
    if not is_verifiable or not (problem := manifest.verify(folder / str(each))):
      return each
    problems[each] = f'{each}: {problem}'
  raise UserError(
    f'The checkpoint in {folder} is damaged ({"; ".join(problems.values())}); it has those of '
    f'{listed}.'
  )


def restore_state(workdir: epath.Path, step: int, abstract_state: Any) -> Any:
  """Reads the state of a step, where the optimizer may have lost or gained parts without moments.

  A moving average that the run did not keep starts as its parameters; what it knew of gradient
  norms starts empty. What is no longer wanted is not read.

  Args:
    workdir: of the run.
    step: of an intact checkpoint.
    abstract_state: a `TrainState` of `ShapeDtypeStruct`s: shardings and dtypes to read into.

  Raises:
    UserError: when it cannot be read, for instance because it is of another model.
  """
  folder = workdir / 'checkpoints' / str(step) / ITEM
  try:
    tree = stored_tree(folder)
    average = next((name for name in ('ema_params', OLD_EMA_PARAMS) if tree.get(name)), None)
    wanted = {'step': abstract_state.step, 'params': abstract_state.params}
    if average and abstract_state.ema_params is not None:
      wanted[average] = abstract_state.ema_params
    entries = _match_entries(tree['opt_state'], abstract_state.opt_state)
    wanted['opt_state'] = tuple(
      None if entry is None else abstract_state.opt_state[entry] for entry in entries
    )
    _check_shapes(tree, wanted)
    with ocp.PyTreeCheckpointer() as checkpointer:
      restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
      read = checkpointer.restore(
        folder, args=ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
      )
  except Exception as error:  # noqa: BLE001 - Orbax and TensorStore raise a dozen types
    if is_out_of_memory(error):
      raise
    raise UserError(
      f'The state in {folder} does not fit this config ({first_line(error)}).'
    ) from None
  opt_state = dict(zip(entries, read['opt_state'], strict=True))
  return dataclasses.replace(
    abstract_state,
    step=read['step'],
    params=read['params'],
    opt_state=tuple(
      opt_state[i] if i in opt_state else _zeros(entry)
      for i, entry in enumerate(abstract_state.opt_state)
    ),
    ema_params=read[average]
    if average in wanted
    else _copy(read['params'], abstract_state.ema_params),
  )


def _match_entries(stored: Any, wanted: Any) -> list[int | None]:
  """For each stored entry of a chain's state the wanted one that it is; None: it is not read.

  Those with arrays come in the same order, whatever stands between them.

  Raises:
    ValueError: when they do not match.
  """

  def is_outliers(entry: Any) -> bool:
    return hasattr(entry, _OUTLIERS) or (isinstance(entry, dict) and _OUTLIERS in entry)

  targets = {is_outliers(x): [] for x in (*stored, *wanted)}
  for i, entry in enumerate(wanted):
    if jax.tree.leaves(entry):
      targets[is_outliers(entry)].append(i)
  matches = [
    targets[is_outliers(x)].pop(0) if jax.tree.leaves(x) and targets[is_outliers(x)] else None
    for x in stored
  ]
  missing = targets.get(False, [])
  unread = [x for x, i in zip(stored, matches, strict=True) if i is None and not is_outliers(x)]
  if missing or jax.tree.leaves(unread):
    raise ValueError('the optimizers keep different moments')
  return matches


def _check_shapes(stored: Any, wanted: Any) -> None:
  """Raises `ValueError` for an array of another shape, which Orbax would cut or pad."""

  def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    keystr = functools.partial(jax.tree_util.keystr, simple=True, separator='/')
    return {keystr(path): tuple(leaf.shape) for path, leaf in leaves}

  old = shapes(stored)
  for name, shape in shapes(wanted).items():
    if old.get(name) != shape:
      raise ValueError(f'{name} has shape {old.get(name, "none")} there and {shape} here')


def _zeros(abstract: Any) -> Any:
  """Arrays of zeros with their shardings; empty states as they are."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  make = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)  # noqa: E731
  return jax.jit(make, out_shardings=shardings)() if jax.tree.leaves(abstract) else abstract


def _copy(params: Any, abstract: Any) -> Any:
  """Copies with other shardings; None without an abstract tree."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)
  return None if abstract is None else copy(params)
