"""tfds:name and array_record:/path: data sets prepared by TFDS, read without TensorFlow."""

from typing import Any

import numpy as np
from etils import epath

from vit_jax.data.sources.base import QUICKSTART, Source
from vit_jax.errors import BadExampleError, UserError, first_line


def _from_builder(builder: Any, spec: str, split: str) -> Source:
  """A prepared TFDS data set, read through `as_data_source`."""
  import tensorflow_datasets as tfds

  features = builder.info.features
  key = next((key for key in ('label', 'labels') if key in features), None)
  if 'image' not in features or key is None:
    raise UserError(f'{spec} has the features {", ".join(features)}; image and label are needed.')
  try:
    records = builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
  except (ValueError, KeyError) as error:
    splits = ', '.join(builder.info.splits)
    raise UserError(f'{spec} has the splits {splits}, not {split!r} ({error}).') from None
  except NotImplementedError:
    raise UserError(
        f'{spec} is prepared in the format {builder.info.file_format.value}; array_record is '
        "needed: prepare it again with tfds.builder(…, file_format='array_record')."
    ) from None
  label = getattr(features[key], 'feature', features[key])
  if not isinstance(label, tfds.features.ClassLabel):
    raise UserError(f'{spec}: its {key} is no class label but {type(label).__name__}.')
  num_classes = label.num_classes
  names = tuple(label.names) if label.names else tuple(map(str, range(num_classes)))

  def read(i: int) -> tuple[np.ndarray, np.ndarray]:
    try:
      record = records[i]
    except (RuntimeError, ValueError, OSError) as error:  # a shard is missing or damaged
      raise BadExampleError(f'{spec}, example {i} cannot be read: {first_line(error)}.') from None
    image = record['image']
    if key == 'label':
      return image, np.int32(record['label'])
    label = np.zeros(num_classes, np.uint8)
    label[np.asarray(record['labels'], np.int64)] = 1
    return image, label

  return Source(f'{spec} ({split})', len(records), read, names, multi_label=key == 'labels')


def open_tfds(name: str, split: str) -> Source:
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, try_gcs=False, file_format='array_record')
    prepared = builder.info.splits
  except Exception as error:  # noqa: BLE001 - TFDS raises a dozen kinds for an unknown name
    raise UserError(f'TFDS cannot open {name!r} ({first_line(error)}); {QUICKSTART}.') from None
  if not prepared:
    raise UserError(
        f'The TFDS data set {name!r} is not prepared in {builder.data_path}; prepare it with '
        f"pip install -e '.[prepare]', then python -c \"import tensorflow_datasets as tfds; "
        f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()\", "
        f'or name a folder of images as folder:/path; {QUICKSTART}.'
    )
  return _from_builder(builder, f'tfds:{name}', split)


def open_array_record(path: str, split: str) -> Source:
  import tensorflow_datasets as tfds

  root = epath.Path(path).expanduser()
  if not (root / 'features.json').exists():
    raise UserError(
        f'There is no prepared data set in {root} (no features.json); array_record: takes the '
        f'folder of a TFDS data set in array_record format, such as …/cifar10/3.0.2; {QUICKSTART}.'
    )
  try:
    builder = tfds.builder_from_directory(root)
  except Exception as error:  # noqa: BLE001 - TFDS, protobuf and json raise a dozen kinds
    raise UserError(f'{root} is not a whole TFDS data set ({first_line(error)}).') from None
  return _from_builder(builder, f'array_record:{root}', split)
