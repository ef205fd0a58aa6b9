"""Downloads a file: resumed after an interruption, verified, whole or not there at all."""

import base64
import contextlib
import dataclasses
import hashlib
import http.client
import io
import os
import pathlib
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from typing import Any

import tqdm
from etils import epath

from vit_jax.errors import UserError, first_line

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

TRIES = 3
TIMEOUT = 30.0  # seconds without a byte
_BAR: dict[str, Any] = dict(unit='B', unit_scale=True, unit_divisor=1024, leave=False, disable=None)


class _UnavailableError(Exception):
  """The server does not send the file; the message says why."""


class _TransientError(_UnavailableError):
  """The same, but another request may succeed."""


class _WrongFileError(Exception):
  """The downloaded file is not the published one; the message says how it differs."""


@dataclasses.dataclass(frozen=True)
class _Transfer:
  url: str
  name: str
  published_mib: int | None
  etag_path: pathlib.Path  # keeps the ETag of the file that was partly downloaded


def download(
  url: str, target: epath.PathLike, *, name: str, published_mib: int | None = None
) -> None:
  """Downloads a published .npz file; `target` appears at once, complete and verified.

  A later call resumes a partial download from `<target>.part`, unless the file on the server (its
  ETag, in `<target>.part.etag`) has changed. While one process downloads, others wait for it: the
  `.part` is locked (`flock`), on systems that have such locks. The announced length, the md5 that
  Google Cloud Storage announces and the published size are verified, and that it is a zip.

  Args:
    url, target: address of the file, local path.
    name: of the model, for messages and the progress bar.
    published_mib: size in MiB, if published; half a percent or 2 MiB may differ, because some are
      published as 1.13 GiB.

  Raises:
    UserError: when the server cannot be reached or does not have the file, when the connection is
      lost three times, or when the file is not the published one or cannot be written.
  """
  target = pathlib.Path(target)
  partial = target.with_name(f'{target.name}.part')
  transfer = _Transfer(url, name, published_mib, target.with_name(f'{target.name}.part.etag'))
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(partial) as file:
      if target.exists():  # another process was faster
        partial.unlink()
        return
      try:
        _verify(transfer, file, _request_with_retries(transfer, file))
      except (_UnavailableError, _WrongFileError) as error:
        if isinstance(error, _WrongFileError) or not file.seek(0, os.SEEK_END):
          partial.unlink()
          transfer.etag_path.unlink(missing_ok=True)
        raise
      os.fsync(file.fileno())
      if fcntl is None:  # Windows does not rename open files
        file.close()
      partial.replace(target)
      transfer.etag_path.unlink(missing_ok=True)
  except _UnavailableError as error:
    raise UserError(
      f'{name} cannot be downloaded ({error}); fetch {url} by other means and put it at {target}.'
    ) from None
  except _WrongFileError as error:
    raise UserError(
      f'The file downloaded from {url} {error} and was deleted; try again, or put the right file '
      f'at {target}.'
    ) from None
  except OSError as error:
    raise UserError(
      f'{name} cannot be written to {target.parent} ({first_line(error)}); free some space there, '
      'or set VIT_JAX_CACHE to another folder.'
    ) from None


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[io.BufferedRandom]:
  """Opens `path` to read and append, once no other process holds its lock."""
  while True:
    with open(path, 'a+b') as file:
      if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
          fcntl.flock(file, fcntl.LOCK_EX)
      if _is_at(path, file):  # the previous holder of the lock may have renamed or deleted it
        yield file
        return


def _is_at(path: pathlib.Path, file: io.BufferedRandom) -> bool:
  try:
    return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
  except FileNotFoundError:
    return False


def _request_with_retries(transfer: _Transfer, file: io.BufferedRandom) -> str:
  """Downloads all bytes into `file` in up to `TRIES` requests; returns the announced hashes."""
  for _ in range(TRIES - 1):
    with contextlib.suppress(_TransientError):
      return _request(transfer, file)
  return _request(transfer, file)


def _request(transfer: _Transfer, file: io.BufferedRandom) -> str:
  """Requests the rest of `file` once and appends it; returns the announced hashes."""
  etag_path = transfer.etag_path
  # Request the last byte again, so that the range is not empty when all of them are there.
  start = file.truncate(max(0, file.seek(0, os.SEEK_END) - 1))
  etag = etag_path.read_text() if start and etag_path.exists() else ''
  range_headers = {'Range': f'bytes={start}-', 'If-Range': etag} if etag else {}
  with _network_errors():
    request = urllib.request.Request(transfer.url, headers=range_headers)
    response = urllib.request.urlopen(request, timeout=TIMEOUT)
  with response:
    headers = response.headers
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
      # The whole file: the first request, a file that has changed, or a server without ranges.
      start = file.truncate(0)
      is_strong = headers.get('ETag', '').startswith('"')  # W/"…" does not identify bytes
      etag_path.write_text(headers['ETag'] if is_strong else '')
    elif headers.get('ETag') != etag or f'bytes {start}-' not in headers.get('Content-Range', ''):
      file.truncate(0)
      raise _TransientError('the server sends another range than the requested one')
    total = None if response.length is None else start + response.length
    if total is not None:
      _check_size(transfer.published_mib, total)
    with tqdm.tqdm(desc=transfer.name[:32], total=total, initial=start, **_BAR) as bar:
      while chunk := _read(response):
        file.write(chunk)
        bar.update(len(chunk))
    size = file.seek(0, os.SEEK_END)
    if total is not None and size != total:
      raise _TransientError(f'the connection is lost after {size:,} of {total:,} bytes')
    return ','.join(headers.get_all('x-goog-hash', []))


def _read(response: http.client.HTTPResponse) -> bytes:
  with _network_errors():
    return response.read(1 << 20)


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
  """Turns errors of the network and the server into `_UnavailableError`s."""
  try:
    yield
  except urllib.error.HTTPError as error:
    error.close()
    error_type = _TransientError if error.code >= 500 else _UnavailableError
    raise error_type(f'the server answers {error.code} {error.reason}') from None
  except (OSError, http.client.HTTPException) as error:
    reason = str(getattr(error, 'reason', error)) or type(error).__name__
    raise _TransientError(reason) from None


def _check_size(published_mib: int | None, size: int) -> None:
  mib = size / 2**20
  if published_mib is not None and abs(mib - published_mib) > max(2, 0.005 * published_mib):
    raise _WrongFileError(f'has {mib:,.1f} MiB instead of the published {published_mib:,} MiB')


def _verify(transfer: _Transfer, file: io.BufferedRandom, hashes: str) -> None:
  """Raises unless `file` has the published size and the announced md5, and is a zip archive."""
  _check_size(transfer.published_mib, file.seek(0, os.SEEK_END))
  md5 = re.search(r'md5=([A-Za-z0-9+/=]+)', hashes)
  if md5:
    file.seek(0)
    digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
    if base64.b64encode(digest).decode() != md5[1]:
      raise _WrongFileError('is damaged (its md5 is not the announced one)')
  file.seek(0)
  if file.read(4) != b'PK\x03\x04' or not zipfile.is_zipfile(file):
    raise _WrongFileError('is not an .npz file')
