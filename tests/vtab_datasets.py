"""Made-up data sets of VTAB-1k in the format of TFDS, of tiny images."""

import functools
import io
import json
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from vit_jax.data.vtab_tasks import TASKS

# Of a version that each task reads.
_FEATURES = {
  'clevr': {
    'objects': tfds.features.Sequence(
      {
        'pixel_coords': tfds.features.Tensor(shape=(3,), dtype=np.float32),
        'size': tfds.features.ClassLabel(num_classes=2),
      }
    )
  },
  'kitti': {
    'objects': tfds.features.Sequence(
      {
        'location': tfds.features.Tensor(shape=(3,), dtype=np.float32),
        'type': tfds.features.ClassLabel(num_classes=8),
      }
    )
  },
  'dsprites': {
    'label_orientation': tfds.features.ClassLabel(num_classes=40),
    'label_x_position': tfds.features.ClassLabel(num_classes=32),
  },
  'smallnorb': {
    'label_azimuth': tfds.features.ClassLabel(num_classes=18),
    'label_elevation': tfds.features.ClassLabel(num_classes=9),
  },
}


@functools.cache
def _image(number: int, binary: bool) -> bytes:
  pixels = np.random.default_rng(number).integers(0, 2 if binary else 256, (8, 8, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels[..., 0] if binary else pixels).save(file, 'PNG')
  return file.getvalue()


def _record(dataset: str, i: int, num_classes: int) -> dict:
  """Example `i`; the classes take turns in every label."""
  if dataset == 'clevr':
    count = 3 + i % 8
    coords = np.full((count, 3), 50, np.float32)
    coords[-1, 2] = 7.75 + i % 6 / 2
    return {'objects': {'pixel_coords': coords, 'size': np.zeros(count, np.int64)}}
  if dataset == 'kitti':
    location = np.array([[0, 0, 1], [0, 0, 5 + 10 * (i % 4)]], np.float32)
    kinds = np.array([3, i % 3 if i % 4 < 3 else 7], np.int64)  # a pedestrian, and a vehicle
    return {'objects': {'location': location, 'type': kinds}}
  if dataset == 'dsprites':
    return {'label_orientation': i % 40, 'label_x_position': i % 32}
  if dataset == 'smallnorb':
    return {'label_azimuth': i % 18, 'label_elevation': i % 9}
  return {'label': i % num_classes}


def write_vtab(data_dir: pathlib.Path, task: str, test_examples: int = 20) -> pathlib.Path:
  """Writes the data set of a task below `data_dir`, in one shard for each split.

  Args:
    data_dir: TFDS's folder.
    task: a key of TASKS.
    test_examples: in the split that only tests use.

  Returns:
    The folder of the data set.
  """
  entry = TASKS[task]
  name = entry.dataset.partition('/')[0]
  folder = data_dir / entry.dataset / entry.versions[-1].replace('*', '0')
  if folder.exists():
    return folder
  folder.mkdir(parents=True)
  sizes = {'train': 2000 if entry.validation == ('train', 90) else 1000}
  sizes[entry.validation[0]] = max(sizes.get(entry.validation[0], 0), 200)
  sizes[entry.test[0]] = max(sizes.get(entry.test[0], 0), test_examples)
  label = {'label': tfds.features.ClassLabel(num_classes=entry.num_classes)}
  features = tfds.features.FeaturesDict(
    {'image': tfds.features.Image(), **_FEATURES.get(name, label)}
  )
  features.save_config(folder)
  serializer = ExampleSerializer(features.get_serialized_info())
  splits = []
  for split, size in sizes.items():
    path = folder / f'{name}-{split}.array_record-00000-of-00001'
    writer = ArrayRecordWriter(str(path), 'group_size:1')
    for i in range(size):
      image = _image(i % 20, name == 'dsprites')
      record = {'image': image, **_record(name, i, entry.num_classes)}
      writer.write(serializer.serialize_example(record))
    writer.close()
    splits.append({'name': split, 'shardLengths': [str(size)]})
  info = {'name': name, 'version': folder.name, 'fileFormat': 'array_record', 'splits': splits}
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  return folder
