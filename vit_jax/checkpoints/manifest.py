"""The manifest of a checkpoint: sizes and checksums. TensorStore reads damaged files silently.

Each of several processes adds the files that it has written, and process 0 the rest.
"""

import concurrent.futures
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator

from etils import epath

from vit_jax.files import is_remote, is_special, read_json_object, write_text
from vit_jax.retries import storage_error, with_retries

MANIFEST = 'manifest.json'
_CHUNK_BYTES = 2**22
_PART = 'manifest.process_{}.json'  # until the manifest is complete
_NOT_LISTED = ('_CHECKPOINT_METADATA', MANIFEST)  # Orbax rewrites the first later


def _files(folder: epath.Path, prefix: str = '') -> Iterator[str]:
  for child in folder.iterdir():
    if child.is_dir():
      yield from _files(child, f'{prefix}{child.name}/')
    elif prefix or not (child.name in _NOT_LISTED or child.match(_PART.format('*'))):
      yield prefix + child.name


def _size(path: epath.Path) -> int:
  """In bytes; `stat` of etils fails for an owner without a user name."""
  return path.stat().length if is_remote(path) else os.path.getsize(path)


def folder_size(folder: epath.Path) -> int:
  """The bytes of all files in a folder; raises `ValueError` if a pipe or a device is among them."""
  names = list(_files(folder))
  if special := next((name for name in names if is_special(folder / name)), None):
    raise ValueError(f'{special} is a pipe or a device')
  return sum(_size(folder / name) for name in names)


def _read_entry(path: epath.Path) -> dict[str, int]:
  """Size in bytes and CRC-32 of a file."""
  size = checksum = 0
  with path.open('rb') as file:
    while chunk := file.read(_CHUNK_BYTES):
      size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
  return {'size': size, 'crc32': checksum}


def _read_entries(folder: epath.Path, names: Iterable[str]) -> dict[str, dict[str, int]]:
  names = sorted(names)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    entries = pool.map(lambda name: with_retries(_read_entry, folder / name), names)
    return dict(zip(names, entries, strict=True))


def _write_entries(path: epath.Path, entries: dict[str, dict[str, int]]) -> None:
  write_text(path, json.dumps(entries, indent=2, sort_keys=True) + '\n')


def write_part(folder: epath.Path, process: int) -> None:
  """Writes the entries of the files that one of several processes has written, while it may.

  `write_manifest` takes them over, so that process 0 reads no file of another process.

  Raises:
    OSError: when files cannot be read or written.
  """
  own = re.compile(rf'process_{process}(/|$)')
  names = filter(own.search, with_retries(lambda: list(_files(folder))))
  _write_entries(folder / _PART.format(process), _read_entries(folder, names))


def write_manifest(folder: epath.Path) -> None:
  """Writes the manifest of a complete checkpoint, atomically; raises `OSError`."""
  names = set(with_retries(lambda: list(_files(folder))))
  entries: dict[str, dict[str, int]] = {}
  parts = with_retries(lambda: list(folder.glob(_PART.format('*'))))
  for part in parts:
    entries |= read_json_object(part)
  entries = {name: entry for name, entry in entries.items() if name in names}
  _write_entries(folder / MANIFEST, entries | _read_entries(folder, names - entries.keys()))
  for part in parts:
    part.unlink()


def verify(
  folder: epath.Path, thorough: bool = True, share: tuple[int, int] = (0, 1)
) -> str | None:
  """Returns None for an intact checkpoint, otherwise what is wrong with it in a few words.

  Args:
    folder: of a step.
    thorough: compare the checksums of all files; otherwise only the sizes of large ones.
    share: (i, n): only the i-th of n parts of the files, so that n processes verify all.

  Raises:
    MachineError, UserError: when a file exists but cannot be read.
  """

  def check(name: str, expected: dict[str, int]) -> str | None:
    try:
      if is_special(folder / name):
        return f'{name} is a pipe or a device'
      size = with_retries(_size, folder / name)
      if size != expected['size']:
        return f'{name} has {size:,} bytes instead of {expected["size"]:,}'
      is_read = thorough or size <= _CHUNK_BYTES
      if is_read and with_retries(_read_entry, folder / name) != expected:
        return f'{name} has another checksum than when it was written'
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
      return f'{name} is missing'
    except OSError as error:  # perhaps temporary, so the checkpoint does not count as damaged
      raise storage_error(f'{folder / name} cannot be read', error) from None
    return None

  try:
    manifest = {
      name: {'size': int(entry['size']), 'crc32': int(entry['crc32'])}
      for name, entry in read_json_object(folder / MANIFEST).items()
    }
  except FileNotFoundError:
    return f'it has no {MANIFEST}'
  except OSError as error:
    raise storage_error(f'{folder / MANIFEST} cannot be read', error) from None
  except (ValueError, LookupError, TypeError):
    return f'its {MANIFEST} is not a manifest'
  index, count = share
  items = list(manifest.items())[index::count]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    return next(filter(None, pool.map(lambda item: check(*item), items)), None)
