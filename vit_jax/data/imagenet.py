"""ImageNet: classes in label order and their names, ReaL labels, and the ground truth of its tars.

Labels number the synsets in sorted order, in ILSVRC2012 and in ImageNet-21k. ReaL labels (all
classes visible in a validation image) are from google-research/reassessed-imagenet, Apache-2.0.
"""

import collections
import csv
import functools
import io
import json
import pathlib
import re
import tarfile

from vit_jax.errors import UserError, first_line
from vit_jax.files import read_text

TRAIN_TAR = 'ILSVRC2012_img_train.tar'
VAL_TAR = 'ILSVRC2012_img_val.tar'
TRAIN_IMAGES = 1_281_167
VAL_IMAGES = 50_000
# File names of the validation ground truth, beside the tars.
GROUND_TRUTHS = (
  'ILSVRC2012_devkit_t12.tar.gz',
  'imagenet_2012_validation_synset_labels.txt',
  'LOC_val_solution.csv',
)
# Raised by reading a file that is not a ground truth.
_DAMAGE = (OSError, tarfile.TarError, EOFError, KeyError, ValueError, IndexError, TypeError)
_FOLDER = pathlib.Path(__file__).parent
# Google's list of ImageNet-21k has two synsets more than the release of fall 2011 (fall11.tar).
_NOT_IN_FALL_2011 = frozenset(('n03931044', 'n09859684'))
_LISTS = {1_000: '1k', 21_841: '22k', 21_843: '21k'}  # number of classes: `synsets` of them


@functools.cache
def _table() -> list[list[str]]:
  """Reads [synset, versions of ImageNet, lemmas] of each synset."""
  lines = (_FOLDER / 'imagenet_synsets.tsv').read_text('utf-8').splitlines()
  return [line.split('\t') for line in lines if not line.startswith('#')]


def synsets(version: str = '1k') -> tuple[str, ...]:
  """Lists the synsets in label order.

  Args:
    version: '1k' (ILSVRC2012; 1,000 synsets), '21k' (Google's list of ImageNet-21k; 21,843) or
      '22k' (the release of fall 2011, that most other code trains on; 21,841). The lists agree with
      timm 1.0.31 (data/_info/imagenet{,21k_goog,22k}_synsets.txt).
  """
  if version == '22k':
    return tuple(synset for synset in synsets('21k') if synset not in _NOT_IN_FALL_2011)
  return tuple(synset for synset, versions, _ in _table() if version in versions.split(','))


def class_names(ids: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the names of synsets, such as 'tench, Tinca tinca', each different.

  A name that several of them share has the synset appended; an unknown synset is its own name.
  """
  lemmas = {synset: lemma for synset, _, lemma in _table()}
  names = [lemmas.get(synset, synset) for synset in ids]
  counts = collections.Counter(names)
  return tuple(
    name if counts[name] == 1 else f'{name} ({synset})'
    for name, synset in zip(names, ids, strict=True)
  )


def synsets_of_head(num_classes: int) -> tuple[str, ...] | None:
  """Returns the synsets of an ImageNet model by its outputs, as `class_names_of_head`."""
  version = _LISTS.get(num_classes)
  return None if version is None else synsets(version)


@functools.cache
def class_names_of_head(num_classes: int) -> tuple[str, ...] | None:
  """Returns the class names of an ImageNet model by its number of outputs, in label order.

  Args:
    num_classes: 1,000, 21,843 or 21,841 (see `synsets`).

  Returns:
    `num_classes` different names, such as 'tench, Tinca tinca'; None for any other number.
  """
  ids = synsets_of_head(num_classes)
  return None if ids is None else class_names(ids)


@functools.cache
def subsets() -> dict[str, frozenset[int]]:
  """Returns the labels of data sets that have some of the 1,000 classes: {'ImageNet-A': …}."""
  lines = (_FOLDER / 'imagenet_subsets.csv').read_text('utf-8').splitlines()
  rows = csv.DictReader(line for line in lines if not line.startswith('#'))
  return {row['name']: frozenset(map(int, row['indices'].split())) for row in rows}


def is_synset(text: str) -> bool:
  """Returns True for text of the form n01440764."""
  return re.fullmatch(r'n\d{8}', text) is not None


@functools.cache
def real_labels() -> tuple[tuple[int, ...], ...]:
  """Returns the ReaL labels of each of the 50,000 validation images; 3,163 images have none."""
  return tuple(map(tuple, json.loads((_FOLDER / 'imagenet_real.json').read_text('utf-8'))))


def val_number(name: str) -> int | None:
  """Returns 0 for '…/ILSVRC2012_val_00000001.JPEG', …; None for any other name."""
  match = re.search(r'ILSVRC2012_val_(\d{8})', name)
  number = int(match[1]) - 1 if match else -1
  return number if 0 <= number < VAL_IMAGES else None


def _read_devkit(file: pathlib.Path) -> list[str]:
  """Reads a ground truth from the development kit."""
  from scipy import io as scipy_io

  contents = {}
  with tarfile.open(file) as tar:
    for member in tar:
      name = member.name.rpartition('/')[2]
      if name in ('meta.mat', 'ILSVRC2012_validation_ground_truth.txt'):
        content = tar.extractfile(member)
        contents[name] = content.read() if content else b''
  table = scipy_io.loadmat(io.BytesIO(contents['meta.mat']), squeeze_me=True)['synsets']
  synset_of = {int(row['ILSVRC2012_ID']): str(row['WNID']) for row in table}
  ids = contents['ILSVRC2012_validation_ground_truth.txt'].split()
  return [synset_of[int(i)] for i in ids]


def read_ground_truth(file: pathlib.Path) -> list[str]:
  """Reads the synsets of the validation images, in the order of their file names.

  Args:
    file: the development kit (….tar.gz), Kaggle's LOC_val_solution.csv, or one synset per line.

  Raises:
    UserError: for any other file.
  """
  advice = f'use one of {", ".join(GROUND_TRUTHS)}'
  try:
    if file.name.endswith(('.tar.gz', '.tgz', '.tar')):
      truth = _read_devkit(file)
    elif file.suffix == '.csv':
      with open(file, newline='', encoding='utf-8') as lines:
        rows = sorted((row['ImageId'], row['PredictionString']) for row in csv.DictReader(lines))
      truth = [prediction.split()[0] for _, prediction in rows]
    else:
      truth = read_text(file).split()
  except _DAMAGE as error:
    reason = first_line(error)
    raise UserError(f'{file} is not a ground truth of ImageNet ({reason}); {advice}.') from None
  known = set(synsets())
  if unknown := [synset for synset in truth if synset not in known]:
    synset = unknown[0][:40]
    raise UserError(f'{file} has {synset!r}, which is not a synset of ILSVRC2012; {advice}.')
  return truth
