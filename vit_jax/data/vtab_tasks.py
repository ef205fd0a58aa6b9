"""The 19 tasks of VTAB-1k (arXiv 1910.04867): their TFDS data sets, splits, labels and sources.

A task has 1,000 training examples: `train`, the first 800 of its data set, and `validation`, 200 of
others; and `test`. Splits and label rules are those of google-research/task_adaptation
(task_adaptation/data/*.py, commit d7630d3), whether a task is cropped and mirrored in training is
from google-research/scenic (plainvit/configs/vtab_plainvit_config.py, commit 4a38d47).
"""

import dataclasses
import difflib
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.errors import UserError

# The features of a record by name, as `tf_example.decode` returns them: lists of bytes, int, float.
Features = Mapping[str, Sequence[Any]]


def _class_above(thresholds: Sequence[float], value: float) -> int:
  """The index of the last threshold that is below a value, in float32; -1 if none is."""
  return int(np.searchsorted(np.asarray(thresholds, np.float32), np.float32(value))) - 1


def count_all(features: Features) -> int:
  """CLEVR: the number of objects, of which there are 3 to 10, as a class from 0."""
  return len(features.get('objects/size', ())) - 3


def closest_object_distance(features: Features) -> int:
  """CLEVR: the smallest depth of an object, in six bins: to 8, 8.5, 9, 9.5, 10, and beyond."""
  depths = features.get('objects/pixel_coords', ())[2::3]
  return _class_above((0, 8, 8.5, 9, 9.5, 10, 100), min(depths, default=math.inf))


def closest_vehicle_distance(features: Features) -> int:
  """KITTI: the z coordinate in meters of the closest car, van or truck; 3: there is none.

  The classes are up to 8 m, up to 20 m, and farther away.
  """
  types, depths = features.get('objects/type', ()), features.get('objects/location', ())[2::3]
  vehicles = [z for kind, z in zip(types, depths, strict=True) if kind < 3]
  return _class_above((-100, 8, 20, 999), min(vehicles, default=1000))


def _feature(name: str) -> Callable[[Features], int]:
  """The class that is stored as another feature than the label."""
  return lambda features: features[name][0]


def _binned(name: str, num_values: int, num_classes: int) -> Callable[[Features], int]:
  """A stored class whose neighbors are grouped: 40 values in 16 classes are 0-2, 3-4, 5-7, …"""
  return lambda features: features[name][0] * num_classes // num_values


@dataclasses.dataclass(frozen=True)
class LabelRule:
  """How a label is made of the features of a record.

  Attributes:
    inputs: names of the features.
    label: from these features to the class.
    binary_image: whether the pixels of the image are stored as 0 and 1, for black and white.
  """

  inputs: tuple[str, ...]
  label: Callable[[Features], int]
  binary_image: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
  """A task.

  Attributes:
    group: 'natural', 'specialized' or 'structured'.
    dataset: name of the data set in TFDS, and of its config.
    versions: patterns of the versions that are read, VTAB's first; the last one is prepared.
    num_classes: number of classes.
    validation: (split, percent): 200 examples from there on are the validation split.
    test: (split, percent): all examples from there on are the test split.
    rule: how labels are made; None: the feature label is the class.
    crop: whether the label stays the same when a training image is cropped.
    flip: whether it does when the image is mirrored.
    manual: what users must put into downloads/manual, beside the data, to prepare it; '': nothing.
  """

  group: str
  dataset: str
  versions: tuple[str, ...]
  num_classes: int
  validation: tuple[str, int] = ('validation', 0)
  test: tuple[str, int] = ('test', 0)
  rule: LabelRule | None = None
  crop: bool = True
  flip: bool = True
  manual: str = ''


_V2, _V3, _V4 = ('2.*.*',), ('3.*.*',), ('4.*.*',)
_N60, _N80, _N90 = ('train', 60), ('train', 80), ('train', 90)
_CLEVR: Any = {'validation': _N90, 'test': ('validation', 0), 'crop': False}
_DSPRITES: Any = {'validation': _N80, 'test': _N90, 'flip': False}
_SMALLNORB: Any = {'validation': ('test', 0), 'test': ('test', 50)}
# What TFDS asks users to download themselves (MANUAL_DOWNLOAD_INSTRUCTIONS of its builders).
_NWPU = 'the content of NWPU-RESISC45.rar'
_KAGGLE = "the content of Kaggle's diabetic-retinopathy-detection"

