"""Whether all processes of a run, and the run before it was stopped, see the same data.

Processes that see different files would train on other examples than they report, or wait for each
other for ever: one has a batch more than the other.
"""

import json
import socket
from collections.abc import Mapping
from typing import Any

from etils import epath

from vit_jax.data.sources import Source
from vit_jax.data.sources.source import fingerprint, hash_files
from vit_jax.distributed.processes import gather_from_all
from vit_jax.errors import UserError
from vit_jax.files import read_json_object, write_text

DATA_FILE = 'data.json'
_VERSION = 2  # of the facts: those of another version cannot be compared
_DIGITS = 24  # of a hash


def data_facts(source: Source) -> dict[str, Any]:
  """What is compared, by names that the user knows; the long ones as hashes."""
  hashes = {
    'class names': fingerprint('\0'.join(source.class_names)),
    'files': source.fingerprint,  # names, counts
    'file sizes': hash_files(source.files()) if source.files else '',
  }
  counts = {'examples': source.size, 'classes': source.num_classes}
  return counts | {name: text[:_DIGITS] for name, text in hashes.items()}


def check_same_on_all_processes(sources: Mapping[str, Source]) -> dict[str, Any]:
  """Compares the data of all processes, each of which must call it.

  Args:
    sources: by split, 'train' and 'test'.

  Returns:
    {split: facts}, for `check_same_as_before`.

  Raises:
    UserError: on all processes, naming two that differ, and in what.
  """
  facts = {split: data_facts(source) for split, source in sources.items()}
  first, *others = gather_from_all({'host': socket.gethostname()[:64], 'facts': facts})
  for i, other in enumerate(others, start=1):
    for split in facts:
      if name := _first_difference(first['facts'][split], other['facts'][split]):
        one, two = (each['facts'][split][name] for each in (first, other))
        where, elsewhere = f'on process 0 ({first["host"]})', f'on process {i} ({other["host"]})'
        raise UserError(
          f'The processes see different data: the {split} split has '
          f'{_describe(name, one, two, where, elsewhere)}; give all of them the same files.'
        )
  return facts


def check_same_as_before(facts: Mapping[str, Any], workdir: epath.Path) -> str:
  """Compares the data with that of the run that a workdir holds.

  Returns:
    A note, if the workdir does not record its data; else ''.

  Raises:
    UserError: naming what has changed.
  """
  path = workdir / DATA_FILE
  try:
    before = read_json_object(path)
  except (OSError, ValueError):
    before = {}
  if before.get('version') != _VERSION:
    return f'{workdir} does not record the data that its run began with; it is taken as unchanged.'
  for split in facts:
    if name := _first_difference(before.get(split, {}), facts[split]):
      values = before[split][name], facts[split][name]
      raise UserError(
        f'The data of the run in {workdir} has changed: the {split} split has '
        + _describe(name, *values, 'at its beginning', 'at this start')
        + f'; restore the files, choose another --workdir, or remove {path} to resume with '
        'the present data.'
      )
  return ''


def check_same_classes(facts: Mapping[str, Any], workdir: epath.Path) -> None:
  """Raises `UserError` unless the run in a workdir, if it records its data, has these classes."""
  try:
    before = read_json_object(workdir / DATA_FILE)
  except (OSError, ValueError):
    return
  names = ('classes', 'class names') if before.get('version') == _VERSION else ()
  one, other = ({name: each['train'][name] for name in names} for each in (before, facts))
  if name := _first_difference(one, other):
    differing = _describe(name, one[name], other[name], f'in {workdir}', 'here')
    raise UserError(
      f'The state of the run in {workdir} is of other classes: the train split has {differing}.'
    )


def write_facts(facts: Mapping[str, Any], workdir: epath.Path) -> None:
  """Records the data of a run, for `check_same_as_before`."""
  content = {'version': _VERSION, **facts}
  write_text(workdir / DATA_FILE, json.dumps(content, indent=2) + '\n')


def _first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
  return next((name for name in one if name in other and one[name] != other[name]), None)


def _describe(name: str, one: Any, other: Any, where: str, elsewhere: str) -> str:
  """'80 examples at its beginning and 79 at this start', 'other file sizes at …'."""
  if isinstance(one, int) and isinstance(other, int):
    return f'{one:,} {name} {where} and {other:,} {elsewhere}'
  return f'other {name} {where} than {elsewhere}'
