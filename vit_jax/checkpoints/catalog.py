"""The published files: a table of them (`catalog.csv`), finding one by name, downloading it.

A name is `<family>/<file without .npz>`, such as `imagenet21k/ViT-B_16`. Of AugReg there are
short names, too: `augreg/B_16` is the recommended file pretrained on ImageNet-21k and
`augreg/B_16-imagenet2012` the recommended one that was then fine-tuned on ImageNet (at 384 px;
B_8 at 224). The table has those that google-research/vision_transformer recommends in its
README.md and vit_jax_augreg.ipynb; with an `index.csv` of AugReg they are chosen from that.

`python -m vit_jax.checkpoints.catalog` prints the table.
"""

import base64
import contextlib
import csv
import dataclasses
import difflib
import functools
import hashlib
import http.client
import math
import os
import pathlib
import re
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

import tqdm
from etils import epath

from vit_jax import command_line
from vit_jax.errors import UserError, first_line

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

FOLDERS = {  # family: its folder on storage.googleapis.com
    'augreg': 'vit_models/augreg',
    'big_vision': 'big_vision',
    'bit': 'bit_models',
    'bit/distill': 'bit_models/distill',
    'deit3': 'big_vision/zoo/deit3',
    'imagenet21k': 'vit_models/imagenet21k',
    'imagenet21k+imagenet2012': 'vit_models/imagenet21k+imagenet2012',
    'sam': 'vit_models/sam',
}
TRIES = 3
TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 18  # bytes
_BAR = dict(unit='B', unit_scale=True, unit_divisor=1024, leave=False, disable=None)
_AUGREG_FILE = re.compile(r'(R\d*_)?(Ti|S|B|L)_\d+-i(1|21)k[-_][A-Za-z0-9_.-]+')


@dataclasses.dataclass(frozen=True)
class Entry:
  """A published file.

  Attributes:
    name: `<family>/<file without .npz>`.
    url: where it is published.
    family: one of `FOLDERS`.
    data: what it was trained on; `a+b` is pretrained on a, then fine-tuned on b.
    resolution: pixels, the side of the square images it was trained on last.
    size: published size in MiB; None where none was published.
    accuracy: published top-1 accuracy on the validation set of ImageNet, percent, or None.
    accuracy_source: where the accuracy is published: `<GitHub repository>:<file>` or a paper.
    source: where the name of the file is published, or 'not in table'.
    alias: a short name, or None.
  """

  name: str
  url: str
  family: str
  data: str
  resolution: int
  size: int | None
  accuracy: float | None
  accuracy_source: str | None
  source: str
  alias: str | None = None


def _url(family: str, file: str) -> str:
  path = urllib.parse.quote(f'{FOLDERS[family]}/{file}.npz')
  return f'https://storage.googleapis.com/{path}'


