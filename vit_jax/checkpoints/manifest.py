"""Whether a checkpoint is still what was written: a manifest of its files inside its folder.

TensorStore reads flipped bits without noticing, so sizes and checksums are kept beside them.
"""

import concurrent.futures
import json
import os
import zlib
from collections.abc import Iterator

from etils import epath

from vit_jax.errors import UserError

MANIFEST = 'manifest.json'
_CHUNK = 2**22  # bytes
# Orbax writes this one again after the manifest; nothing that is restored depends on it.
_NOT_LISTED = ('_CHECKPOINT_METADATA', MANIFEST)


def _files(folder: epath.Path, prefix: str = '') -> Iterator[str]:
  for child in folder.iterdir():
    if child.is_dir():
      yield from _files(child, f'{prefix}{child.name}/')
    elif prefix or child.name not in _NOT_LISTED:
      yield prefix + child.name


def _size(path: epath.Path) -> int:
  """In bytes; `Path.stat` of etils would fail where the owner has no name."""
  return path.stat().length if '://' in os.fspath(path) else os.path.getsize(path)


def _facts(path: epath.Path) -> dict[str, int]:
  """Size in bytes and CRC-32 of a file."""
  size = checksum = 0
  with path.open('rb') as file:
    while chunk := file.read(_CHUNK):
      size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
  return {'size': size, 'crc32': checksum}


def write_manifest(folder: epath.Path) -> None:
  """Writes the manifest of a complete checkpoint; whole or not at all.

  Raises:
    OSError: when a file cannot be read, or the manifest not be written.
  """
  names = sorted(_files(folder))
  with concurrent.futures.ThreadPoolExecutor() as pool:
    facts = dict(zip(names, pool.map(_facts, (folder / name for name in names)), strict=True))
  part = folder / f'{MANIFEST}.part'
  part.write_text(json.dumps(facts, indent=2) + '\n')
  part.replace(folder / MANIFEST)


def verify(folder: epath.Path, thorough: bool = True) -> str | None:
  """What is wrong with a checkpoint; None if it is as it was written.

  Args:
    folder: of one step.
    thorough: read all files; otherwise of large ones only the size is looked at.

  Raises:
    UserError: when what is there cannot be read.
  """

  def check(name: str, expected: dict[str, int]) -> str | None:
    try:
      size = _size(folder / name)
      if size != expected['size']:
        return f'{name} has {size:,} bytes instead of {expected["size"]:,}'
      if (thorough or size <= _CHUNK) and _facts(folder / name) != expected:
        return f'{name} is not what was written'
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
      return f'{name} is missing'
    except OSError as error:  # need not last, so it is no damage
      raise UserError(f'{folder / name} cannot be read: {error.strerror or error}.') from None
    return None

  try:
    manifest = json.loads((folder / MANIFEST).read_text())
    expected = {
      name: {'size': int(f['size']), 'crc32': int(f['crc32'])} for name, f in manifest.items()
    }
  except FileNotFoundError:
    return f'it has no {MANIFEST}'
  except (ValueError, LookupError, TypeError, AttributeError):
    return f'its {MANIFEST} is not what was written'
  with concurrent.futures.ThreadPoolExecutor() as pool:
    return next(filter(None, pool.map(check, expected.keys(), expected.values())), None)
