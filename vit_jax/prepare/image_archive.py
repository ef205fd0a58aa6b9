"""Image folders that come as an archive, from this machine or from the web."""

import contextlib
import hashlib
import os
import pathlib
import tarfile
import tempfile
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from typing import Any

import tqdm

from vit_jax.errors import UserError, first_line
from vit_jax.files import user_path

_TIMEOUT = 30.0  # seconds without a byte
_SUFFIXES = ('.zip', '.tar', '.tar.gz', '.tgz', '.tar.xz', '.tar.bz2')
_BAR: dict[str, Any] = dict(unit='B', unit_scale=True, unit_divisor=1024, leave=False, disable=None)


def fetch_images(
  source: str | os.PathLike[str],
  parent: str | os.PathLike[str] = 'data',
  *,
  sha256: str | None = None,
) -> pathlib.Path:
  """Returns a folder of images, from wherever they are.

  Args:
    source: a folder, which is returned as it is; an archive (.zip, .tar, .tar.gz, .tgz, .tar.xz,
      .tar.bz2), or its https address.
    parent: in it, an archive is unpacked to a folder of its name, completely or not at all; one
      that exists already is returned as it is.
    sha256: of the archive, in hexadecimal digits, if it is known.

  Raises:
    UserError: for a source that does not exist or is no archive, cannot be downloaded, is damaged,
      or has another sha256; for a folder that cannot be written.
  """
  source = os.fspath(source)
  if '://' not in source and user_path(source).is_dir():
    return pathlib.Path(user_path(source))
  name = pathlib.PurePosixPath(
    urllib.parse.urlsplit(source).path if '://' in source else source
  ).name
  suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)
  if suffix is None:
    raise UserError(
      f'{source} is neither a folder nor an archive of images ({", ".join(_SUFFIXES)}).'
    )
  target = pathlib.Path(user_path(parent)) / name.removesuffix(suffix)
  if target.is_dir():
    return target
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix='.unpacking-') as scratch:
      content = pathlib.Path(scratch) / 'content'
      with _local_file(source, pathlib.Path(scratch)) as archive:
        _check_sha256(archive, source, sha256)
        _unpack(archive, name, content)
      content.rename(target)
  except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
    raise UserError(f'{source} is a damaged archive ({first_line(error)}).') from None
  except OSError as error:
    raise UserError(f'{source} cannot be unpacked to {target}: {first_line(error)}.') from None
  return target


@contextlib.contextmanager
def _local_file(source: str, scratch: pathlib.Path) -> Iterator[pathlib.Path]:
  """The archive on this machine; a downloaded one is removed again."""
  if '://' not in source:
    if not user_path(source).is_file():
      raise UserError(f'There is no file or folder {source}.')
    yield pathlib.Path(user_path(source))
    return
  if not source.startswith('https://'):
    raise UserError(f'{source} is not an https address.')
  path = scratch / 'archive'
  try:
    with urllib.request.urlopen(source, timeout=_TIMEOUT) as response, path.open('wb') as file:
      length = response.length
      with tqdm.tqdm(desc='download', total=length, **_BAR) as bar:
        while chunk := response.read(2**20):
          bar.update(file.write(chunk))
  except OSError as error:
    raise UserError(f'{source} cannot be downloaded: {first_line(error)}.') from None
  if length is not None and path.stat().st_size != length:
    raise UserError(f'{source} was not downloaded completely; try again.')
  yield path


def _check_sha256(archive: pathlib.Path, source: str, sha256: str | None) -> None:
  if sha256 is None:
    return
  with archive.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  if digest != sha256:
    raise UserError(f'{source} has the sha256 {digest} instead of {sha256}.')


def _unpack(archive: pathlib.Path, name: str, folder: pathlib.Path) -> None:
  """Neither kind leaves `folder`: zipfile drops '..', and the filter of tarfile refuses it."""
  folder.mkdir()
  if name.endswith('.zip'):
    with zipfile.ZipFile(archive) as file:
      file.extractall(folder)
  else:
    with tarfile.open(archive) as file:
      file.extractall(folder, filter='data')