def _read_table() -> dict[str, Entry]:
  with open(pathlib.Path(__file__).with_name('catalog.csv'), newline='', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  entries = {}
  for row in rows:
    family, _, stem = row['name'].rpartition('/')
    entries[row['name']] = Entry(
        name=row['name'],
        url=_url(family, stem),
        family=family,
        data=row['data'],
        resolution=int(row['resolution']),
        size=int(row['size_mib']) if row['size_mib'] else None,
        accuracy=float(row['accuracy']) if row['accuracy'] else None,
        accuracy_source=row['accuracy_source'] or None,
        source=row['source'],
        alias=row['alias'] or None,
    )
  return entries


CATALOG: dict[str, Entry] = _read_table()
_ALIASES = {entry.alias: entry for entry in CATALOG.values() if entry.alias}


def cache_folder() -> epath.Path:
  """Where downloads are kept: `$VIT_JAX_CACHE`, or ~/.cache/vit_jax."""
  folder = os.environ.get('VIT_JAX_CACHE') or '~/.cache/vit_jax'
  if '://' in folder:
    raise UserError(f'VIT_JAX_CACHE is {folder}; it takes a local folder.')
  return epath.Path(folder).expanduser()


def is_name(source: epath.PathLike) -> bool:
  """Whether `source` is meant as a name of the catalogue and not as a path, which wins."""
  source = os.fspath(source)
  families = tuple(f'{family}/' for family in FOLDERS)
  return source.startswith(families) and not os.path.exists(source)


def find(name: str, index: epath.PathLike | None = None) -> Entry:
  """The published file that `name` means.

  Besides the names and short names of the table, any `augreg/<file>` in AugReg's way of naming
  is taken, since there are more than 50,000 of them; its `source` is 'not in table'.

  Args:
    name: such as 'imagenet21k/ViT-B_16' or 'augreg/B_16'.
    index: AugReg's index.csv, from which short names choose the file then; None takes
      `augreg/index.csv` of the cache if it is there, else what the table recommends.

  Raises:
    UserError: for an unknown name (with those that are close), or a damaged index.csv.
  """
  name = name.removesuffix('.npz')
  if name in _ALIASES:
    if index is None and (cache_folder() / 'augreg' / 'index.csv').exists():
      index = cache_folder() / 'augreg' / 'index.csv'
    if index is None:
      return _ALIASES[name]
    name = f'augreg/{_recommended(name.removeprefix("augreg/"), epath.Path(index))}'
  if name in CATALOG:
    return CATALOG[name]
  family, _, file = name.rpartition('/')
  if family == 'augreg' and _AUGREG_FILE.fullmatch(file):
    return _unlisted(file)
  close = difflib.get_close_matches(name, [*CATALOG, *_ALIASES], n=3)
  raise UserError(
      f'There is no {name!r} in the catalogue{"; close are " + ", ".join(close) if close else ""}; '
      '`python -m vit_jax.checkpoints.catalog` lists all names.'
  )


def _unlisted(file: str) -> Entry:
  """An AugReg file that is not in the table; its name says what it was trained on."""
  upstream, _, downstream = file.partition('--')
  data = 'imagenet21k' if '-i21k' in upstream else 'imagenet2012'
  target = downstream.split('-')[0]
  resolution = re.search(r'-res_(\d+)$', downstream)
  return Entry(
      name=f'augreg/{file}',
      url=_url('augreg', file),
      family='augreg',
      data=data if target in ('', data) else f'{data}+{target}',
      resolution=int(resolution[1]) if resolution else 224,
      size=None,
      accuracy=None,
      accuracy_source=None,
      source='not in table',
  )


def _recommended(alias: str, index: epath.Path) -> str:
  """The file that index.csv recommends for a model, or for `<model>-imagenet2012`.

  As Section 4.5 of the AugReg paper (arXiv 2106.10270) and the original code do: pretrained on
  ImageNet-21k for 300 epochs (`ds` is i21k), best final upstream validation accuracy; of its
  fine-tunings on ImageNet the best final validation accuracy.
  """
  model, _, target = alias.partition('-')
  try:
    with open(index.expanduser(), newline='', encoding='utf-8') as file:
      rows = [row for row in csv.DictReader(file) if row['filename'].split('-')[0] == model]
    rows = [row for row in rows if row['ds'] == 'i21k']
    chosen = max(rows, key=lambda row: _number(row['final_val']))['filename']
    if target:
      rows = [row for row in rows if row['filename'] == chosen and row['adapt_ds'] == target]
      chosen = max(rows, key=lambda row: _number(row['adapt_final_val']))['adapt_filename']
    if not _AUGREG_FILE.fullmatch(chosen):
      raise ValueError(f'{chosen!r} is no file name')
    return chosen
  except OSError as error:
    raise UserError(f'{index} cannot be read ({first_line(error)}).') from None
  except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
    raise UserError(
        f"{index} is damaged or has no i21k row of {alias} ({error!r}); it takes AugReg's "
        'index.csv, from https://storage.googleapis.com/vit_models/augreg/index.csv.'
    ) from None


def _number(text: str) -> float:
  number = float(text)
  if not math.isfinite(number):
    raise ValueError(f'{text!r} is no accuracy')
  return number


def fetch(name: str, index: epath.PathLike | None = None) -> epath.Path:
  """The file of that name in the cache; downloads it first if it is not there.

  Args:
    name: as in `find`.
    index: as in `find`.

  Raises:
    UserError: as `find` and `download`.
  """
  entry = find(name, index)
  target = cache_folder() / f'{entry.name}.npz'
  if not target.exists():
    download(entry, target)
  return target


class _UnreachableError(Exception):
  """The server does not give the file; the message says why."""


class _BrokenError(_UnreachableError):
  """The same, and it may when asked again."""


class _WrongFileError(Exception):
  """What came is not the published file; the message says why."""


def download(entry: Entry, target: epath.PathLike) -> None:
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


def _transfer(entry: Entry, file: BinaryIO, etag_file: pathlib.Path) -> str:
  """Brings all bytes into `file`, in up to `TRIES` requests; returns the announced hashes."""
  for _ in range(TRIES - 1):
    with contextlib.suppress(_BrokenError):
      return _request(entry, file, etag_file)
  return _request(entry, file, etag_file)


def _request(entry: Entry, file: BinaryIO, etag_file: pathlib.Path) -> str:
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


def _check_size(entry: Entry, size: int) -> None:
  mib = size / 2**20
  if entry.size is not None and abs(mib - entry.size) > max(2, 0.005 * entry.size):
    raise _WrongFileError(f'has {mib:,.1f} MiB where {entry.size:,} MiB were published')


def _check(entry: Entry, file: BinaryIO, announced: str) -> None:
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


def main() -> None:
  """Prints the table."""
  parser = command_line.Parser('vit_jax.checkpoints.catalog', description=__doc__.splitlines()[0])
  parser.parse_args()
  table = [('name', 'data', 'px', 'MiB', 'ImageNet %', 'published in', 'short name')]
  for entry in CATALOG.values():
    size = '' if entry.size is None else str(entry.size)
    accuracy = '' if entry.accuracy is None else f'{entry.accuracy:g}'
    pixels = str(entry.resolution)
    row = (entry.name, entry.data, pixels, size, accuracy, entry.source, entry.alias or '')
    table.append(row)
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  for row in table:
    cells = [
        cell.rjust(width) if i in (2, 3, 4) else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    print('  '.join(cells).rstrip())


if __name__ == '__main__':
  command_line.run(main)
