"""vtab:task: the 1,000 training examples of a VTAB task, and its test examples, from TFDS's files.

  vtab:dtd          from TFDS's own folder: $TFDS_DATA_DIR, or ~/tensorflow_datasets
  vtab:/data/dtd    from the data sets that TFDS has prepared in /data; or, where /data/dtd is a
                    prepared data set itself, that one

The splits are `train` (800 examples), `validation` (200) and `test`. `prepare_data vtab:dtd
/other/dtd` copies just these. Data sets are read without TensorFlow.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping

import numpy as np
from etils import epath

from vit_jax.data import vtab_tasks
from vit_jax.data.decoding.images import open_image
from vit_jax.data.sources import array_record
from vit_jax.data.sources.source import Example, Source
from vit_jax.data.sources.splitting.splits import select
from vit_jax.data.vtab_tasks import Task
from vit_jax.errors import BadExampleError, MissingDataError, UserError
from vit_jax.files import user_path

_SPLITS = ('train', 'validation', 'test')
_SIZES = {'train': 800, 'validation': 200}


def _parse(path: str) -> tuple[epath.Path, str, str]:
  """(folder of the data sets, what the user calls it or '', task) of '/data/dtd' or 'dtd'."""
  folder, slash, name = path.rpartition('/')
  vtab_tasks.find_task(name)
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return user_path(folder or slash or default), folder or slash, name


def _version_key(folder: epath.Path) -> list[int]:
  return [int(number) for number in folder.name.split('.')]


def _find_folder(path: str) -> epath.Path:
  """The folder of the task's data, prepared or of TFDS; `MissingDataError` if there is none."""
  root, folder, name = _parse(path)
  if folder and (root / name / 'features.json').exists():
    return root / name
  task = vtab_tasks.find_task(name)
  dataset = root / task.dataset
  versions = [each for each in dataset.iterdir() if each.is_dir()] if dataset.exists() else []
  for pattern in task.versions:
    regex = pattern.replace('.', r'\.').replace('*', r'\d+')
    if matching := [each for each in versions if re.fullmatch(regex, each.name)]:
      return max(matching, key=_version_key)
  other = f', only {", ".join(sorted(each.name for each in versions))}' if versions else ''
  wanted = ' or '.join(task.versions)
  manual = f' (put {task.manual} into {root}/downloads/manual before)' if task.manual else ''
  raise MissingDataError(
    f'There is no {task.dataset} of version {wanted} in {root}{other}; prepare it with '
    f"pip install -e '.[prepare]', then {vtab_tasks.preparation_command(name, folder)}{manual}."
  )


def _read_binary(source: Source, i: int) -> Example:
  """An example whose pixels of 0 and 1 become black and white, (H, W, 1) uint8."""
  image, label = source.read(i)
  pixels = open_image(image, source.describe(i), channels=1).pixels()
  return np.where(pixels > 0, np.uint8(255), np.uint8(0)), label


def _slice(task: Task, split: str, sizes: Mapping[str, int]) -> str:
  """A split of a task as a slice of a split of its data set, such as 'train[63000:63200]'."""
  if split == 'train':
    return 'train[:800]'
  whole, percent = task.validation if split == 'validation' else task.test
  start = percent * sizes[whole] // 100
  if split == 'validation':
    return f'{whole}[{start}:{start + 200}]'
  return f'{whole}[{start}:]' if start else whole


def _open_slice(root: epath.Path, spec: str, task: Task, split: str) -> Source:
  """A split of a task from the data set of TFDS in which it is a range of records."""
  rule, labels = task.rule, None
  if rule:
    names = tuple(map(str, range(task.num_classes)))
    labels = array_record.Labels(rule.inputs, lambda features: [rule.label(features)], names)

  def open_whole(name: str) -> Source:
    source = array_record.open_split(str(root), name, spec, labels)
    return dataclasses.replace(source, shuffled=True)  # a slice is a range of records

  whole = {name: open_whole(name) for name in array_record.split_names(str(root))}
  source = select(whole.__getitem__, _slice(task, split, {k: x.size for k, x in whole.items()}))

  def read_label(i: int) -> int:
    try:
      return int(source.read(i)[1])
    except BadExampleError:
      return -1

  return dataclasses.replace(
    source,
    name=f'{spec} ({split})',
    read=functools.partial(_read_binary, source) if rule and rule.binary_image else source.read,
    labels=lambda: np.array([read_label(i) for i in range(source.size)], np.int32),
  )


def split_names(path: str) -> tuple[str, ...]:
  _find_folder(path)
  return _SPLITS


def open_split(path: str, split: str) -> Source:
  """Opens train, validation or test of a task.

  Raises:
    UserError: for an unknown task or split, or data that is missing, naming the command that
      prepares it, or that is not VTAB-1k's.
  """
  root, spec, task = _find_folder(path), f'vtab:{path}', vtab_tasks.find_task(_parse(path)[2])
  if split not in _SPLITS:
    raise UserError(f'{spec} has the splits {", ".join(_SPLITS)}, not {split!r}.')
  if (root / array_record.CARD).exists():  # written by prepare_data
    source = array_record.open_split(str(root), split, spec)
  else:
    source = _open_slice(root, spec, task, split)
  if source.size != _SIZES.get(split, source.size):
    raise UserError(
      f'{root} has {source.size:,} {split} examples where VTAB-1k has {_SIZES[split]}; prepare it '
      f'by python -m vit_jax.prepare_data vtab:{_parse(path)[2]} FOLDER.'
    )
  if source.num_classes != task.num_classes:
    raise UserError(
      f'{root} has {source.num_classes:,} classes where VTAB-1k has {task.num_classes}.'
    )
  return source
