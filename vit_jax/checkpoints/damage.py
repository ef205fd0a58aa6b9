"""Which checkpoints a workdir has, and which of them are intact."""

import jax
import orbax.checkpoint as ocp
from etils import epath

from vit_jax.checkpoints import manifest
from vit_jax.distributed.processes import broadcast_from_process_0, gather_from_all
from vit_jax.errors import UserError
from vit_jax.retries import with_retries


def has_checkpoint(workdir: epath.Path) -> bool:
  """Returns True if the workdir has a checkpoint to resume from."""
  return bool(checkpoint_steps(workdir))


def checkpoint_steps(workdir: epath.Path) -> list[int]:
  """The steps of a run that have a complete checkpoint, newest first; some may be damaged."""
  return with_retries(complete_steps, workdir / 'checkpoints')


def complete_steps(folder: epath.Path) -> list[int]:
  """The steps that have a complete checkpoint, newest first."""
  return sorted(ocp.utils.checkpoint_steps(folder), reverse=True) if folder.exists() else []


def has_manifest(folder: epath.Path, step: int) -> bool:
  return (folder / str(step) / manifest.MANIFEST).exists()


def _verify_together(folder: epath.Path) -> str | None:
  """What is wrong with a checkpoint; each process verifies a part of its files."""
  problem = manifest.verify(folder, share=(jax.process_index(), jax.process_count()))
  return next(filter(None, gather_from_all(problem)), None)


def rename_damaged(folder: epath.Path) -> list[str]:
  """Renames damaged checkpoints to <step>.damaged, if one is intact; all processes call it.

  From the newest to the first intact one they verify all files, of older ones only sizes.

  Returns:
    Warnings, on process 0.
  """
  is_first = jax.process_index() == 0
  steps = complete_steps(folder) if is_first else []
  is_verifiable = any(has_manifest(folder, step) for step in steps)
  problems: dict[int, str] = {}
  intact: list[int] = []
  to_verify = iter(steps if is_verifiable else [])
  while not intact and (step := broadcast_from_process_0(next(to_verify, -1))) >= 0:
    if problem := _verify_together(folder / str(step)):
      problems[step] = problem
    else:
      intact.append(step)
  if not is_first:
    return []
  if steps and not is_verifiable:
    return [f'the checkpoints have no {manifest.MANIFEST}, so they are used without verification']
  for step in to_verify:
    if problem := manifest.verify(folder / str(step), thorough=False):
      problems[step] = problem
  if steps and not intact:
    listed = '; '.join(f'{step}: {problem}' for step, problem in problems.items())
    raise UserError(
      f'No checkpoint in {folder} is intact ({listed}); choose another --workdir, or remove '
      f'{folder} to start over.'
    )
  return [
    f'the save {child.name} was interrupted and is ignored'
    for child in sorted(folder.glob('*.orbax-checkpoint-tmp*'))
  ] + [_rename(folder, step, problem, intact[0]) for step, problem in problems.items()]


def _rename(folder: epath.Path, step: int, problem: str, intact: int) -> str:
  """Renames a damaged checkpoint; returns a warning."""
  renamed = folder / f'{step}.damaged'
  renamed.rmtree(missing_ok=True)
  (folder / str(step)).rename(renamed)
  return (
    f'checkpoint {step} is damaged: {problem}; it was renamed to {renamed.name}, and the newest '
    f'intact one is {intact}'
  )
