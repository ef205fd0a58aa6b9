"""Whether a preparation may begin in a folder, or go on there; one at a time."""

import fcntl
import json
import pathlib
from collections.abc import Callable
from typing import Any

from vit_jax.data.sources.array_record import CARD, UNFINISHED
from vit_jax.errors import UserError
from vit_jax.prepare.listing import Listing
from vit_jax.prepare.shard_writer import Encoding, write_file

_SETTINGS = 'settings.json'
_VERSION = 1  # of what is written; another one is not continued


def make_settings(listing: Listing, name: str, encoding: Encoding, shards: int) -> dict[str, Any]:
  """All that a prepared data set depends on, but the content of the images."""
  return {
    'version': _VERSION,
    'name': name,
    'source': listing.source,
    'listing': listing.fingerprint,
    'splits': {split: len(examples) for split, examples in listing.splits.items()},
    'classes': len(listing.class_names),
    'size': encoding.size,
    'quality': encoding.quality,
    'shards': shards,
  }


def refuse_other(target: pathlib.Path, known: dict[str, Any], settings: dict[str, Any]) -> None:
  """Raises `UserError` when a data set was begun with other settings."""
  for key in (key for key, value in settings.items() if known.get(key) != value):
    if key == 'listing':
      raise UserError(
        f'The files of {settings["source"]} have changed since the preparation of {target} '
        'began; remove it, or name another TARGET.'
      )
    raise UserError(
      f'{target} was begun with {key}={known.get(key)}, not {settings[key]}; run the command as '
      'it was, or name another TARGET.'
    )


def refuse_taken(target: pathlib.Path) -> None:
  """Raises `UserError` for a TARGET that holds anything of others."""
  if target.exists() and not target.is_dir():
    raise UserError(f'{target} is a file; TARGET is a folder.')
  begun = (target / UNFINISHED / _SETTINGS).exists() or (target / CARD).exists()
  if target.exists() and not begun and any(e.name != UNFINISHED for e in target.iterdir()):
    raise UserError(f'{target} is there already and is not empty; name another TARGET.')


def begin(
  target: pathlib.Path, settings: dict[str, Any], count: Callable[[], dict[str, int]]
) -> dict[str, int]:
  """Makes TARGET, or checks what is there; returns the number of shards of each split."""
  file = target / UNFINISHED / _SETTINGS
  if not file.exists():
    content = json.dumps({'settings': settings, 'shards': count()}, indent=2)
    try:
      file.parent.mkdir(parents=True, exist_ok=True)
    except (PermissionError, NotADirectoryError, FileNotFoundError) as error:
      raise UserError(f'{target} cannot be made: {error.strerror}.') from None
    write_file(file, content.encode())
  known = json.loads(file.read_text())
  refuse_other(target, known['settings'], settings)
  return known['shards']


class Lock:
  """Keeps other processes from preparing the same TARGET."""

  def __init__(self, target: pathlib.Path):
    self._target = target

  def __enter__(self) -> None:
    self._file = open(self._target / UNFINISHED / _SETTINGS, 'rb')
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(f'Another process is preparing {self._target}; wait for its end.') from None

  def __exit__(self, *args: object) -> None:
    self._file.close()
