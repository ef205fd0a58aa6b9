"""Whether a preparation may begin in a folder, or resume there; what its processes share there."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from etils import epath

from vit_jax import files
from vit_jax.data.sources.array_record import CARD, SHUFFLED_SINCE, UNFINISHED
from vit_jax.errors import UserError
from vit_jax.prepare.file_lock import try_lock
from vit_jax.prepare.listing import Listing
from vit_jax.prepare.shard_writer import Encoding

_SETTINGS = 'settings.json'
_PARTS = 'parts-of-'  # an empty file in UNFINISHED, with the number of parts
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
        'began, or this machine sees others; remove it, or choose another TARGET.'
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


def _create(file: pathlib.Path, content: bytes) -> None:
  """Creates a file at once with its content, unless another process has just created it."""
  scratch = file.with_name(files.scratch_path(epath.Path(file)).name)
  files.write_bytes(scratch, content)
  try:
    os.link(scratch, file)
  except FileExistsError:
    pass
  except OSError:  # a file system without hard links
    if not file.exists():
      scratch.replace(file)
  finally:
    scratch.unlink(missing_ok=True)


def begin_or_resume(
  target: pathlib.Path, settings: dict[str, Any], count_shards: Callable[[], dict[str, int]] | None
) -> dict[str, int]:
  """Creates TARGET if it is new; returns the number of shards of each split.

  Args:
    target, settings: of the preparation.
    count_shards: chooses these numbers if TARGET is new; None: it must not be new.

  Raises:
    UserError: when TARGET cannot be created, is new, or was begun with other settings.
  """
  file = target / UNFINISHED / _SETTINGS
  if not file.exists():
    if count_shards is None:
      raise UserError(
        f'No preparation has begun in {target}; parts, --merge and the workers of Beam need the '
        'same TARGET, on a file system that they share.'
      )
    content = json.dumps({'settings': settings, 'shards': count_shards()}, indent=2)
    try:
      file.parent.mkdir(parents=True, exist_ok=True)
    except (PermissionError, NotADirectoryError, FileNotFoundError) as error:
      raise UserError(f'{target} cannot be created: {error.strerror}.') from None
    _create(file, content.encode())
  previous = json.loads(file.read_text())
  check_same_settings(target, previous['settings'], settings)
  return previous['shards']


@contextlib.contextmanager
def locked(target: pathlib.Path, *, shared: bool = False) -> Iterator[None]:
  """Keeps other processes from preparing the same TARGET, unless both are parts (`shared`)."""
  path = target / UNFINISHED / _SETTINGS
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(open(path, 'rb' if shared else 'r+b'))
      is_free = try_lock(file, shared=shared) is not False
      path.stat()
    except FileNotFoundError:
      raise UserError(f'{target} was finished or removed a moment ago; run again.') from None
    if not is_free:
      raise UserError(f'Another process is preparing {target}; wait until it has finished.')
    yield


def remove_scratch(target: pathlib.Path, shards: Collection[str] | None = None) -> None:
  """Removes what killed processes left of these shards (names of files), or of all files.

  Nothing is removed that another process has locked, or may have: where there are no locks.
  """
  for scratch in target.glob('*.part'):
    if shards is None or scratch.name.rsplit('.', 2)[0] in shards:
      with contextlib.suppress(OSError), scratch.open('r+b') as file:
        if try_lock(file):
          scratch.unlink()


def note_parts(target: pathlib.Path, count: int) -> None:
  """Notes that TARGET is prepared in so many parts."""
  (target / UNFINISHED / f'{_PARTS}{count}').touch()


def noted_parts(target: pathlib.Path) -> int:
  """In how many parts TARGET is prepared: the number noted last, or 0."""
  notes = sorted((target / UNFINISHED).glob(f'{_PARTS}*'), key=lambda note: note.stat().st_mtime_ns)
  return int(notes[-1].name.removeprefix(_PARTS)) if notes else 0
