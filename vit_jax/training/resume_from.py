"""A run that starts from the whole state of another one, under a changed config.

Steps keep their numbers, and so does the data: step t uses the batch that it would use in a run of
this config from the beginning.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from vit_jax.checkpoints.manager import Checkpointer
from vit_jax.checkpoints.source_checkpoint import choose_step, restore_state
from vit_jax.config import Config, flatten
from vit_jax.config.fields import walk_fields
from vit_jax.config.reading import read_json
from vit_jax.data.loading.skipping import check_skipped
from vit_jax.distributed.processes import broadcast_from_process_0
from vit_jax.errors import UserError
from vit_jax.files import write_text
from vit_jax.training.same_data import check_same_classes
from vit_jax.training.workdir import resolve_workdir

RECORD_FILE = 'resumed_from.json'
# Fields that the state depends on, or that only the beginning of a run reads.
_FIXED = re.compile(
  r'model\.(?!dropout_rate|attention_dropout_rate|stochastic_depth_rate)|'
  r'optimizer\.(name|min_dim_to_factor|freeze)$|lora\.|'
  r'data\.(image_size|channels)$|objective$|masked_target$|init_from$|init_head$|position_resize$'
)
_ORDER = ('seed', 'batch_size', 'data.class_balanced', 'data.train.source', 'data.train.split')


@dataclasses.dataclass(frozen=True)
class SourceRun:
  """The state that a run starts from, and what it changes."""

  workdir: epath.Path
  step: int
  changes: dict[str, tuple[Any, Any]]  # field: (there, here)

  def __str__(self) -> str:
    changed = [f'{name} {old!r} -> {new!r}' for name, (old, new) in self.changes.items()]
    text = f'the state is that of step {self.step} of {self.workdir}; '
    text += f'changed: {", ".join(changed)}' if changed else 'no field is changed'
    if reordered := [name for name in _ORDER if name in self.changes]:
      text += (
        f'\n{", ".join(reordered)}: the batches from step {self.step} on are those of this config, '
        'so examples of the current epoch may be repeated or left out'
      )
    return text


def find_source(config: Config, facts: Mapping[str, Any]) -> SourceRun:
  """Finds and checks what `config.resume_from` names; reads no array.

  Args:
    config: of the new run, with whole numbers of steps.
    facts: of its data, from `check_same_on_all_processes`.

  Raises:
    UserError: for a run or a step that does not exist, a damaged checkpoint, or a change that the
      state does not allow.
  """
  match = re.fullmatch(r'(.+?)(?:@(\d+))?', config.resume_from)
  if not match:
    config.refuse('resume_from', 'it takes WORKDIR or WORKDIR@STEP')
  workdir = resolve_workdir(match[1])
  if not (workdir / 'config.json').exists():
    raise UserError(f'config.resume_from: {workdir} has no config.json, so it holds no run.')
  before = read_json(workdir / 'config.json')
  changes = _changes(before, config)
  execution = {name for name, _, each in walk_fields(config) if each.metadata['execution']}
  fixed = (
    name
    for name, values in changes.items()
    if (_FIXED.match(name) and name not in execution)
    or (name.endswith('lr_multiplier') and 0 in values)  # frozen parameters have no moments
  )
  if name := next(fixed, None):
    old, new = changes[name]
    raise UserError(
      f'config.{name} is {new!r}, but the run in {workdir} has {old!r}, and its state cannot be '
      'resumed with another value.'
    )
  if config.objective == 'supervised':
    check_same_classes(facts, workdir)
  is_first = jax.process_index() == 0
  step = broadcast_from_process_0(
    choose_step(workdir, int(match[2]) if match[2] else None) if is_first else 0
  )
  if step > config.total_steps:
    config.refuse('total_steps', f'the state in {workdir} is that of step {step}')
  if not changes.keys() & set(_ORDER):
    check_skipped(before.data.skip_batches, config.data.skip_batches, step)
  return SourceRun(workdir, step, changes)


def _changes(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
  """{field: (before, now)} of those that differ; evaluations that only one has are None there."""
  old, new = flatten(before), flatten(now)
  return {
    name: (old.get(name), new.get(name))
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name) and name != 'resume_from'
  }


def copy_state(source: SourceRun, abstract_state: Any, workdir: epath.Path, keep: int) -> str:
  """Makes the state the first checkpoint of a new run; returns lines for the user.

  From then on the run needs its source no more, and is resumed as any other.

  Args:
    source: from `find_source`.
    abstract_state: of the new run, with its shardings.
    workdir: of the new run; gets resumed_from.json, too.
    keep: checkpoints of the new run to keep.

  Raises:
    UserError: when the state cannot be read or written.
  """
  if jax.process_index() == 0:
    changes = {name: {'from': old, 'to': new} for name, (old, new) in source.changes.items()}
    record = {'workdir': str(source.workdir), 'step': source.step, 'changed': changes}
    write_text(workdir / RECORD_FILE, json.dumps(record, indent=2) + '\n')
  state = restore_state(source.workdir, source.step, abstract_state)
  with Checkpointer(workdir, keep) as checkpointer:
    checkpointer.save(source.step, state, score=None)
  return str(source)
