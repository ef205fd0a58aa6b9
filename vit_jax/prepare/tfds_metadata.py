"""features.json and dataset_info.json, as TFDS writes and reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'


def _feature(module: str, kind: str, **fields: Any) -> dict[str, Any]:
  return {'pythonClassName': f'tensorflow_datasets.core.features.{module}.{kind}', **fields}


def features(num_classes: int, multi_label: bool, real: bool) -> dict[str, Any]:
  """features.json of images with their label, the name of their file, and maybe ReaL labels."""
  label = _feature('class_label_feature', 'ClassLabel', classLabel={'numClasses': str(num_classes)})
  several = _feature('sequence_feature', 'Sequence', sequence={'feature': label, 'length': '-1'})
  image = {'dtype': 'uint8', 'shape': {'dimensions': ['-1', '-1', '3']}}
  found = {
    'image': _feature('image_feature', 'Image', image=image),
    'file_name': _feature('text_feature', 'Text', text={}),
    **({'labels': several} if multi_label else {'label': label}),
    **({'real': several} if real else {}),
  }
  return _feature('features_dict', 'FeaturesDict', featuresDict={'features': found})


def shard_name(name: str, split: str, shard: int, count: int) -> str:
  """The name of a file, as the template below says it."""
  digits = max(5, len(str(count)))
  return f'{name}-{split}.array_record-{shard:0{digits}}-of-{count:0{digits}}'


def dataset_info(
  name: str, splits: Mapping[str, Sequence[Mapping[str, Any]]], sizes: Mapping[str, int]
) -> dict[str, Any]:
  """dataset_info.json.

  Args:
    name: of the data set.
    splits: the shards of each: {'records': …}.
    sizes: the bytes of the images in each.
  """
  infos = [
    {
      'name': split,
      'numBytes': str(sizes[split]),
      'shardLengths': [str(shard['records']) for shard in shards],
      'filepathTemplate': _TEMPLATE,
    }
    for split, shards in splits.items()
  ]
  return {'name': name, 'version': '1.0.0', 'fileFormat': 'array_record', 'splits': infos}
