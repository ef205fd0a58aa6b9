"""Whether a preparation may begin in a folder, or resume there; one at a time."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax import files
from vit_jax.data.sources.array_record import CARD, SHUFFLED_SINCE, UNFINISHED
from vit_jax.errors import UserError
from vit_jax.prepare.listing import Listing
from vit_jax.prepare.shard_writer import Encoding

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

_SETTINGS = 'settings.json'
# Of the files written; a preparation of another version is not resumed. Before 2, examples were in
# the order of their source.
_VERSION = SHUFFLED_SINCE


def make_settings(listing: Listing, name: str, encoding: Encoding, shards: int) -> dict[str, Any]:
  """Returns all that the files of a data set depend on, except the content of the images."""
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


def check_same_settings(
  target: pathlib.Path, previous: dict[str, Any], settings: dict[str, Any]
) -> None:
  """Raises `UserError` when the data set in TARGET was begun with other settings."""
  for key in (key for key, value in settings.items() if previous.get(key) != value):
    if key == 'version':
      raise UserError(
        f'{target} was begun by another version of vit_jax; remove it, or choose another TARGET.'
      )
    if key == 'listing':
      raise UserError(
        f'The files of {settings["source"]} have changed since the preparation of {target} '
        'began; remove it, or choose another TARGET.'
      )
    raise UserError(
      f'{target} was begun with {key}={previous.get(key)}, not {settings[key]}; repeat the '
      'original command, or choose another TARGET.'
    )


def check_available(target: pathlib.Path) -> None:
  """Raises `UserError` when TARGET holds anything but a data set or the beginning of one."""
  if target.exists() and not target.is_dir():
    raise UserError(f'{target} is a file; TARGET is a folder.')
  is_ours = (target / UNFINISHED / _SETTINGS).exists() or (target / CARD).exists()
  if target.exists() and not is_ours and any(e.name != UNFINISHED for e in target.iterdir()):
    raise UserError(f'{target} exists and is not empty; choose another TARGET.')


def begin_or_resume(
  target: pathlib.Path, settings: dict[str, Any], count_shards: Callable[[], dict[str, int]]
) -> dict[str, int]:
  """Creates TARGET if it is new; returns the number of shards of each split.

  `count_shards` chooses these numbers, only once. Raises `UserError` when TARGET cannot be created,
  or was begun with other settings.
  """
  file = target / UNFINISHED / _SETTINGS
  if not file.exists():
    content = json.dumps({'settings': settings, 'shards': count_shards()}, indent=2)
    try:
      file.parent.mkdir(parents=True, exist_ok=True)
    except (PermissionError, NotADirectoryError, FileNotFoundError) as error:
      raise UserError(f'{target} cannot be created: {error.strerror}.') from None
    files.write_bytes(file, content.encode())
  previous = json.loads(file.read_text())
  check_same_settings(target, previous['settings'], settings)
  return previous['shards']


@contextlib.contextmanager
def locked(target: pathlib.Path) -> Iterator[None]:
  """Keeps other processes from preparing the same TARGET, and removes what killed ones left."""
  with open(target / UNFINISHED / _SETTINGS, 'rb') as file:
    try:
      if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(
        f'Another process is preparing {target}; wait until it has finished.'
      ) from None
    for scratch in target.glob('*.part'):
      scratch.unlink(missing_ok=True)
    yield