TASKS = {
  'caltech101': Task('natural', 'caltech101', _V3, 102, _N90),
  'cifar100': Task('natural', 'cifar100', _V3, 100, _N90),
  'dtd': Task('natural', 'dtd', _V3, 47),
  'oxford_flowers102': Task('natural', 'oxford_flowers102', _V2, 102),
  # TFDS no longer prepares version 3; 4.0.0 has the same examples, and bounding boxes.
  'oxford_iiit_pet': Task('natural', 'oxford_iiit_pet', _V3 + _V4, 37, _N80),
  'sun397': Task('natural', 'sun397/tfds', _V4, 397),
  'svhn': Task('natural', 'svhn_cropped', _V3, 10, _N90),
  'patch_camelyon': Task('specialized', 'patch_camelyon', _V2, 2),
  'eurosat': Task('specialized', 'eurosat/rgb', _V2, 10, _N60, _N80),
  'resisc45': Task('specialized', 'resisc45', _V3, 45, _N60, _N80, manual=_NWPU),
  'diabetic_retinopathy': Task(
    'specialized', 'diabetic_retinopathy_detection/btgraham-300', _V3, 5, manual=_KAGGLE
  ),
  'clevr_count_all': Task(
    'structured', 'clevr', _V3, 8, rule=LabelRule(('objects/size',), count_all), **_CLEVR
  ),
  'clevr_closest_object_distance': Task(
    'structured',
    'clevr',
    _V3,
    6,
    rule=LabelRule(('objects/pixel_coords',), closest_object_distance),
    **_CLEVR,
  ),
  'dmlab': Task('structured', 'dmlab', ('2.0.1',), 6, crop=False),
  'dsprites_x_position': Task(
    'structured',
    'dsprites',
    _V2,
    16,
    rule=LabelRule(('label_x_position',), _binned('label_x_position', 32, 16), True),
    crop=False,
    **_DSPRITES,
  ),
  'dsprites_orientation': Task(
    'structured',
    'dsprites',
    _V2,
    16,
    rule=LabelRule(('label_orientation',), _binned('label_orientation', 40, 16), True),
    **_DSPRITES,
  ),
  'kitti_closest_vehicle_distance': Task(
    'structured',
    'kitti',
    ('3.1.0',),
    4,
    rule=LabelRule(('objects/type', 'objects/location'), closest_vehicle_distance),
    crop=False,
  ),
  'smallnorb_azimuth': Task(
    'structured',
    'smallnorb',
    _V2,
    18,
    rule=LabelRule(('label_azimuth',), _feature('label_azimuth')),
    flip=False,
    **_SMALLNORB,
  ),
  'smallnorb_elevation': Task(
    'structured',
    'smallnorb',
    _V2,
    9,
    rule=LabelRule(('label_elevation',), _feature('label_elevation')),
    **_SMALLNORB,
  ),
}
GROUPS = tuple(dict.fromkeys(task.group for task in TASKS.values()))


def find_task(name: str) -> Task:
  """The task of that name; raises `UserError` for another name, naming close ones."""
  if name in TASKS:
    return TASKS[name]
  if name in GROUPS:
    raise UserError(f'{name} is a group of tasks of VTAB, not one of them.')
  close = difflib.get_close_matches(name, [*TASKS, *GROUPS], n=3, cutoff=0.6)
  close += [task for task in TASKS if name and name in task and task not in close]
  hint = f'close ones: {", ".join(close)}' if close else f'there are {", ".join(TASKS)}'
  raise UserError(f'{name!r} is not a task of VTAB; {hint}.')


def parse_tasks(text: str) -> tuple[str, ...]:
  """The tasks of 'dtd,svhn', in the order of TASKS; a group stands for its tasks, '' for all.

  Raises:
    UserError: for a name that is neither, naming close ones.
  """
  names = [name.strip() for name in text.split(',')] if text.strip() else list(GROUPS)
  for name in names:
    if name not in GROUPS:
      find_task(name)
  return tuple(task for task in TASKS if task in names or TASKS[task].group in names)


def preparation_command(name: str, data_dir: str = '') -> str:
  """The shell command that prepares the data of a task in TFDS's folder, or in `data_dir`."""
  task = TASKS[name]
  folder = f'data_dir={json.dumps(data_dir)}, ' if data_dir else ''
  program = (
    f'import tensorflow_datasets as tfds; tfds.builder("{task.dataset}:{task.versions[-1]}", '
    f'{folder}file_format="array_record").download_and_prepare()'
  )
  return f'python -c {shlex.quote(program)}'
