"""The published files: a table of them (`registry.csv`), finding one by name.

A name is `<family>/<file without .npz>`, such as `imagenet21k/ViT-B_16`. Of AugReg there are
short names, too: `augreg/B_16` is the recommended file pretrained on ImageNet-21k and
`augreg/B_16-imagenet2012` the recommended one that was then fine-tuned on ImageNet (at 384 px;
B_8 at 224). The table has those that google-research/vision_transformer recommends in its
README.md and vit_jax_augreg.ipynb; with an `index.csv` of AugReg they are chosen from that.

`python -m vit_jax.catalog` prints the table.
"""

import csv
import dataclasses
import difflib
import math
import os
import pathlib
import re
import urllib.parse

from etils import epath

from vit_jax.errors import UserError, first_line
from vit_jax.weights.download import download

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
  with open(pathlib.Path(__file__).with_name('registry.csv'), newline='', encoding='utf-8') as file:
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
    '`python -m vit_jax.catalog` lists all names.'
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
