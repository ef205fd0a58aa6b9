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
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from typing import Any

import tqdm
from etils import epath

from vit_jax.errors import UserError, first_line
from vit_jax.files import open_to_resume, read_text, write_text

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

TRIES = 3
TIMEOUT = 30.0  # seconds without a byte
_MAX_SIZE = 2**35  # bytes of a file without a published size
_BAR: dict[str, Any] = dict(unit='B', unit_scale=True, unit_divisor=1024, leave=False, disable=None)


class _UnavailableError(Exception):
  """The server does not send the file; the message says why."""


class _TransientError(_UnavailableError):
  """The same, but another request may succeed."""


class _WrongFileError(Exception):
  """The downloaded file is not the published one; the message says how it differs."""


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
  """Follows redirects within http and https, but never from https to http."""

  def redirect_request(self, req, fp, code, msg, headers, newurl):
    scheme = urllib.parse.urlsplit(newurl).scheme
    if scheme not in ('https', *(() if req.type == 'https' else ('http',))):
      fp.close()
      raise _UnavailableError(f'the server redirects from {req.type} to {newurl[:200]}')
    return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclasses.dataclass(frozen=True)
class _Transfer:
  url: str
  name: str
  published_mib: int | None
  etag_path: pathlib.Path  # keeps the ETag of the file that was partly downloaded


def download(
  url: str,
  target: epath.PathLike,
  *,
  name: str,
  published_mib: int | None = None,
  sha256: str | None = None,
) -> None:
  """Downloads a published file; `target` appears at once, complete and verified.

  A later call resumes a partial download from `<target>.part`, unless the file on the server (its
  ETag, in `<target>.part.etag`) has changed. While one process downloads, others wait for it: the
  `.part` is locked (`flock`), on systems that have such locks. The announced length, the md5 that
  Google Cloud Storage announces, and the published size and sha256 are verified, and that it has
  the format that its suffix stands for. Its sha256 is kept in `<target>.sha256`, for
  `verify_cached`.

  Args:
    url, target: address of the file, local path.
    name: of the model, for messages and the progress bar.
    published_mib: size in MiB, if published; half a percent or 2 MiB may differ, because some are
      published as 1.13 GiB.
    sha256: in hexadecimal digits, if published: all, or the first of them.

  Raises:
    UserError: when the server cannot be reached, does not have the file or redirects away from
      https, when the connection is lost three times, or when the file is not the published one or
      cannot be written.
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
        digest = _verify(transfer, file, _request_with_retries(transfer, file))
        if not digest.startswith(sha256 or ''):
          raise _WrongFileError(f'has the sha256 {digest} instead of the published one')
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
      write_text(_record_of(target), f'{digest}  {target.name}\n')  # as sha256sum does
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


def _record_of(target: pathlib.Path) -> pathlib.Path:
  return target.with_name(f'{target.name}.sha256')


def verify_cached(target: epath.PathLike) -> None:
  """Verifies a file that `download` has written, if it has been written to since then.

  Raises:
    UserError: when its sha256 is not the recorded one; a file without a record is accepted.
  """
  target = pathlib.Path(target)
  record = _record_of(target)
  try:
    if not record.exists() or target.stat().st_mtime_ns < record.stat().st_mtime_ns:
      return
    with open(target, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if digest != read_text(record).split(' ')[0]:
      raise UserError(
        f'{target} is not the file that was downloaded (its sha256 differs from {record.name} '
        'beside it); delete both to download it again, or only the latter to use it as it is.'
      )
    with contextlib.suppress(PermissionError):
      os.utime(record)
  except (OSError, ValueError) as error:
    raise UserError(f'{target} cannot be verified: {first_line(error)}.') from None


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[io.BufferedRandom]:
  """Opens `path` to read and append, once no other process holds its lock."""
  while True:
    with open(open_to_resume(path), 'a+b') as file:
      if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
          fcntl.flock(file, fcntl.LOCK_EX)
      if _is_at(path, file):  # the previous holder of the lock may have renamed or deleted it
        yield file
        return


def _is_at(path: pathlib.Path, file: io.BufferedRandom) -> bool:
  try:
    return os.path.samestat(os.lstat(path), os.fstat(file.fileno()))
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
  etag = _read_etag(etag_path) if start else ''
  range_headers = {'Range': f'bytes={start}-', 'If-Range': etag} if etag else {}
  with _network_errors():
    request = urllib.request.Request(transfer.url, headers=range_headers)
    response = urllib.request.build_opener(_SafeRedirects).open(request, timeout=TIMEOUT)
  with response:
    headers = response.headers
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
      # The whole file: the first request, a file that has changed, or a server without ranges.
      start = file.truncate(0)
      is_strong = headers.get('ETag', '').startswith('"')  # W/"…" does not identify bytes
      etag_path.unlink(missing_ok=True)  # perhaps a link
      write_text(etag_path, headers['ETag'] if is_strong else '')
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
        _check_size(transfer.published_mib, file.tell(), is_complete=False)
    size = file.seek(0, os.SEEK_END)
    if total is not None and size != total:
      raise _TransientError(f'the connection is lost after {size:,} of {total:,} bytes')
    return ','.join(headers.get_all('x-goog-hash', []))


def _read_etag(path: pathlib.Path) -> str:
  """The ETag of an earlier request; '' without one that can be sent back."""
  try:
    etag = read_text(path)
  except (OSError, ValueError):
    return ''
  return etag if re.fullmatch(r'"[!-~]*"', etag) else ''


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


def _check_size(published_mib: int | None, size: int, is_complete: bool = True) -> None:
  """Raises `_WrongFileError` for another size than the published one; of a part, a larger one."""
  mib = size / 2**20
  if published_mib is None:
    if size > _MAX_SIZE:
      raise _WrongFileError(f'has more than {_MAX_SIZE / 2**20:,.0f} MiB')
    return
  excess = mib - published_mib
  if (abs(excess) if is_complete else excess) > max(2, 0.005 * published_mib):
    more = '' if is_complete else 'more than '
    raise _WrongFileError(
      f'has {more}{mib:,.1f} MiB instead of the published {published_mib:,} MiB'
    )


def _verify(transfer: _Transfer, file: io.BufferedRandom, hashes: str) -> str:
  """Checks the published size, the announced md5 and the format of `file`; returns its sha256."""
  _check_size(transfer.published_mib, file.seek(0, os.SEEK_END))
  md5 = re.search(r'md5=([A-Za-z0-9+/=]+)', hashes)
  if md5:
    file.seek(0)
    digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
    if base64.b64encode(digest).decode() != md5[1]:
      raise _WrongFileError('is damaged (its md5 is not the announced one)')
  file.seek(0)
  head, is_npz = file.read(4), transfer.url.endswith('.npz')
  is_zip = head == b'PK\x03\x04' and zipfile.is_zipfile(file)
  if not is_zip and (is_npz or head[:2] != b'\x80\x02'):  # how PyTorch's old files begin
    raise _WrongFileError(f'is not {"an .npz" if is_npz else "a PyTorch"} file')
  file.seek(0)
  return hashlib.file_digest(file, 'sha256').hexdigest()
