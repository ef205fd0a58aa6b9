"""features.json and dataset_info.json, as TFDS writes and reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'


def _feature(module: str, class_name: str, **fields: Any) -> dict[str, Any]:
  return {'pythonClassName': f'tensorflow_datasets.core.features.{module}.{class_name}', **fields}


def features(num_classes: int, multi_label: bool, real: bool) -> dict[str, Any]:
  """Returns features.json: image, file name, label or labels, and ReaL labels if `real`."""
  label = _feature('class_label_feature', 'ClassLabel', classLabel={'numClasses': str(num_classes)})
  labels = _feature('sequence_feature', 'Sequence', sequence={'feature': label, 'length': '-1'})
  image = {'dtype': 'uint8', 'shape': {'dimensions': ['-1', '-1', '3']}}
  by_name = {
    'image': _feature('image_feature', 'Image', image=image),
    'file_name': _feature('text_feature', 'Text', text={}),
    **({'labels': labels} if multi_label else {'label': label}),
    **({'real': labels} if real else {}),
  }
  return _feature('features_dict', 'FeaturesDict', featuresDict={'features': by_name})


def shard_name(name: str, split: str, shard: int, num_shards: int) -> str:
  """Returns the name of a shard's file, by the template in dataset_info.json."""
  digits = max(5, len(str(num_shards)))
  return f'{name}-{split}.array_record-{shard:0{digits}}-of-{num_shards:0{digits}}'


def labels_name(name: str, split: str) -> str:
  """Returns the name of the file with the labels of a split, which TFDS ignores."""
  return f'{name}-{split}.labels.npy'


def dataset_info(
  name: str, splits: Mapping[str, Sequence[Mapping[str, Any]]], sizes: Mapping[str, int]
) -> dict[str, Any]:
  """Returns dataset_info.json; `splits`: shards, {'records': …}; `sizes`: bytes of the images."""
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
