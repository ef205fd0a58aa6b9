"""ImageNet: its classes in label order, their names, ReaL labels, the ground truth of its tars.

The order of ILSVRC2012's classes is that of its sorted synsets, and so is that of ImageNet-21k.
ReaL labels (all classes that are to be seen in a validation image) are those of
google-research/reassessed-imagenet, Apache-2.0.
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

TRAIN_TAR = 'ILSVRC2012_img_train.tar'
VAL_TAR = 'ILSVRC2012_img_val.tar'
TRAIN_IMAGES = 1_281_167
VAL_IMAGES = 50_000
# What the ground truth of the validation images may be called, beside the tars.
GROUND_TRUTHS = (
  'ILSVRC2012_devkit_t12.tar.gz',
  'imagenet_2012_validation_synset_labels.txt',
  'LOC_val_solution.csv',
)
_SYNSET = re.compile(r'n\d{8}')
_VAL_NAME = re.compile(r'ILSVRC2012_val_(\d{8})')
# What reading a ground truth raises for a file that is none.
_NOT_ONE = (OSError, tarfile.TarError, EOFError, KeyError, ValueError, IndexError, TypeError)
_HERE = pathlib.Path(__file__).parent


@functools.cache
def _table() -> tuple[tuple[str, str, str], ...]:
  lines = (_HERE / 'imagenet_synsets.tsv').read_text().splitlines()
  return tuple(tuple(line.split('\t')) for line in lines if not line.startswith('#'))


def synsets(which: str = '1k') -> tuple[str, ...]:
  """The synsets in label order: of '1k' (ILSVRC2012; 1,000) or '21k' (21,843)."""
  return tuple(synset for synset, lists, _ in _table() if which in lists.split(','))


def class_names(of: tuple[str, ...]) -> tuple[str, ...]:
  """The names of some synsets, such as 'tench, Tinca tinca'; those that several share, and
  synsets that are not known, carry the synset."""
  lemmas = {synset: lemma for synset, _, lemma in _table()}
  names = [lemmas.get(synset, synset) for synset in of]
  count = collections.Counter(names)
  return tuple(
    name if count[name] == 1 else f'{name} ({synset})'
    for name, synset in zip(names, of, strict=True)
  )


def is_synset(text: str) -> bool:
  return _SYNSET.fullmatch(text) is not None


@functools.cache
def real_labels() -> tuple[tuple[int, ...], ...]:
  """The ReaL labels of the 50,000 validation images, by their number; of 3,163 there are none."""
  return tuple(map(tuple, json.loads((_HERE / 'imagenet_real.json').read_text())))


def val_number(name: str) -> int | None:
  """0 of '…/ILSVRC2012_val_00000001.JPEG'; None for a file that is called otherwise."""
  match = _VAL_NAME.search(name)
  number = int(match[1]) - 1 if match else -1
  return number if 0 <= number < VAL_IMAGES else None


def _from_devkit(file: pathlib.Path) -> list[str]:
  from scipy import io as scipy_io

  contents = {}
  with tarfile.open(file) as tar:
    for member in tar:
      base = member.name.rpartition('/')[2]
      if base in ('meta.mat', 'ILSVRC2012_validation_ground_truth.txt'):
        contents[base] = tar.extractfile(member).read()
  table = scipy_io.loadmat(io.BytesIO(contents['meta.mat']), squeeze_me=True)['synsets']
  synset_of = {int(row['ILSVRC2012_ID']): str(row['WNID']) for row in table}
  numbers = contents['ILSVRC2012_validation_ground_truth.txt'].split()
  return [synset_of[int(number)] for number in numbers]


def read_ground_truth(file: pathlib.Path) -> list[str]:
  """The synsets of the validation images, in the order of their names.

  Args:
    file: the development kit (….tar.gz), Kaggle's LOC_val_solution.csv, or a synset a line.

  Raises:
    UserError: when it is none of them.
  """
  try:
    if file.name.endswith(('.tar.gz', '.tgz', '.tar')):
      found = _from_devkit(file)
    elif file.suffix == '.csv':
      with open(file, newline='') as lines:
        rows = sorted((row['ImageId'], row['PredictionString']) for row in csv.DictReader(lines))
      found = [answer.split()[0] for _, answer in rows]
    else:
      found = file.read_text().split()
  except _NOT_ONE as error:
    raise UserError(f'{file} holds no ground truth of ImageNet ({first_line(error)}).') from None
  known = set(synsets())
  for synset in found:
    if synset not in known:
      raise UserError(f'{file} has {synset[:40]!r}, which is no synset of ILSVRC2012.')
  return found
