"""The published models (`registry.csv`): finds one by its name and downloads it.

A name is `<family>/<file without its suffix>`, such as `imagenet21k/ViT-B_16` or
`dinov2/dinov2_vitb14_pretrain`. AugReg's models have short names too: `augreg/B_16` is the
recommended file pretrained on ImageNet-21k, and `augreg/B_16-imagenet2012` the recommended file
then fine-tuned on ImageNet (at 384 pixels; B_8 at 224). The registry has the ones that
google-research/vision_transformer recommends in its README.md and vit_jax_augreg.ipynb; with
AugReg's `index.csv` they are chosen from that file.

`python -m vit_jax.catalog` prints the registry.
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
from vit_jax.files import cache_folder
from vit_jax.weights.download import download, verify_cached

FOLDERS = {  # family of npz files: its folder on storage.googleapis.com
  'augreg': 'vit_models/augreg',
  'big_vision': 'big_vision',
  'bit': 'bit_models',
  'bit/distill': 'bit_models/distill',
  'deit3': 'big_vision/zoo/deit3',
  'imagenet21k': 'vit_models/imagenet21k',
  'imagenet21k+imagenet2012': 'vit_models/imagenet21k+imagenet2012',
  'lit': 'vit_models/lit',
  'mixer/gsam': 'mixer_models/gsam',
  'mixer/imagenet1k': 'mixer_models/imagenet1k',
  'mixer/imagenet21k': 'mixer_models/imagenet21k',
  'mixer/sam': 'mixer_models/sam',
  'sam': 'vit_models/sam',
  'siglip': 'big_vision/siglip',
  'siglip2': 'big_vision/siglip2',
}
# family: the license that its publishers state, of the weights or of the repository that publishes
# them; '': none.
LICENSES = {
  **dict.fromkeys(FOLDERS, 'Apache-2.0'),
  'bit': '',
  'bit/distill': '',
  'clip': 'MIT',
  'deit': 'Apache-2.0',
  'dinov2': 'Apache-2.0',
  'dinov3': 'DINOv3 License',
  'mae': 'CC-BY-NC-4.0',
  'siglip2': 'CC-BY-4.0',
}
GATED = {  # family: where to accept its license
  'dinov3': 'https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/'
}
_AUGREG_FILE = re.compile(r'(R\d*_)?(Ti|S|B|L)_\d+-i(1|21)k[-_][A-Za-z0-9_.-]+')


@dataclasses.dataclass(frozen=True)
class PublishedModel:
  """A published file of weights."""

  name: str  # '<family>/<file without its suffix>'
  url: str | None  # None: there is no address for all, as the family is one of `GATED`
  family: str  # a key of `LICENSES`
  data: str  # 'a+b': pretrained on a, then fine-tuned on b
  resolution: int  # pixels, the side of the square images in the last training
  size: int | None = None  # as published, in MiB
  # Published, top-1 on ImageNet's validation set, in percent; measured by others, with the
  # preprocessing `evaluation_protocols.protocol`.
  accuracy: float | None = None
  accuracy_source: str | None = None  # '<GitHub repository>:<file>' or a paper
  source: str = 'not in table'  # publication of the file's name
  alias: str | None = None  # short name
  sha256: str | None = None  # as published, in hexadecimal digits: all, or the first of them

  @property
  def license(self) -> str:
    """As stated by the publishers; '': not stated."""
    return LICENSES[self.family]

  @property
  def path(self) -> epath.Path:
    """The place of the file in the cache folder."""
    suffix = '.pth' if self.url is None else pathlib.PurePosixPath(self.url).suffix
    return cache_folder() / f'{self.name}{suffix}'


def _url(name: str) -> str:
  family, _, file = name.rpartition('/')
  path = urllib.parse.quote(f'{FOLDERS[family]}/{file}.npz')
  return f'https://storage.googleapis.com/{path}'


def _read_registry() -> dict[str, PublishedModel]:
  models = {}
  with open(pathlib.Path(__file__).with_name('registry.csv'), newline='', encoding='utf-8') as file:
    for row in csv.DictReader(file):
      name, size, accuracy = row['name'], row['size_mib'], row['accuracy']
      family = name.rpartition('/')[0]
      models[name] = PublishedModel(
        name,
        row['url'] or (None if family in GATED else _url(name)),
        family,
        data=row['data'],
        resolution=int(row['resolution']),
        size=int(size) if size else None,
        accuracy=float(accuracy) if accuracy else None,
        accuracy_source=row['accuracy_source'] or None,
        source=row['source'],
        alias=row['alias'] or None,
        sha256=row['sha256'] or None,
      )
  return models


PUBLISHED_MODELS = _read_registry()
_ALIASES = {model.alias: model for model in PUBLISHED_MODELS.values() if model.alias}


def is_name(source: epath.PathLike) -> bool:
  """Whether `source` names a published model; an existing path of that name takes precedence."""
  source = os.fspath(source)
  families = tuple(f'{family}/' for family in LICENSES)
  return source.startswith(families) and not os.path.exists(source)


def find(name: str, index: epath.PathLike | None = None) -> PublishedModel:
  """Finds a published model by its name or short name.

  Any `augreg/<file>` that follows AugReg's naming scheme is accepted too, because more than 50,000
  such files are published; its `source` is 'not in table'.

  Args:
    name: such as 'imagenet21k/ViT-B_16' or 'augreg/B_16'.
    index: AugReg's index.csv, which then decides what short names stand for; None:
      `augreg/index.csv` in the cache folder if it exists, else the registry.
  """
  name = re.sub(r'\.(npz|pth?)$', '', name)
  if name in _ALIASES:
    cached = cache_folder() / 'augreg' / 'index.csv'
    index = cached if index is None and cached.exists() else index
    if index is None:
      return _ALIASES[name]
    name = f'augreg/{_recommended(name.removeprefix("augreg/"), epath.Path(index))}'
  if name in PUBLISHED_MODELS:
    return PUBLISHED_MODELS[name]
  family, _, file = name.rpartition('/')
  if family == 'augreg' and _AUGREG_FILE.fullmatch(file):
    return _unlisted(name)
  similar = difflib.get_close_matches(name, [*PUBLISHED_MODELS, *_ALIASES], n=3)
  hint = f'; similar names are {", ".join(similar)}' if similar else ''
  raise UserError(
    f'No published model is called {name!r}{hint}; `python -m vit_jax.catalog` lists all names.'
  )


def _unlisted(name: str) -> PublishedModel:
  """A file of AugReg that is not in the registry, described by the fields of its name."""
  upstream, _, downstream = name.partition('--')
  data, target = 'imagenet21k' if '-i21k' in upstream else 'imagenet2012', downstream.split('-')[0]
  data = data if target in ('', data) else f'{data}+{target}'
  resolution = re.search(r'-res_(\d+)$', downstream)
  return PublishedModel(name, _url(name), 'augreg', data, int(resolution[1]) if resolution else 224)


def _recommended(alias: str, index: epath.Path) -> str:
  """The file that index.csv recommends for a model, or for `<model>-imagenet2012`.

  Follows Section 4.5 of the AugReg paper (arXiv 2106.10270) and the original code: of the models
  pretrained on ImageNet-21k for 300 epochs (`ds` is i21k) the one with the best final upstream
  validation accuracy; of its fine-tuned models the one with the best final validation accuracy.
  """
  model, _, target = alias.partition('-')

  def best(rows: list[dict[str, str]], column: str) -> dict[str, str]:
    if not all(math.isfinite(float(row[column])) for row in rows):
      raise ValueError(f'{column} is not an accuracy')
    return max(rows, key=lambda row: float(row[column]))

  try:
    with open(index.expanduser(), newline='', encoding='utf-8') as file:
      rows = [row for row in csv.DictReader(file) if row['filename'].split('-')[0] == model]
    rows = [row for row in rows if row['ds'] == 'i21k']
    chosen = best(rows, 'final_val')['filename']
    if target:
      rows = [row for row in rows if row['filename'] == chosen and row['adapt_ds'] == target]
      chosen = best(rows, 'adapt_final_val')['adapt_filename']
    if not _AUGREG_FILE.fullmatch(chosen):
      raise ValueError(f'{chosen!r} is not a file of AugReg')
    return chosen
  except OSError as error:
    raise UserError(f'{index} cannot be read ({first_line(error)}).') from None
  except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
    raise UserError(
      f"{index} is damaged or has no i21k row of {alias} ({error!r}); download AugReg's "
      'index.csv from https://storage.googleapis.com/vit_models/augreg/index.csv.'
    ) from None


def fetch(name: str, index: epath.PathLike | None = None) -> epath.Path:
  """Returns the file of a published model in the cache folder; downloads it if necessary.

  Raises:
    UserError: for an unknown name, a file that cannot be downloaded, or one whose license must be
      accepted first: then it says where, and where to put the file.
  """
  model = find(name, index)
  target = model.path
  if target.exists():
    verify_cached(target)
  elif model.url is None:
    raise UserError(
      f'{model.name} can be downloaded once its license is accepted at {GATED[model.family]}; put '
      f'the file at {target}, or pass its path instead of the name.'
    )
  else:
    download(model.url, target, name=model.name, published_mib=model.size, sha256=model.sha256)
  return target
