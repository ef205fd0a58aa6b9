"""Downloads a published file: resumed where it broke off, checked, whole or not there at all."""

import base64
import contextlib
import functools
import hashlib
import http.client
import os
import pathlib
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import tqdm
from etils import epath

from vit_jax.errors import UserError, first_line

if TYPE_CHECKING:
  from vit_jax.weights.registry import Entry

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

TRIES = 3
TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20
_BAR = dict(unit='B', unit_scale=True, unit_divisor=1024, leave=False, disable=None)


class _UnreachableError(Exception):
  """The server does not give the file; the message says why."""


class _BrokenError(_UnreachableError):
  """The same, and it may when asked again."""


class _WrongFileError(Exception):
  """What came is not the published file; the message says why."""


def download(entry: 'Entry', target: epath.PathLike) -> None:
  """Downloads a published file; `target` appears at once, when all of it is there and checked.

  What has come so far is in `<target>.part`, which a later call goes on with unless the file on
  the server (its ETag, in `<target>.part.etag`) has changed. While one process downloads,
  others wait for it: the `.part` is locked (`flock`), where the system has such locks.
  Checked are the announced length, the md5 that Google Cloud Storage announces, the published
  size (to half a percent, at least 2 MiB: some are published as 1.13 GiB), and that it is a zip.

  Raises:
    UserError: when there is no connection or no such file, when it breaks off three times, is
      not the published one, or cannot be written.
  """
  target = pathlib.Path(target)
  part = target.with_name(target.name + '.part')
  etag_file = target.with_name(target.name + '.part.etag')
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(part) as file:
      if target.exists():  # Another process was faster.
        part.unlink()
        return
      try:
        _check(entry, file, announced=_transfer(entry, file, etag_file))
      except (_UnreachableError, _WrongFileError) as error:
        if isinstance(error, _WrongFileError) or not file.seek(0, os.SEEK_END):
          part.unlink()
          etag_file.unlink(missing_ok=True)
        raise
      os.fsync(file.fileno())
      if fcntl is None:  # Windows renames no open file.
        file.close()
      part.replace(target)
      etag_file.unlink(missing_ok=True)
  except _UnreachableError as error:
    raise UserError(
      f'{entry.name} cannot be downloaded ({error}); fetch {entry.url} by other means and put '
      f'it at {target}.'
    ) from None
  except _WrongFileError as error:
    raise UserError(
      f'What came from {entry.url} {error} and was deleted; try again, or put the right file '
      f'at {target}.'
    ) from None
  except OSError as error:
    raise UserError(
      f'{entry.name} cannot be written to {target.parent} ({first_line(error)}); make room '
      'there, or set VIT_JAX_CACHE to another folder.'
    ) from None


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens `path` to read and append, once no other process has it open this way."""
  while True:
    with open(path, 'a+b') as file:
      if fcntl is not None:
        with contextlib.suppress(OSError):  # A file system without locks.
          fcntl.flock(file, fcntl.LOCK_EX)
      if _is_at(path, file):  # Who had the lock before may have renamed or deleted it.
        yield file
        return


def _is_at(path: pathlib.Path, file: BinaryIO) -> bool:
  try:
    return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
  except FileNotFoundError:
    return False


def _transfer(entry: 'Entry', file: BinaryIO, etag_file: pathlib.Path) -> str:
  """Brings all bytes into `file`, in up to `TRIES` requests; returns the announced hashes."""
  for _ in range(TRIES - 1):
    with contextlib.suppress(_BrokenError):
      return _request(entry, file, etag_file)
  return _request(entry, file, etag_file)


def _request(entry: 'Entry', file: BinaryIO, etag_file: pathlib.Path) -> str:
  """Asks once for what is missing in `file` and appends it; returns the announced hashes."""
  # The last byte is asked for again, so that there is one to ask for when all of them are there.
  have = file.truncate(max(0, file.seek(0, os.SEEK_END) - 1))
  etag = etag_file.read_text() if have and etag_file.exists() else ''
  asked = {'Range': f'bytes={have}-', 'If-Range': etag} if etag else {}
  with _network_errors():
    request = urllib.request.Request(entry.url, headers=asked)
    response = urllib.request.urlopen(request, timeout=TIMEOUT)
  with response:
    headers = response.headers
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
      # All of it: it is the first time, or the file has changed, or the server knows no parts.
      have = file.truncate(0)
      strong = headers.get('ETag', '').startswith('"')  # W/"…" is good for no part.
      etag_file.write_text(headers['ETag'] if strong else '')
    elif headers.get('ETag') != etag or f'bytes {have}-' not in headers.get('Content-Range', ''):
      file.truncate(0)
      raise _BrokenError('the server sends another part than the one asked for')
    total = None if response.length is None else have + response.length
    if total is not None:
      _check_size(entry, total)
    with tqdm.tqdm(desc=entry.name[:32], total=total, initial=have, **_BAR) as bar:
      while chunk := _read(response):
        file.write(chunk)
        bar.update(len(chunk))
    have = file.seek(0, os.SEEK_END)
    if total is not None and have != total:
      raise _BrokenError(f'it breaks off after {have:,} of {total:,} bytes')
    return ','.join(headers.get_all('x-goog-hash', []))


def _read(response: http.client.HTTPResponse) -> bytes:
  with _network_errors():
    return response.read(_CHUNK)


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
  try:
    yield
  except urllib.error.HTTPError as error:
    error.close()
    kind = _BrokenError if error.code >= 500 else _UnreachableError
    raise kind(f'the server answers {error.code} {error.reason}') from None
  except (OSError, http.client.HTTPException) as error:
    reason = str(getattr(error, 'reason', error)) or type(error).__name__
    raise _BrokenError(reason) from None


def _check_size(entry: 'Entry', size: int) -> None:
  mib = size / 2**20
  if entry.size is not None and abs(mib - entry.size) > max(2, 0.005 * entry.size):
    raise _WrongFileError(f'has {mib:,.1f} MiB where {entry.size:,} MiB were published')


def _check(entry: 'Entry', file: BinaryIO, announced: str) -> None:
  """Raises unless `file` has the published size and the announced md5, and is a zip archive."""
  _check_size(entry, file.seek(0, os.SEEK_END))
  md5 = re.search(r'md5=([A-Za-z0-9+/=]+)', announced)
  if md5:
    file.seek(0)
    digest = hashlib.file_digest(file, functools.partial(hashlib.md5, usedforsecurity=False))
    if base64.b64encode(digest.digest()).decode() != md5[1]:
      raise _WrongFileError('came damaged (its md5 is not the announced one)')
  file.seek(0)
  if file.read(4) != b'PK\x03\x04' or not zipfile.is_zipfile(file):
    raise _WrongFileError('is no .npz file')
