"""Which checkpoints a workdir has, and which of them are intact."""

import orbax.checkpoint as ocp
from etils import epath

from vit_jax.checkpoints import manifest
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


def rename_damaged(folder: epath.Path) -> list[str]:
  """Renames damaged checkpoints to <step>.damaged, if one is intact; returns warnings."""
  steps = complete_steps(folder)
  if steps and not any(has_manifest(folder, step) for step in steps):
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
